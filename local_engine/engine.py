"""The engine itself: requests in, tokens and text out, one step at a time. Synchronous; single-threaded by design.

`Engine.step` is the whole life of a token: schedule, run, sample, advance. `async_engine.py` drives it from a thread.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from local_engine.config import EngineConfig, ModelConfig
from local_engine.errors import GenerationError, RequestError
from local_engine.gguf import GGUFFile
from local_engine.kv_cache import BlockAllocator
from local_engine.model import Model
from local_engine.request import Delta, FinishReason, Request, Stats
from local_engine.runner import Runner
from local_engine.sampler import Sampler
from local_engine.scheduler import Chunk, Scheduler
from local_engine.sequence import Sequence
from local_engine.template import ChatTemplate
from local_engine.text import Detokeniser, StopScanner, Vocabulary
from local_engine.weights import load_weights

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Generation:
    """One request while it runs: its tokens, its random numbers, its text."""

    id: int
    sequence: Sequence
    sampler: Sampler
    detokeniser: Detokeniser
    stops: StopScanner

    def delta(self, text: str, reason: FinishReason | None = None, error: GenerationError | None = None) -> Delta:
        sequence = self.sequence
        return Delta(self.id, text, sequence.prompt_tokens, sequence.completion_tokens, reason, error)


class Engine:
    """Model, tokenizer and scheduler of one loaded model. Not thread-safe: one thread owns it, except `encode`."""

    def __init__(self, model: Model, vocabulary: Vocabulary, template: ChatTemplate, config: EngineConfig) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self.template = template
        self.context_length = config.sequence_limit(model.config)
        self.runner = Runner(model, config)
        self.scheduler = Scheduler(
            BlockAllocator(self.runner.num_blocks, config.block_size),
            max_running=config.max_running,
            max_waiting=config.max_waiting,
            token_budget=config.token_budget,
        )
        self.stats = Stats()
        self._open: dict[Sequence, Generation] = {}

    @classmethod
    def load(cls, path: Path, config: EngineConfig, progress: Callable[[float], None] = lambda share: None) -> "Engine":
        """Reads a GGUF file and runs one tiny step, so that the first request finds warm code.

        `progress` is called with the share of the work done. Raises `ModelFileError` and `EngineError`.
        """
        torch.set_num_threads(config.num_threads)  # holds for the calling thread: the one that will run the steps
        with GGUFFile(path) as file:
            model_config = ModelConfig.from_gguf(file)
            limit = config.sequence_limit(model_config)
            vocabulary = Vocabulary(file, model_config.vocab_size)
            # a rendering longer than this cannot fit the context, whatever its tokens
            longest = limit * vocabulary.longest_token
            template = ChatTemplate(file.string("tokenizer.chat_template"), vocabulary, longest)
            model = Model(model_config, load_weights(file, model_config, progress), limit)
        engine = cls(model, vocabulary, template, config)
        engine.warm_up()
        return engine

    def warm_up(self) -> None:
        """One prompt token and one decoded token, through the same path as any request, with nothing left behind."""
        self.add(Request(id=-1, prompt=[0], max_tokens=2))
        while self.has_work:
            self.step()
        self.stats = Stats()

    @property
    def has_work(self) -> bool:
        return bool(self._open)

    def encode(self, messages: list[dict[str, object]]) -> list[int]:
        """Messages to prompt ids. Safe in any thread. Raises `RequestError` when they do not fit the context."""
        return self.template.encode(messages)

    def add(self, request: Request) -> None:
        """Queues a request. Raises `QueueFull`, and `RequestError` when it cannot fit the context."""
        if not request.prompt or len(request.prompt) + request.max_tokens > self.context_length:
            raise RequestError(f"{len(request.prompt)} + {request.max_tokens} tokens, context {self.context_length}")
        sequence = Sequence.of(request.prompt, request.max_tokens)
        self.scheduler.add(sequence)
        self._open[sequence] = Generation(
            id=request.id,
            sequence=sequence,
            sampler=Sampler(request.sampling),
            detokeniser=Detokeniser(self.vocabulary),
            stops=StopScanner(request.stop),
        )
        self._count()

    def cancel(self, request_id: int) -> None:
        """Takes a request out before the next step. Unknown and finished ids are ignored."""
        for sequence, generation in list(self._open.items()):
            if generation.id == request_id:
                self._close(sequence)
                self.stats.cancelled += 1
                self._count()

    def step(self) -> list[Delta]:
        """Runs one step; the news of each request that has some. A request that fails is closed, alone."""
        chunks = self.scheduler.schedule()
        deltas: list[Delta] = []
        for chunk, result in zip(chunks, self._run(chunks), strict=True):
            if isinstance(result, GenerationError):
                deltas.append(self._fail(chunk, result))
                continue
            delta = self._advance(chunk, result)
            if delta is not None:
                deltas.append(delta)
        self.stats.steps += 1
        self._count()
        return deltas

    def _run(self, chunks: list[Chunk]) -> list[Tensor | None | GenerationError]:
        try:
            return [*self.runner.run(chunks)]
        except Exception:
            # Whose fault it was is found by running each alone; that is safe, and rare.
            logger.exception("a step of %d sequences failed; running each alone", len(chunks))
            return [self._run_alone(chunk) for chunk in chunks]

    def _run_alone(self, chunk: Chunk) -> Tensor | None | GenerationError:
        try:
            return self.runner.run([chunk])[0]
        except Exception as error:  # noqa: BLE001 - whatever a kernel raises belongs to this request only
            return GenerationError(f"the model failed on this request: {type(error).__name__}: {error}")

    def _advance(self, chunk: Chunk, logits: Tensor | None) -> Delta | None:
        """Samples if the chunk reached the newest token, and turns the token into text."""
        if chunk.start < chunk.sequence.prompt_tokens:
            done = min(chunk.start + chunk.count, chunk.sequence.prompt_tokens)
            self.stats.prompt_tokens += done - chunk.start
        if logits is None:
            self.scheduler.advance(chunk, None)
            return None
        generation = self._open[chunk.sequence]
        try:
            token = generation.sampler.sample(logits)
        except Exception as error:  # noqa: BLE001 - one request's sampling must not end the others
            return self._fail(chunk, GenerationError(f"sampling failed: {error}"))
        self.scheduler.advance(chunk, token)
        self.stats.completion_tokens += 1
        return self._news(generation, token)

    def _news(self, generation: Generation, token: int) -> Delta:
        """Text and, if this was the last token, the reason. An end-of-turn token counts but has no text."""
        sequence = generation.sequence
        reason: FinishReason | None = None
        if token in self.vocabulary.end_ids:
            reason = "stop"
        elif sequence.completion_tokens >= sequence.max_tokens:
            reason = "length"
        text = generation.stops.add(generation.detokeniser.add(token))
        if reason and not generation.stops.stopped:
            text += generation.stops.add(generation.detokeniser.finish())
        if generation.stops.stopped:
            reason = "stop"
        if reason:
            text += generation.stops.finish()
            self._close(sequence)
        return generation.delta(text, reason)

    def _fail(self, chunk: Chunk, error: GenerationError) -> Delta:
        generation = self._open[chunk.sequence]
        logger.error("request %d failed: %s", generation.id, error)
        self._close(chunk.sequence)
        self.stats.failed += 1
        return generation.delta("", error=error)

    def _close(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        del self._open[sequence]

    def _count(self) -> None:
        self.stats.running = len(self.scheduler.running)
        self.stats.waiting = len(self.scheduler.waiting)
        self.stats.preempted = self.scheduler.num_preempted
        self.stats.blocks_used = self.scheduler.blocks.num_blocks - self.scheduler.blocks.num_free
        self.stats.blocks = self.scheduler.blocks.num_blocks
