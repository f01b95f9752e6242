"""The shipped rows hold together and agree with recorded traffic; rows of a configuration are merged and checked."""

from __future__ import annotations

import re
from collections import Counter
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import pytest

from gateway.canonical import Answer
from gateway.config import row_book
from gateway.config.row_book import find_row, make_row, shipped_rows
from gateway.config.rows import PLAIN, Dialect, Row
from gateway.folding import Folding
from gateway.protocols.chat.wire import CHAT_WIRE
from gateway.types import WireName
from tests.docs.blocks import ROOT
from tests.recordings import Recording, recordings

PROMISED = """
    openai openai-compatible azure azure-deployments anthropic gemini vertex bedrock mistral cohere ollama local
    dashscope deepseek groq together fireworks xai openrouter perplexity cerebras moonshot zai volcengine qianfan
    huggingface nvidia sambanova deepinfra vllm sglang llamacpp tensorrt-llm lmstudio tgi litellm github hatchway
    bedrock_mantle crusoe gpustack heroku snowflake voyageai
"""
EMBEDDING_WIRES: set[WireName] = {"embeddings", "gemini", "converse", "cohere", "ollama"}
WITHOUT_ADDRESS = {
    "openai-compatible", "azure", "azure-deployments", "local", "llamacpp", "tgi", "hatchway", "gpustack", "snowflake",
}  # fmt: skip
GATEWAY_PORT = 8080
GUIDE = ROOT / "docs" / "guides" / "providers.md"
ACME = {"speaks": ["chat"], "capabilities": ["stream"]}

ROWS = [pytest.param(name, row, id=name) for name, row in shipped_rows().items()]


def test_promised_providers_are_there() -> None:
    assert set(PROMISED.split()) - set(shipped_rows()) == set()


def test_names_and_aliases_are_unique_and_no_row_is_written_twice() -> None:
    rows = shipped_rows()
    names = Counter([*rows, *(alias for row in rows.values() for alias in row.aliases)])
    assert [name for name, times in names.items() if times > 1] == []
    text = Path(row_book.__file__).with_name("providers.yaml").read_text()
    assert re.findall(r"^([\w.-]+):", text, flags=re.MULTILINE) == list(rows)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_row_is_whole(name: str, row: Row) -> None:
    assert row.title and row.title != name
    assert row.source.startswith("https://") or (ROOT / row.source).is_file()
    assert (row.base_url is None) == (name in WITHOUT_ADDRESS)
    can_embed = not EMBEDDING_WIRES.isdisjoint(row.speaks)
    assert ("embeddings" in row.capabilities) == (can_embed if name != "cohere" else True)
    assert ("stream" in row.capabilities) == (set(row.speaks) != {"embeddings"})


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_cache_marks_that_are_promised_are_sent(name: str, row: Row) -> None:
    if row.speaks[0] == "chat":
        assert row.dialect.cache_marks == ("cache_marks" in row.capabilities)
    assert ("reasoning" in row.capabilities) or row.dialect.thinking in ("none", "effort")


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_key_goes_only_where_it_is_safe(name: str, row: Row) -> None:
    if row.base_url is None:
        return
    address = urlsplit(row.base_url)
    assert address.scheme == "https" or address.hostname == "localhost"
    assert address.port != GATEWAY_PORT, "a gateway that calls itself"
    if address.hostname != "localhost":
        assert row.key, "a provider that is left out until its key is set"


def test_rows_are_found_by_name_and_alias() -> None:
    rows = shipped_rows()
    assert find_row("dashscope", rows) is find_row("qwen", rows) is find_row("alibaba", rows) is rows["dashscope"]
    assert find_row("zhipu", rows) is rows["zai"]
    assert find_row("nobody", rows) is None


def test_a_name_goes_before_an_alias() -> None:
    rows = {**shipped_rows(), "qwen": make_row("qwen", ACME, {})}
    assert find_row("qwen", rows) is rows["qwen"]


# Against what was recorded

