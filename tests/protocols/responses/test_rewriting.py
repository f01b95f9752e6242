"""A request for an upstream that speaks the same: its bytes, but for what must differ."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.config.rows import PLAIN, Dialect
from gateway.protocols.responses.wire import RESPONSES_PROTOCOL

BODY = (
    b'{ "model" : "m", "input": [{"role":"user","content":"h\\u00e9"}], "temperature": 1.0, "new": {"a": 1e2},'
    b' "tool_choice": "required", "seed": 7 }'
)


def rewrite(body: bytes, model: str | None = None, dialect: Dialect = PLAIN) -> bytes:
    return RESPONSES_PROTOCOL.rewrite(RESPONSES_PROTOCOL.parse(body), body, model, dialect)


@pytest.mark.parametrize("model", [None, "m"])
def test_nothing_changes(model: str | None) -> None:
    assert rewrite(BODY, model) is BODY
    assert rewrite(BODY, model, Dialect(unsupported=("top_k",), rename={"user": "x"})) is BODY


def test_only_the_model_changes() -> None:
    assert rewrite(BODY, "other") == (
        b'{"model":"other","input":[{"role":"user","content":"h\\u00e9"}],"temperature":1.0,"new":{"a": 1e2},'
        b'"tool_choice":"required","seed":7}'
    )


def test_the_dialect_is_spoken() -> None:
    dialect = Dialect(unsupported=("new",), rename={"seed": "random_seed"}, demand_word="any")
    changed = json.loads(rewrite(BODY, None, dialect))
    assert changed["tool_choice"] == "any" and changed["random_seed"] == 7
    assert "new" not in changed and "seed" not in changed and changed["model"] == "m"


OWN = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
TALK = {"role": "user", "content": "what is hatchway. about?"}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    "foreign",
    [
        {"type": "reasoning", "id": "rs_hatchway_1", "summary": [], "encrypted_content": None},
        {"type": "reasoning", "id": "rs_hatchway_1", "summary": [{"type": "summary_text", "text": "x"}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "hatchway.messages.sig"},
        {"type": "reasoning", "summary": [], "encrypted_content": "hatchway.call.hatchway.gemini.sig"},
        {"type": "image_generation_call", "id": "ig_hatchway_1", "status": "completed", "result": "AAAA"},
    ],
)
def test_what_other_providers_made_is_left_out(foreign: Any) -> None:
    """The upstream would refuse their seals, and look in vain for their ids."""
    body = json.dumps({"model": "m", "input": [TALK, foreign, OWN, CALL], "x": 1}).encode()
    assert json.loads(rewrite(body)) == {"model": "m", "input": [TALK, OWN, CALL], "x": 1}


def test_own_words_with_that_name_stay() -> None:
    body = json.dumps({"model": "m", "input": [TALK, OWN, {"type": "odd", "id": 7, "note": "hatchway"}]}).encode()
    view = RESPONSES_PROTOCOL.parse(json.dumps({"model": "m", "input": "x"}).encode())
    assert RESPONSES_PROTOCOL.rewrite(view, body, None, PLAIN) is body
    text = b'{"model":"m","input":"hatchway"}'
    assert rewrite(text) is text
