"""Pictures, recordings, films and documents: `inlineData` and `fileData`.

Source: ai.google.dev/gemini-api/docs/generate-content/file-input-methods.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from gateway.canonical import Media
from gateway.errors import InvalidRequest

_FILES = "https://generativelanguage.googleapis.com/v1beta/"
_IN_RESULTS = frozenset({"image/png", "image/jpeg", "image/webp", "application/pdf"})
_ENDINGS = {
    **{ending: f"image/{ending}" for ending in ("png", "jpeg", "webp", "gif", "heic", "heif", "bmp")},
    **{ending: f"audio/{ending}" for ending in ("wav", "aac", "ogg", "flac", "aiff", "m4a")},
    **{ending: f"video/{ending}" for ending in ("mp4", "webm", "mpeg", "mov", "avi", "wmv")},
    **{"jpg": "image/jpeg", "mp3": "audio/mpeg", "pdf": "application/pdf"},
    **{"txt": "text/plain", "md": "text/markdown", "csv": "text/csv", "html": "text/html", "json": "application/json"},
}
_USUAL = {"image": "image/jpeg", "audio": "audio/mpeg", "video": "video/mp4", "document": "application/pdf"}


def write_media(media: Media) -> dict[str, object]:
    """The part. Raises InvalidRequest for a file of another provider."""
    kind = _media_type(media)
    if media.data is not None:
        return {"inlineData": {"mimeType": kind, "data": media.data}}
    return {
        "fileData": {"mimeType": kind, "fileUri": media.url if media.url is not None else _uri(media.file_id or "")}
    }


def fits_in_result(media: Media) -> bool:
    """Whether it may stand inside the result of a tool."""
    return media.data is not None and _media_type(media) in _IN_RESULTS


def _media_type(media: Media) -> str:
    """Google demands one. Where the sender did not give it, the name's ending tells, or else what is usual: addresses
    of pictures often have no ending, and models look at the bytes."""
    if media.media_type:
        return media.media_type
    for name in (media.name, urlsplit(media.url).path if media.url else None, media.file_id):
        ending = (name or "").rpartition(".")[2].lower()
        if ending in _ENDINGS:
            return _ENDINGS[ending]
    return _USUAL[media.kind]


def _uri(file_id: str) -> str:
    if file_id.startswith(("https://", "gs://")):
        return file_id
    if file_id.startswith("files/"):
        return _FILES + file_id
    raise InvalidRequest(
        "a file of another provider cannot be sent to Gemini\nhint: send its data, or a `gs://` or `https://` address",
        param="messages",
        code="unsupported_by_endpoint",
    )