SEEN_ELSEWHERE = {
    "azure": "hosts of users, and an older API",
    "gpustack": "host of a user",
    "huggingface": "an address of one provider behind the router",
    "perplexity": "chat completions, which have ended since",
    "together": "the address of before, which works too",
    "snowflake": "host of a user",
    "vertex": "the global address",
}
WIRE_OF: dict[str, WireName] = {
    "openai.chat": "chat",
    "openai.responses": "responses",
    "openai.completions": "completions",
    "openai.embeddings": "embeddings",
    "voyage.embed": "embeddings",
    "anthropic.messages": "messages",
    "gemini.generateContent": "gemini",
    "gemini.streamGenerateContent": "gemini",
    "bedrock.converse": "converse",
    "bedrock.converse_stream": "converse",
    "cohere.v2.chat": "cohere",
    "ollama.chat": "ollama",
}
TARGETS: dict[WireName, str] = {
    "chat": "/chat/completions",
    "responses": "/responses",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "messages": "/messages",
    "gemini": "/models/",
    "converse": "/model/",
    "cohere": "/v2/chat",
    "ollama": "/api/chat",
}


@pytest.mark.parametrize("recording", recordings(*WIRE_OF))
def test_recorded_address_is_the_row_s(recording: Recording) -> None:
    if recording.url is None or recording.provider in SEEN_ELSEWHERE:
        return
    wire = WIRE_OF[recording.protocol]
    name = "gemini-chat" if recording.provider == "gemini" and wire == "chat" else recording.provider
    row = find_row(name, shipped_rows())
    assert row is not None and row.base_url is not None and wire in row.speaks
    region = r"([\w-]+|<AWS_REGION>)"
    prefix = re.escape(row.base_url).replace(r"\{region\}", region)
    prefix = prefix.replace("api\\.aws/v1", "api\\.aws(/openai)?/v1")  # what its comment says of Mantle
    prefix = prefix.replace("localhost", "(localhost|127\\.0\\.0\\.1)")
    target = re.escape(row.paths.get(wire, TARGETS[wire]))
    url = unquote(recording.url).replace("https://ollama.com", "http://localhost:11434")
    assert re.match(prefix + target, url), f"{url} is not under {row.base_url}"


@pytest.mark.parametrize("recording", recordings("openai.chat"))
def test_recorded_usage_is_counted_as_the_dialect_says(recording: Recording) -> None:
    row = find_row(recording.provider, shipped_rows())
    assert row is not None
    expected = recording.expected
    if expected.get("error") or expected.get("doubtful") or expected.get("unparsed"):
        return
    usage = _answer(recording, row.dialect).usage
    buckets = dict(expected["buckets"] or {})
    for name, count in buckets.pop("of_which", {}).items():  # still inside the count of all, or cached
        whole = "input_tokens" if name.startswith("input") else "output_tokens"
        buckets[name] = min(count, buckets[whole])
        buckets[whole] -= buckets[name]
    found = {name: getattr(usage, name) for name in buckets} if usage is not None else {}
    assert found == buckets


def _answer(recording: Recording, dialect: Dialect) -> Answer:
    if not recording.stream:
        return CHAT_WIRE.read_answer(recording.body, dialect)
    decoder, folding = CHAT_WIRE.open_decoder(dialect), Folding()
    for event in (*decoder.feed(recording.body), *([] if decoder.is_finished else decoder.finish())):
        folding.add(event)
    return folding.answer()


# What is known of single providers, where a mistake would be silent


def test_counts_that_differ_from_the_protocol() -> None:
    rows = shipped_rows()
    odd = {name: row.dialect.reasoning_tokens for name, row in rows.items() if row.dialect.reasoning_tokens != "inside"}
    assert odd == {"xai": "outside", "gemini": "total", "gemini-chat": "total"}
    assert [name for name, row in rows.items() if row.dialect.audio_tokens == "outside"] == ["mistral"]


def test_a_server_of_openais_protocol_gets_the_bytes_as_they_are() -> None:
    rows = shipped_rows()
    assert rows["openai-compatible"].dialect == PLAIN
    assert rows["openai"].dialect == Dialect(unsupported=("top_k", "min_p"))  # which are not its own
    assert set(rows["openai-compatible"].speaks) == {"chat", "completions", "embeddings"}


