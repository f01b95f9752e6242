"""`python -m local_engine`: one model behind an OpenAI-compatible server, on a unix socket or a TCP port."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
import uvloop
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from local_engine.api.server import Server
from local_engine.async_engine import AsyncEngine
from local_engine.config import EngineConfig
from local_engine.errors import EngineError

if TYPE_CHECKING:
    from local_engine.engine import Engine
    from local_engine.memory_plan import MemoryPlan

logger = logging.getLogger("local_engine")

MAX_UNIX_PATH = 107  # bytes; the operating system's limit
LOG_LEVELS = ("debug", "info", "warning", "error")
POLL_SECONDS = 0.1  # how often the loading's progress is looked at
SWITCH_SECONDS = 0.0005  # after which a thread that wants to run gets its turn
BAD_OPTION, CANNOT_RUN = 2, 1  # exit statuses


def arguments() -> argparse.ArgumentParser:
    defaults = EngineConfig()
    parser = argparse.ArgumentParser(prog="python -m local_engine", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="GGUF file, or folder with config.json and safetensors")
    add("--name", help="name under which it is served (default: the file's name)")
    add("--uds", type=Path, help="unix socket to listen on; only this user may connect")
    add("--host", default="127.0.0.1")
    add("--port", type=int, help="TCP port to listen on (0: any free one)")
    add("--quant", choices=("none", "int8", "int4", "int3", "fp8", "mixed"), default=defaults.quant)
    add("--cache", type=Path, help="where quantised weights are kept between starts (default: nowhere)")
    add("--draft", default=defaults.draft, help="who proposes tokens ahead: off, ngram, or a model's path")
    add("--draft-tokens", type=int, default=defaults.draft_tokens, help="most tokens proposed at once")
    add("--context-length", type=int, help="tokens of prompt and answer (default: the model's)")
    add("--kernels", choices=("auto", "triton", "cpu", "reference"), default=defaults.kernels, help="what computes")
    add("--device", choices=("auto", "cpu", "cuda"), default=defaults.device, help="where it computes")
    add(
        "--dtype",
        choices=("auto", "fp32", "fp16", "bf16"),
        default=defaults.dtype,
        help="numbers that it computes with",
    )
    add("--kernel-tables", type=Path, help="Triton's launch configurations, as `hatchway kernels tune` writes them")
    add(
        "--kv-type",
        choices=("auto", "fp32", "fp16", "bf16", "int8"),
        default=defaults.kv_type,
        help="how keys and values are kept",
    )
    add("--kv-tokens", type=int, help="tokens of the whole KV cache (default: four full contexts, if they fit)")
    add("--no-prefix-cache", action="store_true", help="do not use what is kept of earlier prompts")
    add("--max-running", type=int, default=defaults.max_running, help="requests in one step")
    add("--max-waiting", type=int, default=defaults.max_waiting, help="requests queued behind")
    add("--step-ms", type=float, default=1000 * defaults.step_seconds, help="how long a step may take")
    add("--request-timeout", type=float, help="seconds for a request that names no deadline (default: any)")
    add("--threads", type=int, help="CPU threads (default: one for each core)")
    add("--processes", type=int, default=defaults.processes, help="processes that share the model")
    add("--experts", choices=("split", "spread"), default=defaults.experts, help="how they share its experts")
    add("--drain-seconds", type=float, default=defaults.drain_seconds)
    add("--log-level", choices=LOG_LEVELS, default="info")
    return parser


def configuration(options: argparse.Namespace) -> EngineConfig:
    """Raises `EngineError` when a number is out of its range."""
    for name in ("context_length", "kv_tokens", "threads", "step_ms", "request_timeout"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise EngineError(f"`--{name.replace('_', '-')}` is {value}, it must be more than 0")
    return EngineConfig(
        max_running=options.max_running,
        max_waiting=options.max_waiting,
        step_seconds=options.step_ms / 1000,
        context_length=options.context_length,
        kv_tokens=options.kv_tokens,
        kernels=options.kernels,
        device=options.device,
        dtype=options.dtype,
        kernel_tables=options.kernel_tables,
        kv_type=options.kv_type,
        prefix_cache=not options.no_prefix_cache,
        quant=options.quant,
        cache_folder=options.cache,
        draft=options.draft,
        draft_tokens=options.draft_tokens,
        processes=options.processes,
        experts=options.experts,
        threads=options.threads,
        request_timeout=options.request_timeout,
        drain_seconds=options.drain_seconds,
    )


@contextlib.contextmanager
def listening(options: argparse.Namespace) -> Iterator[socket.socket]:
    """The bound socket; a unix socket's file disappears with it. Raises `EngineError` when it cannot be had."""
    try:
        if options.uds is None:
            with socket.create_server((options.host, options.port), reuse_port=False) as tcp:
                yield tcp
            return
        if len(bytes(options.uds)) > MAX_UNIX_PATH:
            raise EngineError(f"the socket path `{options.uds}` is too long\nhint: at most {MAX_UNIX_PATH} bytes")
        _remove_stale(options.uds)
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(str(options.uds))
            options.uds.chmod(0o600)
            unix.listen(1024)
            try:
                yield unix
            finally:
                options.uds.unlink(missing_ok=True)
    except (OSError, OverflowError) as error:  # a port beyond 65535 overflows
        raise EngineError(f"cannot listen on `{options.uds or f'{options.host}:{options.port}'}`: {error}") from error


