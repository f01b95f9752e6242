"""Engines on the bundled model and on a tiny one written on the spot, and a server process: each made once."""

import os

# Before torch is imported: threads that spin would make the suite crawl wherever cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import pytest

from local_engine.config import EngineConfig
from local_engine.engine import Engine
from local_engine.files.checkpoint import open_checkpoint
from local_engine.request import Delta, Request, SamplingParams
from local_engine.text.vocabulary import Vocabulary, open_vocabulary

MODEL = "smollm2-135m-instruct"
TINY_CONTROL = ["<|end|>", "<|im_start|>", "<|im_end|>"]
TINY_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def engine(model_path: Path) -> Engine:
    """On the reference: what it says is compared token for token."""
    return Engine.load(model_path, EngineConfig(kernels="reference"))


@pytest.fixture(scope="session")
def vocabulary(model_path: Path) -> Vocabulary:
    with open_checkpoint(model_path) as checkpoint:
        return open_vocabulary(checkpoint, 49152)


@pytest.fixture(scope="session")
def greedy_reference() -> list[dict[str, Any]]:
    return json.loads((Path(__file__).parent / "greedy_reference.json").read_text())["rows"]


def byte_tokens() -> list[str]:
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in plain] + [chr(0x100 + n) for n in range(256 - len(plain))]


def write_tiny(path: Path, *, change: Callable[[gguf.GGUFWriter], None] | None = None, **metadata: Any) -> Path:
    """A random llama of two layers over bytes, with one tensor type of each kind; `metadata` overrides integers."""
    dim, heads, kv_heads, ffn, layers = 64, 4, 2, 96, 2
    tokens = [*TINY_CONTROL, *byte_tokens(), "th"]
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "llama")
    values = {"block_count": layers, "context_length": 256, "embedding_length": dim, "feed_forward_length": ffn}
    values |= {"attention.head_count": heads, "attention.head_count_kv": kv_heads} | metadata
    for key, value in values.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(TINY_CONTROL) + [1] * (len(tokens) - len(TINY_CONTROL)))
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(2)
    writer.add_chat_template(TINY_TEMPLATE)

    def add(name: str, rows: int, columns: int, kind: gguf.GGMLQuantizationType, size: float = 0.3) -> None:
        weight = rng.normal(0, size, (rows, columns)).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)

    kinds = gguf.GGMLQuantizationType
    width = dim // heads
    add("token_embd.weight", len(tokens), dim, kinds.Q8_0, 1.0)
    for layer in range(layers):
        add(f"blk.{layer}.attn_q.weight", dim, dim, kinds.Q4_1)
        add(f"blk.{layer}.attn_k.weight", kv_heads * width, dim, kinds.F16)
        add(f"blk.{layer}.attn_v.weight", kv_heads * width, dim, kinds.F32)
        add(f"blk.{layer}.attn_output.weight", dim, dim, kinds.Q4_1)
        add(f"blk.{layer}.ffn_gate.weight", ffn, dim, kinds.Q4_1)
        add(f"blk.{layer}.ffn_up.weight", ffn, dim, kinds.Q8_0)
        add(f"blk.{layer}.ffn_down.weight", dim, ffn, kinds.Q4_1)
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", rng.uniform(0.5, 1.5, dim).astype(np.float32))
    writer.add_tensor("output_norm.weight", rng.uniform(0.5, 1.5, dim).astype(np.float32))
    if change is not None:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def write_model() -> Callable[..., Path]:
    return write_tiny


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> Callable[..., Engine]:
    """A fresh engine on the tiny model, with the given `EngineConfig` fields."""
    return lambda **config: Engine.load(tiny_path, EngineConfig(**config))


class Run:
    """Drives an engine to the end and keeps what came out of each request, by its id."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.deltas: dict[int, list[Delta]] = {}
        self.tokens: dict[int, list[int]] = {}

    def add(
        self, request_id: int, prompt: list[int], max_tokens: int, *, of: dict[str, Any] | None = None, **sampling: Any
    ) -> None:
        """`of`: fields of the request; the rest are those of its sampling."""
        self.engine.add(Request(prompt, max_tokens, request_id, SamplingParams(**sampling), **(of or {})))

    def step(self) -> None:
        sequences = {g.request.id: s for s, g in self.engine._open.items()}
        for delta in self.engine.step():
            self.deltas.setdefault(delta.request_id, []).append(delta)
            sequence = sequences[delta.request_id]
            self.tokens[delta.request_id] = sequence.tokens[sequence.prompt_tokens :]

    def finish(self) -> "Run":
        while self.engine.has_work:
            self.step()
        self.engine.scheduler.blocks.check_integrity([])
        return self

    def text(self, request_id: int) -> str:
        return "".join(d.text for d in self.deltas[request_id])

    def last(self, request_id: int) -> Delta:
        return self.deltas[request_id][-1]


@pytest.fixture(scope="session")
def run() -> Callable[[Engine], Run]:
    return Run


class ServerProcess:
    """`python -m local_engine` on a unix socket, and a client for it."""

    def __init__(self, model: Path, name: str, *arguments: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="engine-")
        self.socket = Path(self.folder.name) / "engine.sock"
        self.log = Path(self.folder.name) / "log"
        command = [sys.executable, "-m", "local_engine", "--model", str(model), "--name", name]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*command, "--uds", str(self.socket), *arguments], stderr=log)
        self.health_seen: list[dict[str, Any]] = []

    def client(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.socket))
        return httpx.Client(transport=transport, base_url="http://engine", timeout=120)

    def async_client(self) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket))
        return httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=120)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 120
        with self.client() as client:
            while time.monotonic() < deadline:
                assert self.process.poll() is None, self.log.read_text()
                if self.socket.exists():
                    response = client.get("/healthz")
                    self.health_seen.append({"code": response.status_code, **response.json()})
                    if response.status_code == 200:
                        return
                time.sleep(0.05)
        raise AssertionError(f"not ready in time: {self.log.read_text()}")

    def close(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.folder.cleanup()


@pytest.fixture(scope="session")
def server(model_path: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(model_path, MODEL)
    try:
        process.wait_until_ready()
        yield process
    finally:
        process.close()


@pytest.fixture
def start_server() -> Iterator[Callable[..., ServerProcess]]:
    """Starts further servers, ended with the test."""
    started: list[ServerProcess] = []

    def start(*arguments: Any) -> ServerProcess:
        started.append(ServerProcess(*arguments))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.close()
