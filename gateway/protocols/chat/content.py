"""The parts of a message's content, both ways: texts, pictures, recordings, films and files.

Source: OpenAI API reference, "Create chat completion", `messages[].content`. Besides: `video_url` (OpenRouter, vLLM),
`document_url` and `thinking` (Mistral), `cache_control` (OpenRouter and LiteLLM, as Anthropic writes it).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

import msgspec

from gateway.canonical import CacheTtl, Media, MediaKind, Part, Reasoning, Refusal, Text
from gateway.errors import InvalidRequest

_AUDIO_TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg"}
_AUDIO_FORMATS = {"audio/wave": "wav", "audio/x-wav": "wav", "audio/mpeg": "mp3"}
_KINDS: Mapping[str, MediaKind] = {"image": "image", "audio": "audio", "video": "video"}
# How pictures begin, in base64: https://www.garykessler.net/library/file_sigs.html
_PICTURES = {"iVBORw0KGgo": "image/png", "/9j/": "image/jpeg", "R0lGOD": "image/gif", "UklGR": "image/webp"}


class CacheControl(msgspec.Struct):
    ttl: str | None = None


class Link(msgspec.Struct):
    url: str
    detail: str | None = None


class InputAudio(msgspec.Struct):
    data: str
    format: str | None = None


class File(msgspec.Struct):
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class Thought(msgspec.Struct):
    text: str | None = None


class ContentPart(msgspec.Struct):
    type: str | None = None
    text: str | None = None
    refusal: str | None = None
    image_url: Link | str | None = None
    video_url: Link | str | None = None
    document_url: Link | str | None = None
    document_name: str | None = None
    input_audio: InputAudio | str | None = None
    file: File | None = None
    thinking: list[Thought] | str | None = None
    cache_control: CacheControl | None = None


def read_part(part: ContentPart, param: str) -> Part | None:
    """None: of a type that only chat has. Raises InvalidRequest, whose `param` begins with the given one."""
    cache = read_ttl(part.cache_control)
    if part.type in ("text", "input_text", "output_text", None) and part.text is not None:
        return Text(part.text, cache=cache)
    if part.type == "thinking" and part.thinking is not None:
        return Reasoning(thought_text(part.thinking))
    if part.type == "refusal" and part.refusal is not None:
        return Refusal(part.refusal)
    if part.type in ("text", "image_url", "video_url", "input_audio", "file", "document_url"):
        media = _read_media(part)
        if media is None:
            name = f"{param}.{part.type}"
            raise InvalidRequest(f"`{name}` is missing or says nothing", param=name, code="invalid_value")
        media.cache = cache
        return media
    return None


def read_ttl(control: CacheControl | None) -> CacheTtl | None:
    if control is None:
        return None
    return "1h" if control.ttl == "1h" else "5m"


def cache_control(ttl: CacheTtl) -> dict[str, str]:
    return {"type": "ephemeral"} if ttl == "5m" else {"type": "ephemeral", "ttl": ttl}


def thought_text(thinking: list[Thought] | str) -> str:
    return thinking if isinstance(thinking, str) else "".join(thought.text or "" for thought in thinking)


def read_link(kind: MediaKind, url: str, *, detail: str | None = None, name: str | None = None) -> Media:
    """A `data:` URL (RFC 2397) becomes data in base64, any other stays what it is."""
    if url[:5].lower() != "data:":
        return Media(kind, url=url, detail=detail, name=name)
    header, _, data = url[5:].partition(",")
    media_type, *parameters = header.split(";")
    if "base64" not in (parameter.strip().lower() for parameter in parameters):
        data = base64.b64encode(unquote_to_bytes(data)).decode("ascii")
    return Media(kind, data=data, media_type=media_type or None, detail=detail, name=name)


def data_url(media: Media) -> str:
    """The URL of media that is not a `file_id`."""
    return media.url if media.url is not None else f"data:{_media_type(media)};base64,{media.data}"


def write_part(part: Text | Media) -> dict[str, object]:
    """Without its cache mark. Raises InvalidRequest for media that chat completions cannot carry."""
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if part.file_id is not None:
        return {"type": "file", "file": {"file_id": part.file_id}}
    if part.kind == "image":
        link = {"url": data_url(part)} if part.detail is None else {"url": data_url(part), "detail": part.detail}
        return {"type": "image_url", "image_url": link}
    if part.kind == "video":
        return {"type": "video_url", "video_url": {"url": data_url(part)}}
    if part.kind == "audio":
        return {"type": "input_audio", "input_audio": _write_audio(part)}
    if (words := _words_of(part)) is not None:
        return {"type": "text", "text": words}
    name = part.name or ("document.pdf" if _media_type(part) == "application/pdf" else "document")
    return {"type": "file", "file": {"filename": name, "file_data": data_url(part)}}


def _read_media(part: ContentPart) -> Media | None:
    if part.type == "file" and part.file is not None:
        return _read_file(part.file)
    if part.type == "input_audio" and part.input_audio is not None:
        return _read_audio(part.input_audio)
    links: Mapping[str | None, tuple[MediaKind, Link | str | None]] = {
        "image_url": ("image", part.image_url),
        "video_url": ("video", part.video_url),
        "document_url": ("document", part.document_url),
    }
    kind, link = links.get(part.type, ("document", None))
    if link is None:
        return None
    url, detail = (link, None) if isinstance(link, str) else (link.url, link.detail)
    return read_link(kind, url, detail=detail, name=part.document_name) if url else None


def _read_audio(audio: InputAudio | str) -> Media | None:
    """Mistral's is a URL or base64 without a format."""
    if isinstance(audio, str):
        if audio[:5].lower() in ("data:", "http:", "https"):
            return read_link("audio", audio)
        return Media("audio", data=audio) if audio else None
    if audio.data[:5].lower() == "data:":
        return read_link("audio", audio.data)
    media_type = None if audio.format is None else _AUDIO_TYPES.get(audio.format, f"audio/{audio.format}")
    return Media("audio", data=audio.data, media_type=media_type)


def _read_file(file: File) -> Media | None:
    if file.file_id is not None:
        return Media("document", file_id=file.file_id, name=file.filename)
    if file.file_data is None:
        return None
    if file.file_data[:5].lower() in ("data:", "http:", "https"):
        media = read_link("document", file.file_data, name=file.filename)
        media.kind = _KINDS.get((media.media_type or "").partition("/")[0], "document")
        return media
    media_type = "application/pdf" if (file.filename or "").lower().endswith(".pdf") else None
    return Media("document", data=file.file_data, media_type=media_type, name=file.filename)


def _write_audio(media: Media) -> dict[str, str]:
    if media.data is None:
        message = "chat completions take recordings as data, not as a URL"
        raise InvalidRequest(message, param="messages", code="unsupported_by_endpoint")
    media_type = media.media_type or "audio/wav"
    return {"data": media.data, "format": _AUDIO_FORMATS.get(media_type, media_type.rpartition("/")[2])}


def _words_of(media: Media) -> str | None:
    """A document that is plain text, which goes as such: files are PDF only with many."""
    if media.data is None or not (media.media_type or "").startswith("text/"):
        return None
    try:
        return base64.b64decode(media.data).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _media_type(media: Media) -> str:
    if media.media_type is not None:
        return media.media_type
    if media.kind == "image" and media.data is not None:
        start = media.data[:12]
        return next((name for magic, name in _PICTURES.items() if start.startswith(magic)), "image/png")
    return {"document": "application/pdf", "video": "video/mp4"}.get(media.kind, "application/octet-stream")
