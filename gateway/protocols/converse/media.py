"""Pictures, films, recordings and documents as Converse has them: a format's name, and bytes or a place in S3.

Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ImageBlock.html, and likewise DocumentBlock,
VideoBlock and AudioBlock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from gateway.canonical import Media, MediaKind
from gateway.errors import InvalidRequest

_OOXML = "application/vnd.openxmlformats-officedocument"
_FORMATS: Mapping[MediaKind, Mapping[str, str]] = {
    "image": {"image/png": "png", "image/jpeg": "jpeg", "image/jpg": "jpeg", "image/gif": "gif", "image/webp": "webp"},
    "document": {
        "application/pdf": "pdf",
        "text/csv": "csv",
        "application/csv": "csv",
        "application/msword": "doc",
        f"{_OOXML}.wordprocessingml.document": "docx",
        "application/vnd.ms-excel": "xls",
        f"{_OOXML}.spreadsheetml.sheet": "xlsx",
        "text/html": "html",
        "text/plain": "txt",
        "text/markdown": "md",
        "text/x-markdown": "md",
    },
    "video": {
        "video/x-matroska": "mkv",
        "video/matroska": "mkv",
        "video/quicktime": "mov",
        "video/mp4": "mp4",
        "video/webm": "webm",
        "video/x-flv": "flv",
        "video/mpeg": "mpeg",
        "video/x-ms-wmv": "wmv",
        "video/3gpp": "three_gp",
    },
    "audio": {
        "audio/mpeg": "mp3",
        "audio/mp3": "mp3",
        "audio/opus": "opus",
        "audio/wav": "wav",
        "audio/x-wav": "wav",
        "audio/wave": "wav",
        "audio/aac": "aac",
        "audio/x-aac": "x-aac",
        "audio/flac": "flac",
        "audio/x-flac": "flac",
        "audio/mp4": "mp4",
        "audio/x-m4a": "m4a",
        "audio/ogg": "ogg",
        "audio/webm": "webm",
        "audio/pcm": "pcm",
    },
}
_ENDINGS: Mapping[str, str] = {"jpg": "jpeg", "3gp": "three_gp", "htm": "html", "markdown": "md", "text": "txt"}
_BEGINNINGS = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp", "JVBERi": "pdf"}  # in base64
_MEDIA_TYPES = {
    kind: {name: media_type for media_type, name in reversed([*types.items()])} for kind, types in _FORMATS.items()
}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9\-()\[\]]+")
_MAX_NAME = 180  # of 200: what makes a name unique is added to it


def write_media(media: Media, name: str) -> dict[str, Any]:
    """One content block. `name`: for a document, as `document_name` makes it. Raises InvalidRequest."""
    block: dict[str, Any] = {"format": _format_of(media), "source": _source_of(media)}
    if media.kind == "document":
        block["name"] = name
    return {media.kind: block}


def media_type_of(kind: MediaKind, format_name: str) -> str | None:
    """The media type of a format that Converse names."""
    return _MEDIA_TYPES[kind].get(format_name)


def document_name(wanted: str | None, taken: set[str]) -> str:
    """A name that the API takes (letters, digits, single spaces, hyphens, brackets) and that is new in the request."""
    stem, dot, ending = (wanted or "").rpartition(".")
    name = stem if dot and _known_ending(ending) else wanted or ""
    name = " ".join(_NOT_IN_NAMES.sub(" ", name).split())[:_MAX_NAME].strip() or "Document"
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name} {number}"
    taken.add(unique)
    return unique


def _known_ending(ending: str) -> bool:
    ending = ending.lower()
    return ending in _ENDINGS or any(ending in names for names in _MEDIA_TYPES.values())


def _format_of(media: Media) -> str:
    """By its media type, else by the ending of its name or address, else by its first bytes."""
    names = _FORMATS[media.kind]
    media_type = (media.media_type or "").partition(";")[0].strip().lower()
    if media_type in names:
        return names[media_type]
    for text in (media.name or "", urlsplit(media.url).path if media.url else ""):
        ending = text.rpartition(".")[2].lower()
        ending = _ENDINGS.get(ending, ending)
        if ending in _MEDIA_TYPES[media.kind]:
            return ending
    for beginning, name in _BEGINNINGS.items():
        if media.data is not None and media.data.startswith(beginning) and name in _MEDIA_TYPES[media.kind]:
            return name
    kind = f"`{media_type}`" if media_type else f"a {media.kind} of an unknown type"
    raise _unsupported(f"this endpoint does not read {kind}")


def _source_of(media: Media) -> dict[str, Any]:
    if media.data is not None:
        return {"bytes": media.data}
    if media.url is not None and media.url.startswith("s3://"):
        return {"s3Location": {"uri": media.url}}
    raise _unsupported(f"this endpoint takes a {media.kind} as bytes or by an s3:// address only")


def _unsupported(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="messages", code="unsupported_by_endpoint")
