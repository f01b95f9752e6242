"""The chat template: messages to prompt ids, without letting a message forge control tokens.

A template writes control tokens as text (`<|im_end|>`), and a message may contain the very same text. Before rendering,
every control token inside a message is broken by a guard character, one that occurs nowhere in the messages. After
rendering, only unbroken control tokens count; then the guards are dropped and the text between is encoded as plain
text. So a forged `<|im_end|>` reaches the model as the characters the user typed, while a prompt without one is
rendered and encoded exactly as if nothing had been done. A message that *ends* in the beginning of a control token is
guarded too, in case a template joins it to another message.
"""

import re
from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from local_engine.errors import ModelFileError, RequestError
from local_engine.text import Vocabulary

MAX_TEMPLATE = 1 << 18  # characters of a template
# Characters for private use: rare in text, so the first is nearly always free.
_GUARDS = range(0xF0000, 0xFFFFE)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Templates come out of downloaded files: no attribute tricks (by jinja), no text bombs in one operator (here)."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or not all(isinstance(v, (int, float)) for v in (left, right)):
            raise TemplateError(f"`{operator}` is allowed between numbers only, and `**` not at all")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """A compiled template bound to the vocabulary its control tokens belong to."""

    def __init__(self, source: str, vocabulary: Vocabulary, max_characters: int) -> None:
        """`max_characters` bounds what one rendering may produce. Raises `ModelFileError`."""
        if len(source) > MAX_TEMPLATE:
            raise ModelFileError(f"the chat template has {len(source)} characters, at most {MAX_TEMPLATE} are allowed")
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise ModelFileError(f"the chat template does not compile: {error}") from error
        self._vocabulary = vocabulary
        self._max_characters = max_characters
        self._breaker = _breaker(list(vocabulary.control))

    def encode(self, messages: list[dict[str, Any]]) -> list[int]:
        """Messages (`role`, `content`, ...) to the ids of a prompt that asks for the assistant's turn.

        Raises `RequestError` when the template refuses the messages or the prompt grows past the bound.
        """
        used = {c for text in _strings(messages) for c in text}
        guard = next((chr(c) for c in _GUARDS if chr(c) not in used), None)
        if guard is None:
            raise RequestError("the messages use every private-use character of a plane", param="messages")
        return self._vocabulary.encode_prompt(self._render(_map(messages, self._breaker(guard))), guard)

    def _render(self, messages: Any) -> str:
        vocabulary = self._vocabulary
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                messages=messages,
                add_generation_prompt=True,
                bos_token=vocabulary.name(vocabulary.bos),
                eos_token=vocabulary.name(vocabulary.eos),
            ):
                pieces.append(piece)
                size += len(piece)
                if size > self._max_characters:
                    raise RequestError(
                        f"the prompt is longer than {self._max_characters} characters",
                        param="messages",
                        code="context_length_exceeded",
                    )
        except RequestError:
            raise
        except Exception as error:  # a template can fail in any way, and none of them is the server's
            raise RequestError(f"the model's chat template refused the messages: {error}", param="messages") from error
        return "".join(pieces)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return []


def _map(value: Any, change: Callable[[str], str]) -> Any:
    """`change` applied to every string inside lists and values of dicts."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
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
