"""The chat completions wire format (https://platform.openai.com/docs/api-reference/chat)."""

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from local_engine.api.protocol import (
    MAX_LOGPROBS,
    Answer,
    GenerationBody,
    Options,
    TokenTexts,
    decode,
    options_of,
    refuse_unsupported,
    require_model,
    shown,
    within,
)
from local_engine.api.structured_output import grammar_of
from local_engine.errors import RequestError
from local_engine.request import CallArguments, CallStart, Content, Delta, Part, Reasoning, TokenLogprobs

MAX_MESSAGES = 4096
MAX_TOOLS = 128
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(msgspec.Struct):
    function: FunctionCall
    id: str | None = None
    type: str | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Function(msgspec.Struct, omit_defaults=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    type: str
    function: Function | None = None


class ChatBody(GenerationBody, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    # known, and refused unless they say what is done anyway
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None
    verbosity: Any = None
    echo: Any = None
    chat_template: Any = None
    documents: Any = None
    add_special_tokens: Any = None


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none",),
    "modalities": ([], ["text"]),
    "audio": (),
    "web_search_options": (),
    "verbosity": ("medium",),
    "echo": (False,),
    "chat_template": (),
    "documents": ([],),
    "add_special_tokens": (False,),
}


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A request that has passed every check that needs no tokenizer."""

    options: Options
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)  # those the model may call
    must_call: bool = False  # one of the tools, at least once
    parallel_calls: bool = True
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False


_decoder = msgspec.json.Decoder(ChatBody)


def parse_chat(body: bytes, model: str, default_temperature: float, vocab_size: int) -> ChatCall:
    """Raises `RequestError`, with `param` naming the field, on anything that cannot be served as asked."""
    chat = decode(_decoder, body)
    require_model(chat.model, model)
    refuse_unsupported(chat, NEUTRAL)
    tools = tools_of(chat.tools or [])
    tools, must_call = _choose(chat.tool_choice, tools)
    continue_final_message = bool(chat.continue_final_message)
    if chat.add_generation_prompt and continue_final_message:
        raise RequestError(
            "`add_generation_prompt` and `continue_final_message` exclude each other", param="continue_final_message"
        )
    options = options_of(
        chat,
        vocab_size=vocab_size,
        default_temperature=default_temperature,
        max_tokens_param="max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens",
        logprobs=_logprobs(chat),
        grammar=grammar_of(chat),
    )
    return ChatCall(
        options=options,
        messages=messages_of(chat.messages),
        tools=tools,
        must_call=must_call,
        # a function that is named is called once
        parallel_calls=chat.parallel_tool_calls is not False and not isinstance(chat.tool_choice, dict),
        template_kwargs=_template_kwargs(chat),
        add_generation_prompt=not continue_final_message and chat.add_generation_prompt is not False,
        continue_final_message=continue_final_message,
    )


def _logprobs(chat: ChatBody) -> int | None:
    if chat.top_logprobs and not chat.logprobs:
        raise RequestError("`top_logprobs` is only allowed with `logprobs: true`", param="top_logprobs")
    return int(within("top_logprobs", chat.top_logprobs, 0, MAX_LOGPROBS, 0)) if chat.logprobs else None


def _template_kwargs(chat: ChatBody) -> dict[str, Any]:
    """What the chat template is told beside the messages. A named field gives way to the same in the dictionary."""
    kwargs: dict[str, Any] = {}
    if chat.reasoning_effort is not None:
        if chat.reasoning_effort not in EFFORTS:
            raise RequestError(
                f"`reasoning_effort` is unknown\nhint: one of {', '.join(EFFORTS)}", param="reasoning_effort"
            )
        kwargs["reasoning_effort"] = chat.reasoning_effort
        if chat.reasoning_effort == "none":
            kwargs["enable_thinking"] = False
    if chat.enable_thinking is not None:
        kwargs["enable_thinking"] = chat.enable_thinking
    return kwargs | (chat.chat_template_kwargs or {})


def tools_of(tools: list[Tool]) -> list[dict[str, Any]]:
    """As chat templates expect them: plain JSON values."""
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"`tools` has {len(tools)} entries, at most {MAX_TOOLS} are allowed", param="tools")
    result: list[dict[str, Any]] = []
    for index, tool in enumerate(tools):
        at = f"tools[{index}]"
        if tool.type != "function" or tool.function is None:
            raise RequestError(
                f"tools of the type `{tool.type[:40]}` are not supported\nhint: `function`, with a `function`",
                param=f"{at}.type",
                code="unsupported_parameter",
            )
        if not _TOOL_NAME.fullmatch(tool.function.name):
            raise RequestError(
                "a tool's name must have 1 to 128 letters, digits, `_`, `-`, `.` or `:`", param=f"{at}.function.name"
            )
        result.append({"type": "function", "function": msgspec.to_builtins(tool.function)})
    return result


def _choose(choice: str | dict[str, Any] | None, tools: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """The tools that may be called, and whether one of them must be."""
    if choice == "none":
        return [], False
    if choice in (None, "auto"):
        return tools, False
    if not tools:
        raise RequestError("`tool_choice` is only allowed with `tools`", param="tool_choice")
    if choice == "required":
        return tools, True
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if name is None:
        raise RequestError(
            "`tool_choice` is unknown\nhint: `auto`, `none`, `required`, or an object that names a function",
            param="tool_choice",
        )
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        raise RequestError("`tool_choice` names a function that is not among the `tools`", param="tool_choice")
    return named[:1], True


def messages_of(messages: list[Message]) -> list[dict[str, Any]]:
    """As chat templates expect them: plain JSON values, content as one text."""
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise RequestError(f"`messages` has {len(messages)} entries, 1 to {MAX_MESSAGES} are allowed", param="messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Message, at: str) -> dict[str, Any]:
    if message.role == "function":
        raise RequestError("the role `function` is not supported", param=at, code="unsupported_parameter")
    if message.role not in ROLES:
        raise RequestError(f"the role `{message.role[:40]}` is unknown\nhint: one of {', '.join(ROLES)}", param=at)
    result: dict[str, Any] = {"role": ROLES[message.role]}
    calls = message.tool_calls if message.role == "assistant" else None
    if message.content is None and not calls:
        raise RequestError(f"`{at}.content` is missing", param=f"{at}.content")
    result["content"] = "" if message.content is None else _text(message.content, at)
    reasoning = message.reasoning_content or message.reasoning
    if reasoning and message.role == "assistant":
        result["reasoning_content"] = reasoning
    if calls:
        result["tool_calls"] = [_tool_call(call, index) for index, call in enumerate(calls)]
    if message.role == "tool":
        result |= {"tool_call_id": message.tool_call_id or ""} | ({"name": message.name} if message.name else {})
    return result


def _tool_call(call: ToolCall, index: int) -> dict[str, Any]:
    arguments = call.function.arguments
    function = {"name": call.function.name, "arguments": "{}" if arguments is None else arguments}
    return {"id": call.id or f"call_{index}", "type": "function", "function": function}


def _text(content: str | list[ContentPart], at: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        text = part.text if part.type == "text" else part.refusal if part.type == "refusal" else None
        if part.type not in ("text", "refusal"):
            raise RequestError(
                f"content parts of type `{part.type[:40]}` are not supported\nhint: this model reads text only",
                param=f"{at}.content[{index}]",
                code="unsupported_parameter",
            )
        if text is None:
            raise RequestError(f"a part of type `{part.type}` has no text", param=f"{at}.content[{index}].text")
        texts.append(text)
    return "\n".join(texts)


# Responses.


@dataclass(slots=True)
class _Reply:
    """One answer, put together again from its parts."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[tuple[CallStart, list[str]]] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def add(self, part: Part) -> None:
        match part:
            case Content(text):
                self.content.append(text)
            case Reasoning(text):
                self.reasoning.append(text)
            case CallStart():
                self.calls.append((part, []))
            case CallArguments(index, text):
                self.calls[index][1].append(text)


class ChatAnswer(Answer):
    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, model: str, fingerprint: str, call: ChatCall, texts: TokenTexts) -> None:
        super().__init__(model, fingerprint, call.options, texts)
        self._parallel_calls = call.parallel_calls
        self._with_logprobs = call.options.sampling.logprobs is not None
        self._replies: dict[int, _Reply] = {index: _Reply() for index in range(call.options.n)}
        self._unshown: dict[int, list[TokenLogprobs]] = {}  # of tokens whose text was held back

    def opening(self) -> list[dict[str, Any]]:
        return [self._choice_chunk(index, {"role": "assistant", "content": ""}) for index in range(self.options.n)]

    def chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        self.newest[index] = delta
        if delta.logprobs:
            self._unshown.setdefault(index, []).extend(delta.logprobs)
        result = [self._choice_chunk(index, _delta(part)) for part in self._parts(delta)]
        if delta.finish_reason is not None:
            result.append(self._choice_chunk(index, {}, delta))
        return result

    def add(self, index: int, delta: Delta) -> None:
        self.newest[index] = delta
        reply = self._replies[index]
        for part in self._parts(delta):
            reply.add(part)
        reply.logprobs += delta.logprobs

    def whole(self) -> dict[str, Any]:
        choices = [self._whole_choice(index, reply) for index, reply in self._replies.items()]
        return {**self._common, "object": self.kind, "choices": choices, "usage": self.usage()}

    def _parts(self, delta: Delta) -> list[Part]:
        """The delta's parts; pieces of one text that came together as one."""
        result: list[Part] = []
        for part in delta.parts:
            if not self._parallel_calls and isinstance(part, CallStart | CallArguments) and part.index:
                continue
            match result[-1] if result else None, part:
                case (Content(before), Content(text)):
                    result[-1] = Content(before + text)
                case (Reasoning(before), Reasoning(text)):
                    result[-1] = Reasoning(before + text)
                case (CallArguments(index, before), CallArguments(same, text)) if index == same:
                    result[-1] = CallArguments(index, before + text)
                case _:
                    result.append(part)
        return result

    def _whole_choice(self, index: int, reply: _Reply) -> dict[str, Any]:
        content = "".join(reply.content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not (reply.calls or reply.reasoning) else None,
            "refusal": None,
        }
        if reply.reasoning:
            message |= _reasoning("".join(reply.reasoning))
        if reply.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": "".join(arguments)}}
                for call, arguments in reply.calls
            ]
        return {
            "index": index,
            "message": message,
            "logprobs": {"content": self._logprobs(reply.logprobs)} if self._with_logprobs else None,
            "finish_reason": self.newest[index].finish_reason,
            "stop_reason": self.newest[index].stopped_by,
        }

    def _choice_chunk(self, index: int, delta: dict[str, Any], last: Delta | None = None) -> dict[str, Any]:
        unshown = self._unshown.pop(index, None) if delta or last else None
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": {"content": self._logprobs(unshown)} if unshown else None,
            "finish_reason": None,
        }
        if last is not None:
            choice |= {"finish_reason": last.finish_reason, "stop_reason": last.stopped_by}
        return self._chunk(choice)

    def _logprobs(self, logprobs: list[TokenLogprobs]) -> list[dict[str, Any]]:
        return [
            {
                **self._logprob(one.token, one.logprob),
                "top_logprobs": [self._logprob(token, logprob) for token, logprob in one.top],
            }
            for one in logprobs
        ]

    def _logprob(self, token: int, logprob: float) -> dict[str, Any]:
        text, raw = self.texts.of(token)
        return {"token": text, "logprob": shown(logprob), "bytes": raw}


def _reasoning(text: str) -> dict[str, str]:
    """Under both of the names that clients look for."""
    return {"reasoning_content": text, "reasoning": text}


def _delta(part: Part) -> dict[str, Any]:
    match part:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {**_reasoning(text)}
        case CallStart(index, id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