def test_a_deployment_is_in_the_path() -> None:
    row = shipped_rows()["azure-deployments"]
    assert row.auth == "api-key" and row.base_url is None
    for wire in row.speaks:
        assert re.fullmatch(r"/openai/deployments/\{model\}/[a-z/]+\?api-version=\d{4}-\d\d-\d\d", row.paths[wire])


# Rows of a configuration


def test_row_of_ones_own() -> None:
    raw = {
        **ACME,
        "title": "Acme",
        "base_url": "https://llm.acme.example/v1/",
        "key": "ACME_KEY",
        "auth": "x-api-key",
        "paths": {"chat": "/c/{model}?v=1"},
        "headers": {"x-a": "b"},
        "dialect": {"limit_name": "max_tokens", "rename": {"seed": "random_seed"}},
    }
    assert make_row("acme", raw, {}) == Row(
        title="Acme",
        speaks=("chat",),
        capabilities=frozenset({"stream"}),
        source="",
        base_url="https://llm.acme.example/v1",
        key="ACME_KEY",
        auth="x-api-key",
        paths={"chat": "/c/{model}?v=1"},
        headers={"x-a": "b"},
        dialect=Dialect(limit_name="max_tokens", rename={"seed": "random_seed"}),
    )


def test_row_like_another_takes_its_fields_and_its_dialect_key_by_key() -> None:
    rows = shipped_rows()
    own = make_row("mine", {"like": "mistral", "dialect": {"demand_word": "required", "unsupported": ["n"]}}, rows)
    mistral = rows["mistral"]
    changed = msgspec.structs.replace(mistral.dialect, demand_word="required", unsupported=("n",))
    assert own == msgspec.structs.replace(mistral, title="mine", dialect=changed)


def test_row_like_an_alias_keeps_neither_title_nor_aliases() -> None:
    own = make_row("mine", {"like": "alibaba", "speaks": ["chat"], "paths": {}, "base_url": None}, shipped_rows())
    assert (own.title, own.aliases, own.base_url, own.speaks) == ("mine", (), None, ("chat",))
    assert own.dialect == shipped_rows()["dashscope"].dialect


def test_an_empty_dialect_changes_nothing_and_only_null_takes_an_inherited_value_away() -> None:
    rows = shipped_rows()
    assert make_row("m", {"like": "deepseek", "dialect": {}}, rows).dialect == rows["deepseek"].dialect
    own = make_row("m", {"like": "deepseek", "dialect": {"reasoning_replay": None}}, rows)
    assert own.dialect == msgspec.structs.replace(rows["deepseek"].dialect, reasoning_replay=None)


