"""Where a Gemini has its facts from: `groundingMetadata` of searches, `citationMetadata` of long quotations.

Places are counted in bytes of UTF-8, from the start of the part or, in streams, of the text so far. A place whose words
are given is believed only if they stand there.
"""

from __future__ import annotations

from collections.abc import Iterator

from gateway.canonical import Citation
from gateway.protocols.gemini.shapes import Candidate, CitationMetadata, GroundingMetadata, Segment, Source

MAX_CITATIONS = 1024
"""Of one choice; what is beyond is left out."""


def read_citations(candidate: Candidate, text: str) -> Iterator[Citation]:
    """`text`: the text part that they belong to. Sources without an address, as of file stores, are left out."""
    if candidate.grounding_metadata is not None:
        yield from _grounding(candidate.grounding_metadata, text)
    if candidate.citation_metadata is not None:
        yield from _quotations(candidate.citation_metadata, text)


def _grounding(metadata: GroundingMetadata, text: str) -> Iterator[Citation]:
    sources = [
        chunk.web or chunk.maps or chunk.retrieved_context or Source() for chunk in metadata.grounding_chunks or ()
    ]
    used: set[int] = set()
    for support in metadata.grounding_supports or ():
        start, end = _place(support.segment or Segment(), text)
        for index in support.grounding_chunk_indices or ():
            if 0 <= index < len(sources) and (source := sources[index]).uri:
                used.add(index)
                yield Citation(source.uri, source.title, start, end)
    for index, source in enumerate(sources):
        if source.uri and index not in used:
            yield Citation(source.uri, source.title)


def _quotations(metadata: CitationMetadata, text: str) -> Iterator[Citation]:
    for source in (*(metadata.citation_sources or ()), *(metadata.citations or ())):
        if source.uri:
            yield Citation(source.uri, source.title, *_place(Segment(source.start_index, source.end_index), text))


def _place(segment: Segment, text: str) -> tuple[int | None, int | None]:
    """Start and end in characters; None: not said, or not in this text."""
    data = text.encode("utf-8", "surrogatepass")
    start, end = segment.start_index or 0, segment.end_index
    if end is not None and 0 <= start < end <= len(data):
        found = data[start:end].decode("utf-8", "replace")
        if segment.text is None or found == segment.text:
            before = len(data[:start].decode("utf-8", "replace"))
            return before, before + len(found)
    at = text.find(segment.text) if segment.text else -1
    return (at, at + len(segment.text or "")) if at >= 0 else (None, None)
