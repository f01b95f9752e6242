"""The engine as an OpenAI-compatible server: a plain ASGI application.

    POST /v1/chat/completions    POST /v1/completions    POST /v1/embeddings    GET /v1/models[/ID]
    POST /tokenize    POST /detokenize    GET /healthz    GET /metrics

It answers `/healthz` with 503 and the progress from the first moment, 200 once the model is loaded. Whatever is wrong
with a request is said before it is queued. The response begins with the first news from the model, so that a request
which fails at once still gets an error status; a failure later in a stream is an `error` event without `[DONE]`. When
the client goes away its requests leave the engine before the next step.

A request that does not say otherwise is answered greedily (`EngineConfig.default_temperature`), with at most the rest
of the context or `default_max_tokens` tokens, whichever is less. Three headers are read: `x-hatchway-tenant` (prefixes
are shared within a tenant only), `x-hatchway-timeout-ms` (a deadline) and `x-request-id` (logged). There is no
authentication: a unix socket is open to its owner only, and a TCP port is meant for one machine or a closed network.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from local_engine.api.arrival import MAX_HEADER, Arrival
from local_engine.api.choices import cancelling_on_disconnect, merged, send_stream, send_whole
from local_engine.api.http import ClientGone, Message, Receive, Send, read_body, send_body, send_json
from local_engine.api.protocol import Answer, Options, TokenTexts, answer_length, error_body, failure_body
from local_engine.api.protocol_chat import ChatAnswer, ChatCall, parse_chat
from local_engine.api.protocol_completions import (
    DEFAULT_MAX_TOKENS,
    CompletionAnswer,
    CompletionCall,
    Prompt,
    parse_completion,
)
from local_engine.api.protocol_embeddings import embeddings_body, parse_embedding
from local_engine.api.protocol_tokens import TokenizeCall, parse_detokenize, parse_tokenize, tokens_body
from local_engine.async_engine import AsyncEngine
from local_engine.errors import EngineError, GenerationError, RequestError
from local_engine.metrics import exposition
from local_engine.request import Delta, Request
from local_engine.text.reply_grammar import reply_grammar

if TYPE_CHECKING:
    from local_engine.engine import Engine
    from local_engine.text.template import Prompt as RenderedPrompt

logger = logging.getLogger(__name__)

Handler = Callable[["Arrival", Receive, Send], Awaitable[None]]


class Server:
    """The ASGI application. It starts the engine with its lifespan and closes it at the end.

    `on_failure` is called when the model cannot be loaded or the engine's thread dies.
    """

    def __init__(self, engine: AsyncEngine, model: str, on_failure: Callable[[], None] = lambda: None) -> None:
        self.engine = engine
        self.model = model
        self.created = int(datetime.now(UTC).timestamp())
        self._on_failure = on_failure
        self._routes: dict[str, dict[str, Handler]] = {
            "/v1/chat/completions": {"POST": self.chat},
            "/v1/completions": {"POST": self.complete},
            "/v1/embeddings": {"POST": self.embed},
            "/v1/models": {"GET": self.models},
            "/tokenize": {"POST": self.tokenize},
            "/detokenize": {"POST": self.detokenize},
            "/healthz": {"GET": self.health},
            "/metrics": {"GET": self.metrics},
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._respond(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()  # startup
        self.engine.start()
        watch = asyncio.create_task(self._watch())
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()  # shutdown
        finally:
            watch.cancel()
            await self.engine.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _watch(self) -> None:
        started = time.perf_counter()
        try:
            await self.engine.loaded()
            logger.info("model `%s` loaded in %.1f s", self.model, time.perf_counter() - started)
            await self.engine.failed()
        except Exception as error:  # noqa: BLE001 - a bug in the engine's thread ends here too; it was logged there
            logger.error("the engine cannot run: %s", error)
            self._on_failure()

    async def _respond(self, scope: Message, receive: Receive, send: Send) -> None:
        arrival = Arrival.of(scope)
        try:
            handler = self._handler(arrival.path, scope["method"])
            await handler(arrival, receive, send)
        except ClientGone:
            logger.info("client left request_id=%s", arrival.request_id)
        except RequestError as error:
            logger.info(
                "refused request_id=%s path=%s status=%d code=%s param=%s",
                *(arrival.request_id, arrival.path[:MAX_HEADER], error.status, error.code, error.param),
            )
            headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
            await send_json(send, error.status, failure_body(error), headers)
        except GenerationError as error:
            await send_json(send, error.status, failure_body(error))
        except EngineError as error:  # the engine stopped just now
            await send_json(send, 500, error_body(str(error), "server_error", code=GenerationError.code))

    def _handler(self, path: str, method: str) -> Handler:
        methods = self._routes.get(path)
        if methods is None and path.startswith("/v1/models/"):
            methods = {"GET": self.one_model}
        if methods is None:
            raise RequestError(f"there is nothing at `{path[:MAX_HEADER]}`", code="not_found", status=404)
        handler = methods.get(method)
        if handler is None:
            raise RequestError(f"`{path[:MAX_HEADER]}` takes {', '.join(methods)}", code="bad_method", status=405)
        return handler

    def _ready(self) -> "Engine":
        if self.engine.state != "ready":
            raise NotReady(f"the model is not ready: {self.engine.state}")
        return self.engine.engine

    def _fingerprint(self, engine: "Engine") -> str:
        """Of what an answer depends on beside the request: while it is the same, a seed gives the same answer."""
        config = engine.config
        facts = f"{self.model} {config.quant} {config.kernels} {config.kv_type}"
        return "hw_" + hashlib.sha256(facts.encode()).hexdigest()[:12]

    def _require_room(self, places: int, param: str) -> None:
        """Raises `RequestError` when so many answers cannot run now, or never could."""
        config = self.engine.config
        if places > config.max_running + config.max_waiting:
            raise RequestError(
                f"{places} answers are asked for at once, this engine takes {config.max_running + config.max_waiting}",
                param=param,
            )
        self.engine.require_room(places)

    async def _encode(self, call: ChatCall | TokenizeCall) -> "RenderedPrompt":
        return await self.engine.encode_chat(
            call.messages,
            tools=call.tools or None,
            add_generation_prompt=call.add_generation_prompt,
            continue_final_message=call.continue_final_message,
            kwargs=call.template_kwargs,
        )

    # Endpoints.

    async def health(self, arrival: Arrival, receive: Receive, send: Send) -> None:
        engine = self.engine
        status = "stalled" if engine.is_stalled else engine.state
        body: dict[str, Any] = {"status": status, "model": self.model}
        if engine.state == "loading":
            body["progress"] = round(engine.progress, 3)
        if engine.failure is not None:
            body["error"] = str(engine.failure)
        await send_json(send, 200 if status == "ready" else 503, body)

    def _model(self) -> dict[str, Any]:
        length = self.engine.engine.context_length if self.engine.state == "ready" else None
        entry = {"id": self.model, "object": "model", "created": self.created, "owned_by": "local", "root": self.model}
        return {**entry, "context_length": length, "max_model_len": length}

    async def models(self, arrival: Arrival, receive: Receive, send: Send) -> None:
        await send_json(send, 200, {"object": "list", "data": [self._model()]})

    async def one_model(self, arrival: Arrival, receive: Receive, send: Send) -> None:
        asked = arrival.path.removeprefix("/v1/models/")
        if asked != self.model:
            raise RequestError(
                f"the model `{asked[:MAX_HEADER]}` does not exist here",
                param="model",
                code="model_not_found",
                status=404,
            )
        await send_json(send, 200, self._model())

    async def metrics(self, arrival: Arrival, receive: Receive, send: Send) -> None:
        config = self.engine.engine.config if self.engine.state == "ready" else None
        text = exposition(self.engine.stats, self.engine.timings, config)
        await send_body(send, 200, "text/plain; version=0.0.4; charset=utf-8", text.encode())

    async def tokenize(self, arrival: Arrival, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        engine = self._ready()
        call = parse_tokenize(body, self.model)
        if call.prompt is None:
            prompt = await self._encode(call)
            ids = prompt.ids
        else:
            encode = engine.vocabulary.encode_prompt if call.add_special_tokens else engine.vocabulary.encode
            ids = await asyncio.to_thread(encode, call.prompt)
        texts = [engine.vocabulary.token_text(token) for token in ids] if call.with_texts else None
        await send_json(send, 200, tokens_body(ids, engine.context_length, texts))

    async def detokenize(self, arrival: Arrival, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        vocabulary = self._ready().vocabulary
        tokens = parse_detokenize(body, self.model, vocabulary.size)
        await send_json(send, 200, {"prompt": vocabulary.decode(tokens)})

    async def chat(self, arrival: Arrival, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        engine, config = self._ready(), self.engine.config
        call = parse_chat(body, self.model, config.default_temperature, engine.vocabulary.size)
        self._require_room(call.options.n, "n")  # asked again by `submit`; here it spares a full engine the tokenizing
        prompt = await self._encode(call)
        context, default = engine.context_length, config.default_max_tokens
        max_tokens = answer_length(call.options, len(prompt.ids), context, default, "messages")
        reply_format = engine.reply_format.for_request(tools=call.tools or None, tail=prompt.tail)
        spec = reply_grammar(call, reply_format, engine.vocabulary)
        requests = call.options.requests(
            prompt.ids,
            max_tokens,
            reply_format=reply_format,
            grammar=None if spec is None else await engine.grammars.compile(spec),
            salt=arrival.salt(call.options.cache_salt),
            deadline=arrival.deadline,
        )
        answer = ChatAnswer(self.model, self._fingerprint(engine), call, TokenTexts(engine.vocabulary))
        await self._generate(arrival, receive, send, call.options, answer, requests)

    async def complete(self, arrival: Arrival, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        engine = self._ready()
        call = parse_completion(body, self.model, self.engine.config.default_temperature, engine.vocabulary.size)
        self._require_room(len(call.prompts) * call.options.n, "prompt")
        prompts = await asyncio.to_thread(_read_prompts, engine, call)
        spec = call.options.grammar
        shared = {
            "grammar": None if spec is None else await engine.grammars.compile(spec),
            "salt": arrival.salt(call.options.cache_salt),
            "deadline": arrival.deadline,
            "prompt_logprobs": call.prompt_logprobs,
        }
        requests: list[Request] = []
        for _, ids in prompts:
            length = answer_length(call.options, len(ids), engine.context_length, DEFAULT_MAX_TOKENS, "prompt")
            requests += call.options.requests(ids, length, **shared)
        answer = CompletionAnswer(self.model, self._fingerprint(engine), call, TokenTexts(engine.vocabulary), prompts)
        await self._generate(arrival, receive, send, call.options, answer, requests)

    async def embed(self, arrival: Arrival, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        engine = self._ready()
        call = parse_embedding(body, self.model, engine.vocabulary.size)
        self.engine.require_room()
        inputs = await asyncio.to_thread(lambda: [_read_input(engine, item) for item in call.inputs])
        salt, deadline = arrival.salt(""), arrival.deadline
        requests = [Request(ids, 0, embed=True, salt=salt, deadline=deadline) for ids in inputs]
        # a few at a time: many texts are one call's, and must not take every place in the queue
        window = self.engine.config.max_running
        deltas: list[Delta] = []
        for start in range(0, len(requests), window):
            found: dict[int, Delta] = {}
            with ExitStack() as stack:
                streams = [stack.enter_context(self.engine.submit(one)) for one in requests[start : start + window]]
                async with cancelling_on_disconnect(receive, streams), aclosing(merged(streams)) as news:
                    async for index, delta in news:
                        if delta.error is not None:
                            raise delta.error
                        found[index] = delta
            if not all(delta.is_last for delta in found.values()) or len(found) < len(streams):
                raise ClientGone
            deltas += [found[index] for index in range(len(streams))]
        await send_json(send, 200, embeddings_body(self.model, call, deltas))
        logger.info(
            "embeddings request_id=%s inputs=%d prompt_tokens=%d duration_s=%.3f",
            *(arrival.request_id, len(inputs), sum(map(len, inputs)), time.monotonic() - arrival.time),
        )

    async def _generate(
        self, arrival: Arrival, receive: Receive, send: Send, options: Options, answer: Answer, requests: list[Request]
    ) -> None:
        """Runs the requests and answers with what comes of them, as a stream or whole."""
        outcome = "failed"
        try:
            with ExitStack() as stack:
                streams = [stack.enter_context(self.engine.submit(request)) for request in requests]
                async with cancelling_on_disconnect(receive, streams), aclosing(merged(streams)) as news:
                    respond = send_stream if options.stream else send_whole
                    outcome = await respond(news, len(streams), answer, send)
        except GenerationError as error:
            outcome = error.code
            raise
        finally:
            usage = answer.usage()
            logger.info(
                "%s request_id=%s prompt_tokens=%d cached_tokens=%d completion_tokens=%d finish=%s duration_s=%.3f",
                answer.id,
                arrival.request_id,
                usage["prompt_tokens"],
                usage["prompt_tokens_details"]["cached_tokens"],
                usage["completion_tokens"],
                outcome,
                time.monotonic() - arrival.time,
            )


def _read_prompts(engine: "Engine", call: CompletionCall) -> list[tuple[str, list[int]]]:
    """Text (where it is echoed) and ids of each prompt. Control tokens written in full count: the prompt is raw."""
    prompts = []
    for prompt in call.prompts:
        ids = engine.vocabulary.encode_prompt(prompt) if isinstance(prompt, str) else prompt
        if not ids:
            raise RequestError("the prompt has no tokens", param="prompt")
        text = prompt if isinstance(prompt, str) else engine.vocabulary.decode(prompt) if call.echo else ""
        prompts.append((text, ids))
    return prompts


def _read_input(engine: "Engine", item: Prompt) -> list[int]:
    """The ids of a text to embed: a document, in which control tokens are mere characters."""
    vocabulary = engine.vocabulary
    if not isinstance(item, str):
        ids = item
    else:
        begin = [vocabulary.bos] if vocabulary.add_bos and vocabulary.bos is not None else []
        ids = begin + vocabulary.encode(item)
    if not 1 <= len(ids) <= engine.context_length:
        raise RequestError(
            f"an input has {len(ids)} tokens, but the context length is {engine.context_length} tokens",
            param="input",
            code="context_length_exceeded",
        )
    return ids


class NotReady(RequestError):
    """The model is still being loaded, or cannot be."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="model_loading", status=503, kind="server_error", retry_after=1)
