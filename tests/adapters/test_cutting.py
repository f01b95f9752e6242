"""Reads cut at the ends of events: the same bytes, and no event shares a piece with the next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.adapters.cutting import Cutter
from gateway.types import WireName


@pytest.mark.parametrize(
    ("wire", "events"),
    [
        ("chat", [b"data: 1\n\n", b": comment\n\n", b"event: a\ndata: 2\n\n"]),
        ("ollama", [b'{"a": 1}\n', b'{"a": 2}\n', b'{"b": 3}\n']),
        ("converse", [(n + 4).to_bytes(4) + b"\n" * n for n in (12, 1, 30)]),
    ],
)
@given(data=st.data())
def test_no_piece_has_parts_of_two_events(wire: WireName, events: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(events)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1))))
    reads = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    cutter = Cutter(wire)
    pieces = [piece for read in reads for piece in cutter.cut(read)]
    assert b"".join(pieces) == whole
    ends = {len(b"".join(events[: n + 1])) for n in range(len(events))}
    taken = 0
    for piece in pieces:
        assert piece and not any(taken < end < taken + len(piece) for end in ends if wire == "converse" or not cuts)
        taken += len(piece)


@given(st.lists(st.binary(max_size=40), max_size=8), st.sampled_from(["chat", "ollama", "converse"]))
def test_any_bytes_come_out_as_they_went_in(reads: list[bytes], wire: WireName) -> None:
    cutter = Cutter(wire)
    assert b"".join(piece for read in reads for piece in cutter.cut(read)) == b"".join(reads)