def _remove_stale(path: Path) -> None:
    """Removes a socket file that nobody listens on any more."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise EngineError(f"another process listens on `{path}`")
    path.unlink()


def loader(path: Path, config: EngineConfig) -> Callable[[Callable[[float], None]], "Engine"]:
    def load(progress: Callable[[float], None]) -> "Engine":
        from local_engine.engine import Engine  # torch comes with it: here, the server is listening already

        return Engine.load(path, config, progress, _show_plan)

    return load


def _show_plan(plan: "MemoryPlan") -> None:
    for line in plan.table().splitlines():
        logger.info("memory  %s", line)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handling, which would raise the signal again afterwards; `serve` does it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(options: argparse.Namespace, config: EngineConfig, listener: socket.socket, console: Console) -> int:
    """Serves until a stop signal (0) or until the engine cannot run (1)."""
    engine = AsyncEngine(loader(options.model, config), config)
    name = options.name or options.model.stem
    app = Server(engine, name, on_failure=lambda: setattr(server, "should_exit", True))
    settings = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(config.drain_seconds),
    )
    server = _Uvicorn(settings)
    loop = asyncio.get_running_loop()
    for stop in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(stop, setattr, server, "should_exit", True)
    announcing = asyncio.create_task(announce(engine, address(listener), console))
    try:
        await server.serve(sockets=[listener])
    finally:
        announcing.cancel()
        await asyncio.gather(announcing, return_exceptions=True)
    return CANNOT_RUN if engine.failure is not None else 0


async def announce(engine: AsyncEngine, url: str, console: Console) -> None:
    """Shows how far the loading is, on a terminal as a bar, and says on standard output when requests are taken."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("loading", total=1.0)
        quarter = 0
        while engine.state == "loading":
            bar.update(task, completed=engine.progress)
            if not console.is_terminal and int(4 * engine.progress) > quarter:
                quarter = int(4 * engine.progress)
                logger.info("loading: %d %%", 25 * quarter)
            await asyncio.sleep(POLL_SECONDS)
    if engine.state == "ready":
        if not console.is_terminal and quarter < 4:
            logger.info("loading: 100 %%")
        sys.stdout.write(f"engine ready {url}\n")
        sys.stdout.flush()


def address(listener: socket.socket) -> str:
    where: Any = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{where}"
    host = f"[{where[0]}]" if ":" in where[0] else where[0]
    return f"http://{host}:{where[1]}"


def _log(level: str, console: Console) -> None:
    """Plain lines, or, on a terminal, lines that leave the progress bar in one piece."""
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S")
        logging.basicConfig(level=level, format="%(message)s", handlers=[handler])
    else:
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s engine %(name)s: %(message)s")


def main() -> int:
    # Read by the OpenMP runtime when torch is imported. Its threads would otherwise spin while they wait for each
    # other: on cores that a gateway shares, a step can then take ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # noqa: TID251 - set for a library, not read as a setting
    # The engine's thread comes back from a kernel every few milliseconds; the event loop is not to keep it waiting for
    # as long as a step takes.
    sys.setswitchinterval(SWITCH_SECONDS)
    parser = arguments()
    options = parser.parse_args()
    if (options.uds is None) == (options.port is None):
        parser.error("give either --uds or --port")
    console = Console(stderr=True)
    _log(options.log_level.upper(), console)
    try:
        config = configuration(options)
    except EngineError as error:
        logger.error("%s", error)
        return BAD_OPTION
    try:
        with listening(options) as listener:
            return uvloop.run(serve(options, config, listener, console))
    except EngineError as error:
        logger.error("%s", error)
        return CANNOT_RUN


if __name__ == "__main__":
    sys.exit(main())
