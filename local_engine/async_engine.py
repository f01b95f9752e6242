"""The engine's asyncio face: one thread loads the model and runs the steps, streams carry the news to their requests.

The thread alone touches the engine. The event loop posts commands (add, cancel, stop), which the thread takes up
before each step, and gets one call back for each step with the news of all its requests. Nothing here imports torch:
the event loop answers health checks while the thread is still loading it.
"""

import asyncio
import gc
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from local_engine.config import EngineConfig
from local_engine.errors import EngineError, GenerationError, QueueFull
from local_engine.metrics import Timings
from local_engine.request import Delta, Request, Stats

if TYPE_CHECKING:
    from local_engine.engine import Engine
    from local_engine.text.template import Prompt

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed", "stopped"]
STALLED_SECONDS = 60.0  # a step that takes longer is not going to end: the process is better started again

Load = Callable[[Callable[[float], None]], "Engine"]  # given a progress callback, returns the loaded engine


class _StopLoading(Exception):
    """Raised out of the progress callback when the engine is closed before it is ready."""


class Stream:
    """One request's news, in order; an async iterator that ends after the last delta, or early when cancelled.

    Use it as a context manager: leaving the block, in whatever way, ends the request.
    """

    def __init__(self, owner: "AsyncEngine", request_id: int) -> None:
        self.request_id = request_id
        self._owner = owner
        self._deltas: asyncio.Queue[Delta | None] = asyncio.Queue()  # bounded by the request's max_tokens

    def cancel(self) -> None:
        """Ends the request before the engine's next step. After its last delta this does nothing."""
        self._owner.cancel(self.request_id)

    def put(self, delta: Delta | None) -> None:
        self._deltas.put_nowait(delta)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while (delta := await self._deltas.get()) is not None:
            yield delta
            if delta.is_last:
                return

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class AsyncEngine:
    """Start it inside a running event loop with `start`; `close` ends the thread. All methods belong to that loop."""

    def __init__(self, load: Load, config: EngineConfig) -> None:
        self.config = config
        self.state: State = "loading"
        self.progress = 0.0  # share of the loading done
        self.failure: Exception | None = None
        self._load = load
        self._engine: Engine | None = None
        self._streams: dict[int, Stream] = {}
        self._next_id = 0
        self._commands: queue.SimpleQueue[Callable[[Engine], None] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._settled = asyncio.Event()  # loading ended, well or not
        self._failed = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._step_began: float | None = None  # written by the thread

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def loaded(self) -> None:
        """Waits until the engine is ready. Raises what went wrong when it never will be."""
        await self._settled.wait()
        if self.failure is not None:
            raise self.failure

    async def failed(self) -> NoReturn:
        """Waits, possibly for ever, until the engine cannot run any more; raises why."""
        await self._failed.wait()
        assert self.failure is not None  # set with the event
        raise self.failure

    @property
    def engine(self) -> "Engine":
        """The loaded engine: read its constants only. Raises `EngineError` unless `state` is `ready`."""
        if self._engine is None or self.state != "ready":
            raise EngineError(f"the engine is {self.state}")
        return self._engine

    @property
    def stats(self) -> Stats:
        return self._engine.stats if self._engine is not None else Stats()

    @property
    def timings(self) -> Timings:
        return self._engine.timings if self._engine is not None else Timings()

    @property
    def is_stalled(self) -> bool:
        """Whether the step that is running began so long ago that it will hardly end."""
        began = self._step_began
        return began is not None and time.monotonic() - began > STALLED_SECONDS

    async def encode_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> "Prompt":
        """Messages to a prompt, off the event loop. Raises `RequestError`."""
        return await asyncio.to_thread(
            self.engine.template.encode,
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            kwargs=kwargs or {},
        )

    def require_room(self, places: int = 1) -> None:
        """Raises `QueueFull` unless that many places are free.

        Open streams are counted here, before any of them reaches the thread, so the scheduler never refuses one.
        """
        if len(self._streams) + places > self.config.max_running + self.config.max_waiting:
            raise QueueFull(len(self._streams), self.stats.retry_after)

    def submit(self, request: Request) -> Stream:
        """Queues a request under an id of its own. Raises `QueueFull`, and `EngineError` unless ready."""
        engine, size = self.engine, len(request.prompt) + request.max_tokens
        if size > engine.context_length or not request.prompt or request.max_tokens < 0:
            raise EngineError(
                f"{len(request.prompt)} + {request.max_tokens} tokens do not fit the context {engine.context_length}"
            )
        self.require_room()
        request = replace(request, id=self._next_id)
        self._next_id += 1
        stream = self._streams[request.id] = Stream(self, request.id)
        self._commands.put(lambda engine: self._add(engine, request))
        return stream

    def cancel(self, request_id: int) -> None:
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            stream.put(None)
            self._commands.put(lambda engine: engine.cancel(request_id))

    async def close(self) -> None:
        """Ends every open stream and the thread; waits for the step that is running."""
        for request_id in list(self._streams):
            self.cancel(request_id)
        self._stopping.set()
        self._commands.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        if self.state != "failed":
            self.state = "stopped"

    # On the event loop, called from the thread.

    def _become(self, state: State, failure: Exception | None = None) -> None:
        self.state = state
        self.failure = failure
        self._settled.set()
        if failure is not None:
            self._failed.set()
            error = GenerationError("the engine stopped")
            for request_id, stream in self._streams.items():
                stream.put(Delta(request_id, (), 0, 0, error=error))
            self._streams.clear()

    def _deliver(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            stream = self._streams.get(delta.request_id)  # absent: cancelled while the step ran
            if stream is not None:
                stream.put(delta)
                if delta.is_last:
                    del self._streams[delta.request_id]

    # On the thread.

    def _add(self, engine: "Engine", request: Request) -> None:
        try:
            engine.add(request)
        except Exception as error:  # noqa: BLE001 - what is wrong with one request must not end the thread
            failure = GenerationError(str(error))
            self._call(self._deliver, [Delta(request.id, (), len(request.prompt), 0, error=failure)])

    def _lose(self, error: EngineError) -> None:
        """Another process of the engine died while this one was idle. Called from any thread."""

        def fail(_: "Engine") -> None:
            raise error

        self._commands.put(fail)

    def _report(self, share: float) -> None:
        if self._stopping.is_set():
            raise _StopLoading
        self.progress = share

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None  # set before the thread starts
        self._loop.call_soon_threadsafe(function, *arguments)

    def _work(self) -> None:
        try:
            gc.disable()  # next to nothing of what is loaded is garbage
            try:
                engine = self._engine = self._load(self._report)
            finally:
                gc.enable()
            gc.freeze()  # nor will it be: looking through it takes as long as many steps
            engine.watch(self._lose)
            self._call(self._become, "ready")
            while self._take_commands(engine):
                self._step_began = time.monotonic()
                deltas = engine.step()
                self._step_began = None
                if deltas:
                    self._call(self._deliver, deltas)
        except _StopLoading:
            pass
        except Exception as error:
            # the thread's last resort: whatever it was, nobody may wait for ever
            if not isinstance(error, EngineError):
                logger.exception("the engine stopped")
            self._call(self._become, "failed", error)
        finally:
            if self._engine is not None:
                self._engine.close()

    def _take_commands(self, engine: "Engine") -> bool:
        """Runs what was posted, waiting for it while there is nothing else to do; False: stop."""
        while True:
            try:
                command = self._commands.get(block=not engine.has_work)
            except queue.Empty:
                return True
            if command is None:
                return False
            command(engine)