def test_a_row_may_be_like_one_of_ones_own() -> None:
    rows = {"a": make_row("a", {**ACME, "key": "A"}, {})}
    assert make_row("b", {"like": "a", "key": "B"}, rows).key == "B"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speeks": ["chat"]}, "unknown field `speeks`; did you mean `speaks`?"),
        ({"dialect": {"limit": "x"}}, "`dialect`: unknown field `limit`; one of `audio_tokens`, "),
        ({"speaks": ["chat", "chatt"]}, "`speaks[1]`: unknown word `chatt`; did you mean `chat`?"),
        ({"capabilities": ["tool"]}, "`capabilities[0]`: unknown word `tool`; did you mean `tools`?"),
        ({"auth": "basic"}, "`auth`: unknown word `basic`; one of `api-key`, "),
        ({"dialect": {"thinking": "hard"}}, "`dialect.thinking`: unknown word `hard`; one of `effort`, "),
        ({"dialect": {"reasoning_replay": "resoning"}}, "`dialect.reasoning_replay`: unknown word `resoning`; did you"),
        ({"dialect": {"thinking_streams": "yes"}}, "`dialect.thinking_streams`: expected `bool`, got `str`"),
        ({"dialect": ["x"]}, "`dialect`: expected `object`, got `array`"),
        ({"speaks": "chat"}, "`speaks`: expected `array`, got `str`"),
        ({"speaks": []}, "`speaks` is empty"),
        ({"speaks": ["chat", "chat"]}, "`speaks` names a wire format twice"),
        ({"capabilities": None}, "`capabilities`: expected `array`, got `null`"),
        ({"title": " "}, "`title` is empty"),
        ({"base_url": "llm.example/v1"}, "`base_url` is no http or https address"),
        ({"base_url": "https://h:port/v1"}, "`base_url` is no http or https address"),
        ({"base_url": "https://u:p@h/v1"}, "`base_url` holds credentials, a query or a fragment"),
        ({"base_url": "https://h/v1?x=1"}, "`base_url` holds credentials, a query or a fragment"),
        ({"base_url": "https://{zone}.h/v1"}, "`base_url` has a variable other than `{region}` and `{project}`"),
        ({"key": "sk-123"}, "`key` is no name of an environment variable; the key itself does not belong here"),
        ({"paths": {"messages": "/m"}}, "`paths.messages`: the row does not speak `messages`"),
        ({"paths": {"chat": "m"}}, "`paths.chat` must begin with `/` and hold no blanks"),
        ({"paths": {"chatt": "/m"}}, "`paths`: unknown word `chatt`; did you mean `chat`?"),
        ({"headers": {"a b": "x"}}, "`headers`: `a b` cannot be sent as a header"),
        ({"headers": {"a": "x\r\ny: z"}}, "`headers`: `a` cannot be sent as a header"),
        ({"headers": {"a": 3}}, "`headers[...]`: expected `str`, got `int`"),
        ({"dialect": {"rename": {1: "x"}}}, "`dialect.rename`: 1 is no name; put quotes around it"),
        ({7: "x"}, "`row`: 7 is no name; put quotes around it"),
        ({"like": "mistrl"}, "`like`: unknown row `mistrl`; did you mean `mistral`?"),
        ({"like": 3}, "`like`: unknown row `3`; one of "),
    ],
    ids=str,
)
def test_wrong_row_names_the_field(change: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_row("acme", {**ACME, **change}, shipped_rows())
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left_out", ["speaks", "capabilities"])
def test_what_has_no_default_must_be_written(left_out: str) -> None:
    with pytest.raises(ValueError, match=f"^`{left_out}` is missing$"):
        make_row("acme", {key: value for key, value in ACME.items() if key != left_out}, {})


@pytest.mark.parametrize("raw", [None, "mistral", ["like", "mistral"], 3])
def test_a_row_is_a_mapping(raw: Any) -> None:
    with pytest.raises(ValueError, match="^must be a mapping, not "):
        make_row("acme", raw, shipped_rows())


def test_a_wrong_shipped_file_says_which_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "providers.yaml").write_text("good: {speaks: [chat], capabilities: []}\nbad: {like: good, auth: no}\n")
    monkeypatch.setattr(row_book, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match=r"^providers\.yaml: `bad`: `auth`: "):
        shipped_rows.__wrapped__()


# The guide


def table(heading: str) -> list[list[str]]:
    """Rows of the guide's first table after these words, without the head; backticks are left out."""
    lines = GUIDE.read_text().partition(f"{heading}\n")[2].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    body = takewhile(lambda line: line.startswith("|"), lines[first + 2 :])
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in body]


def test_guide_has_every_row_as_it_is() -> None:
    written = {row[0].split(", ")[0]: row for row in table("## Every provider")}
    assert set(written) == set(shipped_rows())
    for name, row in shipped_rows().items():
        names, title, key, address, speaks = written[name]
        assert names == ", ".join([name, *row.aliases])
        assert title.startswith(f"[{row.title}](")
        assert key == (row.key or "none")
        assert address == row.base_url or (row.base_url is None and not address.startswith("http"))
        assert speaks == ", ".join(row.speaks)


def test_guide_has_every_field_of_a_dialect() -> None:
    described = {row[0] for row in table("The fields of a `dialect`; what is left out is as in the protocol:")}
    assert described == set(Dialect.__struct_fields__)
