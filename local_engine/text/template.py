"""The chat template: messages to prompt ids, without letting a message forge control tokens.

A template writes control tokens as text (`<|im_end|>`), and a message may contain the very same text. Before rendering,
every control token inside a message is broken by a guard character, one that occurs nowhere in the messages. After
rendering, only unbroken control tokens count; then the guards are dropped and the text between is encoded as plain
text. So a forged `<|im_end|>` reaches the model as the characters the user typed, while a prompt without one is
rendered and encoded exactly as if nothing had been done. A message that *ends* in the beginning of a control token is
guarded too, in case a template joins it to another message. Tools and `chat_template_kwargs` are guarded likewise.

What a template gets is what Hugging Face's `apply_chat_template` gives it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import CodeType
from typing import Any

from jinja2 import Template, TemplateError

from local_engine.errors import ModelFileError, RequestError
from local_engine.text.reply_format import knows_tools
from local_engine.text.template_sandbox import Sandbox
from local_engine.text.tool_prompt import as_text, into_first_user
from local_engine.text.vocabulary import Files, Vocabulary
from local_engine.text.vocabulary_folder import read_json

MAX_TEMPLATE = 1 << 18  # characters of a template
MAX_NAMED = 16  # templates of one model
# Characters for private use: rare in text, so the first is nearly always free.
_GUARDS = range(0xF0000, 0xFFFFE)
_PRIVATE = re.compile(f"[{chr(_GUARDS[0])}-{chr(_GUARDS[-1])}]")

# For a model without a template.
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LINES = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """`tail` is the text behind the last message: it tells whether the reply begins inside reasoning.

    Where the last message is continued, that is its text; where the template knows no reasoning, it is empty.
    """

    ids: list[int]
    tail: str


def read_templates(checkpoint: Files) -> dict[str, str]:
    """The templates of a model by name (`default`, `tool_use`, ...). Raises `ModelFileError`."""
    found: dict[str, Any] = {}
    if (file := checkpoint.gguf) is not None:
        prefix = "tokenizer.chat_template"
        for key in file.metadata:
            if key == prefix or key.startswith(prefix + "."):
                found[key[len(prefix) + 1 :] or "default"] = file.string(key)
    elif (folder := checkpoint.folder) is not None:
        stated = (read_json(folder / "tokenizer_config.json") or {}).get("chat_template")
        for entry in stated if isinstance(stated, list) else [{"name": "default", "template": stated}]:
            if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                found[str(entry.get("name"))] = entry["template"]
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))[:MAX_NAMED]:
            found[path.stem] = _read_text(path)
        if (path := folder / "chat_template.jinja").is_file():
            found["default"] = _read_text(path)
    if len(found) > MAX_NAMED:
        raise ModelFileError(f"the model has {len(found)} chat templates, at most {MAX_NAMED} are allowed")
    return found


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4 * MAX_TEMPLATE).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"cannot read `{path.name}`: {error}") from error


class ChatTemplate:
    """A model's templates, compiled and bound to the vocabulary their control tokens belong to. Any thread may use it.

    With tools, a template named `tool_use` is taken where there is one. A template that knows no tools is given
    messages in which tools and calls are described in words (`tool_prompt.py`). A model without a template gets ChatML
    if it has those control tokens, and lines of `role: text` if not.
    """

    def __init__(self, templates: str | Mapping[str, str], vocabulary: Vocabulary, max_characters: int) -> None:
        """`max_characters` bounds what one rendering may produce. Raises `ModelFileError`."""
        named = {"default": templates} if isinstance(templates, str) else dict(templates)
        if "default" not in named:
            chatml = {"<|im_start|>", "<|im_end|>"} <= vocabulary.control.keys()
            named["default"] = next(iter(named.values()), _CHATML if chatml else _LINES)
        self._plain = _Compiled.of(named["default"])
        self._tool_use = _Compiled.of(named["tool_use"]) if "tool_use" in named else self._plain
        self.source = self._tool_use.source  # of the template that is used with tools
        self._vocabulary = vocabulary
        self._max_characters = max_characters
        self._breaker = _breaker(list(vocabulary.control))

    @classmethod
    def of(cls, checkpoint: Files, vocabulary: Vocabulary, max_characters: int) -> "ChatTemplate":
        """Raises `ModelFileError`."""
        return cls(read_templates(checkpoint), vocabulary, max_characters)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """Messages and tools as in OpenAI's API -> the ids of a prompt.

        `continue_final_message`: the last message is the beginning of the reply, and the prompt ends inside it.
        Raises `RequestError` when the template refuses the messages or the prompt grows past the bound.
        """
        plain = [_readable(message) for message in messages]
        template = self._tool_use if tools else self._plain
        retry: list[Message] | None = None
        has_calls = any(m.get("tool_calls") or m.get("role") == "tool" for m in plain)
        if not template.knows_tools and (tools or has_calls):
            plain, retry = as_text(plain, tools or ()), into_first_user(plain, tools or ())
            tools = None
        if template.wants_short_ids:
            plain = [_with_short_ids(message) for message in plain]
        given = (tools, add_generation_prompt, continue_final_message, kwargs or {})
        try:
            return self._encode(template, plain, *given)
        except RequestError:
            if retry is None or retry == plain:
                raise
        except RecursionError as error:
            raise RequestError("the messages or tools are nested too deep", param="messages") from error
        # some templates refuse a system message: the first question can say the same
        return self._encode(template, retry, *given)

    def _encode(
        self,
        template: "_Compiled",
        messages: list[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        kwargs: Mapping[str, Any],
    ) -> Prompt:
        given = {"messages": messages, "tools": list(tools) if tools else None, "kwargs": dict(kwargs)}
        guard, tag = _free_characters(given, 2)
        broken = _map(given, self._breaker(guard))
        values = broken["kwargs"] | {"messages": broken["messages"], "tools": broken["tools"]}
        if template.names_xml_tools:
            values["xml_tools"] = broken["tools"]
        final = ""
        if continue_final_message:
            final = _final_text(messages)
            # the blank tells whether the template trims its messages
            values["messages"][-1]["content"] += tag + " "
        ends = add_generation_prompt and not continue_final_message
        text = self._render(template, values, ends)
        if continue_final_message:
            return Prompt(self._vocabulary.encode_prompt(_cut(text, tag), guard), final)
        tail = ""
        if ends and template.reasons:
            without = self._render(template, values, add_generation_prompt=False)
            tail = text[len(without) :] if text.startswith(without) else ""
        return Prompt(self._vocabulary.encode_prompt(text, guard), tail.replace(guard, ""))

    def _render(self, template: "_Compiled", values: Mapping[str, Any], add_generation_prompt: bool) -> str:
        sandbox = Sandbox(self._max_characters)
        values = {**values, "add_generation_prompt": add_generation_prompt}
        for role in ("bos_token", "eos_token"):
            values[role] = self._vocabulary.special.get(role, "")
        pieces: list[str] = []
        size = 0
        try:
            for piece in template.bound(sandbox).generate(values):
                pieces.append(piece)
                size += len(piece)
                if size > self._max_characters:
                    raise RequestError(
                        f"the prompt is longer than {self._max_characters} characters",
                        param="messages",
                        code="context_length_exceeded",
                    )
                sandbox.check_time()
        except RequestError:
            raise
        except Exception as error:  # a template can fail in any way, and none of them is the server's
            raise RequestError(f"the model's chat template refused the messages: {error}", param="messages") from error
        return "".join(pieces)


@dataclass(frozen=True, slots=True)
class _Compiled:
    source: str
    code: CodeType
    knows_tools: bool
    reasons: bool  # whether it writes anything about reasoning
    wants_short_ids: bool  # Mistral's: a call's id has nine letters and digits
    names_xml_tools: bool  # SmolLM3's name for tools

    @classmethod
    def of(cls, source: str) -> "_Compiled":
        if len(source) > MAX_TEMPLATE:
            raise ModelFileError(f"the chat template has {len(source)} characters, at most {MAX_TEMPLATE} are allowed")
        try:
            code = Sandbox(MAX_TEMPLATE).compile(source)
        except (TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ModelFileError(f"the chat template does not compile: {error}") from error
        short = re.search(r"id\s*\|\s*length\s*!=\s*9", source) is not None
        return cls(source, code, knows_tools(source), "think" in source, short, "xml_tools" in source)

    def bound(self, sandbox: Sandbox) -> Template:
        return Template.from_code(sandbox, self.code, sandbox.make_globals(None))


# Messages as a template wants them


def _readable(message: Mapping[str, Any]) -> Message:
    """Text in one piece, never None; the arguments of calls as objects where they are JSON."""
    changed = dict(message)
    content = changed.get("content")
    if content is None:
        changed["content"] = ""
    elif isinstance(content, list) and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
        changed["content"] = "".join(str(part.get("text", "")) for part in content)
    if calls := changed.get("tool_calls"):
        changed["tool_calls"] = [_readable_call(call) for call in calls]
    else:
        changed.pop("tool_calls", None)
    return changed


def _readable_call(call: Mapping[str, Any]) -> Message:
    function = dict(call.get("function") or {})
    if isinstance(arguments := function.get("arguments"), str):
        try:
            function["arguments"] = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            pass  # the model wrote it, and the template may put it back as it is
    return {**call, "function": function}


def _with_short_ids(message: Message) -> Message:
    changed = dict(message)
    if "tool_calls" in changed:
        changed["tool_calls"] = [{**call, "id": _short(call.get("id"))} for call in changed["tool_calls"]]
    if "tool_call_id" in changed:
        changed["tool_call_id"] = _short(changed["tool_call_id"])
    return changed


def _short(call_id: Any) -> str:
    text = str(call_id)
    return text if re.fullmatch("[A-Za-z0-9]{9}", text) else sha256(text.encode()).hexdigest()[:9]


def _final_text(messages: list[Message]) -> str:
    final = messages[-1].get("content") if messages else None
    if not isinstance(final, str) or not final or messages[-1].get("role") != "assistant":
        raise RequestError(
            "`continue_final_message` needs a last message of the assistant with text to continue", param="messages"
        )
    return final


def _cut(text: str, tag: str) -> str:
    """The rendered text up to the end of the message that ends with `tag` and a blank."""
    at = text.rfind(tag)
    if at < 0:
        raise RequestError("the model's chat template leaves out the message to continue", param="messages")
    return text[:at] if text.startswith(tag + " ", at) else text[:at].rstrip()


# Guards


def _free_characters(value: Any, count: int) -> list[str]:
    used = {c for text in _strings(value) for c in _PRIVATE.findall(text)}
    free = [chr(c) for c in _GUARDS[: len(used) + count] if chr(c) not in used]
    if len(free) < count:
        raise RequestError("the messages use every private-use character of a plane", param="messages")
    return free[:count]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (*_strings(key), *_strings(item))]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return []


def _map(value: Any, change: Callable[[str], str]) -> Any:
    """`change` applied to every string inside lists and dicts."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_map(key, change): _map(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map(item, change) for item in value]
    return value


def _breaker(control: list[str]) -> Callable[[str], Callable[[str], str]]:
    """guard -> text -> the text with the guard after the first character of each control token in it."""
    if not control:
        return lambda guard: lambda text: text
    # A lookahead matches overlapping occurrences too: breaking one must not complete another.
    inside = re.compile("|".join(f"{re.escape(c[0])}(?={re.escape(c[1:])})" for c in control))
    beginnings = {c[:size] for c in control for size in range(1, len(c))}
    longest = max(map(len, control))

    def for_guard(guard: str) -> Callable[[str], str]:
        def break_text(text: str) -> str:
            open_end = any(text[-size:] in beginnings for size in range(1, min(longest, len(text) + 1)))
            return inside.sub(lambda match: match[0] + guard, text) + (guard if open_end else "")

        return break_text

    return for_guard
