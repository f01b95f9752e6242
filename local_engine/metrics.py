"""The engine's counters in the Prometheus text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from local_engine.request import Stats

# name, kind, help, field of `Stats`
_ROWS = (
    ("requests_running", "gauge", "Requests that share the engine's steps.", "running"),
    ("requests_waiting", "gauge", "Requests queued or preempted.", "waiting"),
    ("kv_blocks_used", "gauge", "KV cache blocks held by running requests.", "blocks_used"),
    ("kv_blocks", "gauge", "KV cache blocks in all.", "blocks"),
    ("steps_total", "counter", "Steps run.", "steps"),
    ("prompt_tokens_total", "counter", "Prompt positions computed.", "prompt_tokens"),
    ("completion_tokens_total", "counter", "Tokens generated, end-of-turn tokens included.", "completion_tokens"),
    ("cancelled_total", "counter", "Requests cancelled before their end.", "cancelled"),
    ("failed_total", "counter", "Requests that ended in an error of the model.", "failed"),
    ("preempted_total", "counter", "Times a running request gave its KV cache back.", "preempted"),
)


def exposition(stats: Stats, ready: bool) -> str:
    rows = [("ready", "gauge", "1 when the model is loaded.", int(ready))]
    rows += [(name, kind, text, getattr(stats, field)) for name, kind, text, field in _ROWS]
    return "".join(
        f"# HELP hatchway_engine_{name} {text}\n# TYPE hatchway_engine_{name} {kind}\nhatchway_engine_{name} {value}\n"
        for name, kind, text, value in rows
    )
