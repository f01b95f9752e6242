"""The engine itself: requests in, tokens and text out, one step at a time. Synchronous; single-threaded by design.

`Engine.step` is the whole life of a token: schedule, guess, run, sample, advance. `async_engine.py` drives it from a
thread.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from kernels.draw import Draw
from local_engine import workers
from local_engine.backend import settled
from local_engine.config import EngineConfig
from local_engine.errors import DeadlineExceeded, GenerationError, RequestError
from local_engine.files.checkpoint import open_checkpoint
from local_engine.generation import Generation
from local_engine.grammar import GrammarCompiler
from local_engine.kv_cache import BlockAllocator
from local_engine.memory_plan import STEP_TOKENS, MemoryPlan, plan
from local_engine.metrics import Pulse, Timings
from local_engine.pace import Pace, position_cost
from local_engine.parallel import ProcessLost
from local_engine.request import Delta, Request, Stats
from local_engine.runner import Rows, Runner
from local_engine.sampler import prompt_logprobs
from local_engine.scheduler import Scheduler
from local_engine.sequence import Chunk, Sequence
from local_engine.speculation import Speculation, verify
from local_engine.text.reply_parser import ReplyFormat, detect_format
from local_engine.text.template import ChatTemplate
from local_engine.text.vocabulary import Vocabulary, open_vocabulary

Progress = Callable[[float], None]  # called with the share of the work done, 0 to 1

# Steps that are measured before the first request: tokens of answers, again while the time lasts, and of prompts.
_WARM_UP_ANSWERS, _WARM_UP_ROUNDS, _WARM_UP_SECONDS = (1, 2, 3, 4, 5, 8), 3, 0.2
_WARM_UP_PROMPTS = (16, 64)

logger = logging.getLogger(__name__)


class Engine:
    """Model, tokenizer and scheduler of one loaded model. Not thread-safe: one thread owns it.

    What does not change after loading may be read by any thread: `vocabulary`, `template`, `reply_format`,
    `grammars`, `context_length`, `config`.
    """

    def __init__(
        self,
        runner: Runner,
        vocabulary: Vocabulary,
        template: ChatTemplate,
        reply_format: ReplyFormat,
        scheduler: Scheduler,
        speculation: Speculation,
        pace: Pace,
        config: EngineConfig,
        context_length: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self.template = template
        self.reply_format = reply_format
        self.grammars = GrammarCompiler(vocabulary)
        self.context_length = context_length
        self.runner = runner
        self.scheduler = scheduler
        self.speculation = speculation
        self.pace = pace
        self.stats = Stats()
        self.timings = Timings()
        self._clock = clock
        self._open: dict[Sequence, Generation] = {}

    @classmethod
    def load(
        cls,
        path: Path,
        config: EngineConfig,
        progress: Progress = lambda share: None,
        on_plan: Callable[[MemoryPlan], None] = lambda plan: None,
    ) -> "Engine":
        """Reads a GGUF file or a folder of safetensors, and runs a few steps so that the first request finds warm code.

        `on_plan` is called with what memory will be taken, before anything large is read.
        Raises `ModelFileError` and `EngineError`.
        """
        threads = max(1, config.num_threads // config.processes)
        torch.set_num_threads(threads)  # holds for the calling thread: the one that will run the steps
        config = settled(config)
        with open_checkpoint(path) as checkpoint:
            memory = plan(checkpoint, config)
            on_plan(memory)
            limit = config.sequence_limit(checkpoint.config)
            vocabulary = open_vocabulary(checkpoint, checkpoint.config.vocab_size)
            # a rendering longer than this cannot fit the context, whatever its tokens
            template = ChatTemplate.of(checkpoint, vocabulary, limit * vocabulary.longest_token)
            runner = workers.load_runner(path, checkpoint, config, memory.num_blocks, progress)
        try:
            pace = Pace(
                config.step_seconds,
                smallest=config.max_running,
                largest=max(STEP_TOKENS, config.max_running),
                position_cost=position_cost(runner.model.config),
            )
            engine = cls(
                runner=runner,
                vocabulary=vocabulary,
                template=template,
                reply_format=detect_format(template.source, vocabulary),
                scheduler=Scheduler(
                    BlockAllocator(memory.num_blocks, config.block_size, caching=config.prefix_cache),
                    max_running=config.max_running,
                    max_waiting=config.max_waiting,
                ),
                speculation=Speculation.of(config, runner, vocabulary, pace),
                pace=pace,
                config=config,
                context_length=limit,
            )
            engine.warm_up()
        except BaseException:
            workers.close(runner)
            raise
        return engine

    def warm_up(self) -> None:
        """Measures steps of several sizes, then runs one request the usual way; nothing is left behind."""
        most = min(self.context_length, self.scheduler.blocks.num_blocks * self.config.block_size)
        draw = Draw(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, key=0, vocab_size=self.vocabulary.size)
        self.runner.warm_up(self.config.max_running * (1 + self.config.draft_tokens), draw)
        self._time_step(1, is_prompt=False)  # the first one ever is slow
        began = time.perf_counter()
        for turn in range(_WARM_UP_ROUNDS):
            if turn and time.perf_counter() - began > _WARM_UP_SECONDS:
                break
            for count in _WARM_UP_ANSWERS:
                if count <= most:
                    self.pace.record(count, self._time_step(count, is_prompt=False))
        for count in _WARM_UP_PROMPTS:
            if count <= most:
                self.pace.record(count, self._time_step(count, is_prompt=True), context=0.0)
        self.add(Request(id=-1, prompt=[0], max_tokens=2, ignore_end=True))
        while self.has_work:
            self.step()
        self.stats = Stats()
        self.timings = Timings()
        self._count()

    def _time_step(self, count: int, *, is_prompt: bool) -> float:
        """Seconds of a step of `count` tokens, without what Python does. No block is in use yet, so any will do."""
        sequence = Sequence.of([0] * count, 1)
        sequence.block_table = [*range(-(-count // self.config.block_size))]
        sequence.every_row = not is_prompt  # of answers and guesses every row is needed
        for _ in range(self.runner.runs_to_warm):
            self.runner.run([Chunk(sequence, 0, count)])
        began = time.perf_counter()
        self.runner.run([Chunk(sequence, 0, count)])
        return time.perf_counter() - began

    def watch(self, on_lost: Callable[[ProcessLost], None]) -> None:
        """`on_lost` is called, from another thread, when a process of the engine dies while no step runs."""
        workers.watch(self.runner, on_lost)

    def close(self) -> None:
        """Ends what it holds outside of this thread: processes, if any, and grammars that wait to be compiled."""
        self.grammars.close()
        workers.close(self.runner)

    @property
    def has_work(self) -> bool:
        return bool(self._open)

    def add(self, request: Request) -> None:
        """Queues a request. Raises `QueueFull`, and `RequestError` when it cannot fit the context."""
        if not request.prompt or len(request.prompt) + request.max_tokens > self.context_length:
            raise RequestError(f"{len(request.prompt)} + {request.max_tokens} tokens, context {self.context_length}")
        sequence = Sequence.of(request.prompt, request.max_tokens)
        sequence.priority, sequence.salt = request.priority, request.salt
        sequence.arrival, sequence.deadline = self._clock(), request.deadline
        if sequence.deadline is None and self.config.request_timeout is not None:
            sequence.deadline = sequence.arrival + self.config.request_timeout
        sequence.embed, sequence.every_row = request.embed, request.prompt_logprobs is not None
        generation = Generation.of(request, sequence, self.vocabulary, Pulse(sequence.arrival))
        self.scheduler.add(sequence)
        self._open[sequence] = generation
        self._count()

    def cancel(self, request_id: int) -> None:
        """Takes a request out before the next step. Unknown and finished ids are ignored."""
        for sequence, generation in list(self._open.items()):
            if generation.request.id == request_id:
                self._close(sequence)
                self.stats.cancelled += 1
                self._count()

    def step(self) -> list[Delta]:
        """Runs one step; the news of each request that has some. A request that fails is closed, alone."""
        began = self._clock()
        deltas = [self._expire(sequence) for sequence in self.scheduler.expire(began)]
        decoding = self.scheduler.decoding
        self.speculation.plan(decoding)
        read = max((s.num_computed for s in self.scheduler.running if s.num_remaining > 1), default=0)
        self.stats.token_budget = self.config.token_budget or self.pace.budget(len(decoding), read)
        chunks = self.scheduler.schedule(began, self.stats.token_budget)
        for chunk in chunks:
            self._open[chunk.sequence].pulse.begin(self.timings, began)
        self._guess(chunks)
        if self.runner.draws:
            for chunk in chunks:
                chunk.draw = self._open[chunk.sequence].draw if chunk.is_last else None
        results = self._run(chunks)
        now = self._clock()
        for chunk, result in zip(chunks, results, strict=True):
            if isinstance(result, GenerationError):
                deltas.append(self._fail(chunk.sequence, result))
            elif (delta := self._advance(chunk, result, now)) is not None:
                deltas.append(delta)
        if chunks:
            self.stats.steps += 1
            self.stats.step_seconds = self._clock() - began
            self.timings.step.observe(self.stats.step_seconds)
            self._learn_cost(chunks, self.stats.step_seconds - self.speculation.seconds)
            self.scheduler.step_seconds = self.pace.step_seconds
        self._count()
        return deltas

    def _learn_cost(self, chunks: list[Chunk], seconds: float) -> None:
        sizes = [chunk.count + len(chunk.draft) for chunk in chunks]
        context = None
        if any(chunk.count > 1 for chunk in chunks):
            before = (size * (chunk.start + size / 2) for chunk, size in zip(chunks, sizes, strict=True))
            context = sum(before) / sum(sizes)
        self.pace.record(sum(sizes), seconds, context)

    def _guess(self, chunks: list[Chunk]) -> None:
        wanted = [chunk for chunk in chunks if chunk.draft_room > 0]
        try:
            self.speculation.propose(wanted, {c.sequence: self._open[c.sequence].sampler for c in wanted})
        except Exception:
            logger.exception("guessing ahead failed; this step goes without")
            for chunk in chunks:
                chunk.draft = []

    def _run(self, chunks: list[Chunk]) -> list[Rows | GenerationError]:
        if not chunks:
            return []
        try:
            return [*self.runner.run(chunks)]
        except ProcessLost:
            raise  # nobody's request is at fault, and none can go on
        except Exception:
            # Whose fault it was is found by running each alone; that is safe, and rare.
            logger.exception("a step of %d sequences failed; running each alone", len(chunks))
            return [self._run_alone(chunk) for chunk in chunks]

    def _run_alone(self, chunk: Chunk) -> Rows | GenerationError:
        try:
            return self.runner.run([chunk])[0]
        except Exception as error:  # noqa: BLE001 - whatever a kernel raises belongs to this request only
            return GenerationError(f"the model failed on this request: {type(error).__name__}: {error}")

    def _advance(self, chunk: Chunk, rows: Rows, now: float) -> Delta | None:
        """What a chunk's result, known since `now`, means: prompt read, tokens sampled, text to show."""
        generation = self._open[chunk.sequence]
        if chunk.start < chunk.sequence.prompt_tokens:
            done = min(chunk.start + chunk.count, chunk.sequence.prompt_tokens)
            self.stats.prompt_tokens += done - chunk.start
        try:
            self._keep_rows(generation, chunk, rows)
            if not chunk.is_last:
                self.scheduler.advance(chunk, [])
                return None
            if generation.request.max_tokens == 0:
                self.scheduler.advance(chunk, [])
                generation.end_prompt()
            else:
                self._sample(generation, chunk, rows, now)
        except Exception as error:
            # one request's numbers, grammar or text must not end the others
            if not isinstance(error, (FloatingPointError, GenerationError)):
                logger.exception("request %d failed", generation.request.id)
            known = error if isinstance(error, GenerationError) else GenerationError(f"sampling failed: {error}")
            return self._fail(chunk.sequence, known)
        if generation.finish_reason is not None:
            self.stats.finished += 1
            self._close(chunk.sequence)
        return generation.take_news()

    def _sample(self, generation: Generation, chunk: Chunk, rows: Rows, now: float) -> None:
        assert rows.logits is not None  # a last chunk's rows were asked for
        mask = None if generation.matcher is None else generation.mask
        sampled = verify(chunk, rows.logits, generation.sampler, mask, generation.add, rows.best, rows.drawn)
        self.stats.draft_tokens += len(chunk.draft)
        self.stats.accepted_tokens += len(sampled) - 1
        self.stats.completion_tokens += len(sampled)
        self.scheduler.advance(chunk, [one.token for one in sampled])
        generation.pulse.tokens(self.timings, now, len(sampled))
        generation.keep_logprobs(sampled)

    def _keep_rows(self, generation: Generation, chunk: Chunk, rows: Rows) -> None:
        """What a request wants to know about its prompt, beside the next token."""
        sequence = chunk.sequence
        if not (sequence.embed or sequence.every_row):
            return
        inside = max(0, min(chunk.count, sequence.prompt_tokens - chunk.start))  # positions of the prompt
        if sequence.embed and rows.hidden is not None:
            if not rows.hidden.isfinite().all():
                raise FloatingPointError("the model produced hidden states that are not finite")
            generation.keep_hidden(chunk.start, rows.hidden[:inside])
        top = generation.request.prompt_logprobs
        if top is not None and inside and rows.logits is not None:
            following = sequence.tokens[chunk.start + 1 : min(chunk.start + inside + 1, sequence.prompt_tokens)]
            found = prompt_logprobs(rows.logits[: len(following)], following, top)
            generation.keep_prompt_logprobs(chunk.start, found)

    def _expire(self, sequence: Sequence) -> Delta:
        self.stats.expired += 1
        generation = self._open[sequence]
        waited = self._clock() - sequence.arrival
        error = DeadlineExceeded(
            f"the deadline passed after {waited:.1f} s, with {generation.count} tokens generated\n"
            "hint: allow more time, or ask for fewer tokens"
        )
        delta = generation.take_news(error)
        self._close(sequence)
        assert delta is not None  # an error is always news
        return delta

    def _fail(self, sequence: Sequence, error: GenerationError) -> Delta:
        generation = self._open[sequence]
        logger.error("request %d failed: %s", generation.request.id, error)
        self._close(sequence, discard=True)
        self.stats.failed += 1
        delta = generation.take_news(error)
        assert delta is not None  # an error is always news
        return delta

    def _close(self, sequence: Sequence, *, discard: bool = False) -> None:
        """`discard`: what the sequence left in the KV cache must not be found by another."""
        self.scheduler.finish(sequence, discard=discard)
        self.speculation.forget(sequence)
        del self._open[sequence]

    def _count(self) -> None:
        stats, blocks = self.stats, self.scheduler.blocks
        stats.running = len(self.scheduler.running)
        stats.waiting = len(self.scheduler.waiting)
        stats.retry_after = self.scheduler.retry_after
        stats.preempted = self.scheduler.num_preempted
        stats.blocks = blocks.num_blocks
        stats.blocks_used = blocks.num_blocks - blocks.num_free
        stats.blocks_cached = blocks.num_cached
        stats.cached_tokens = blocks.hit_tokens
