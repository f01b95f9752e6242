"""What a policy keeps of requests and answers. Left out, and that is usual: nothing."""

from __future__ import annotations

from typing import Literal, cast

from gateway.config.keys import MAX_KEEP
from gateway.config.model import Prompts
from gateway.config.section import Section
from gateway.redaction import KINDS

WHAT = ("both", "prompt")


def compile_prompts(section: Section) -> Prompts | None:
    """None with its mistakes reported. What `redact` leaves out is kept as it is; left out itself, it is every kind."""
    section.require("keep", "say for how long, as in `prompts: {keep: 30d}`")
    keep = section.seconds("keep", most=MAX_KEEP)
    redact = section.choices("redact", KINDS, "kind of text", empty=True)
    what = section.choice("what", WHAT, "`what`")
    if keep is None:
        return None
    return Prompts(
        keep=keep,
        redact=tuple(KINDS) if redact is None else tuple(kind for kind in KINDS if kind in redact),
        what=cast(Literal["prompt", "both"], what or "both"),
    )
