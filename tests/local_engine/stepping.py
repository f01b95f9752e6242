"""The engine's step without text: scheduler, runner, sampler and speculation, on tiny models in memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from local_engine.kv_cache import BlockAllocator
from local_engine.proposer import Outlook, Proposer
from local_engine.request import SamplingParams
from local_engine.runner import Runner
from local_engine.sampler import Sampled, Sampler
from local_engine.scheduler import Scheduler
from local_engine.sequence import Chunk, Sequence, Status
from local_engine.speculation import Speculation, verify
from tests.local_engine.tiny_models import random_model

BLOCK = 8


@dataclass
class Task:
    prompt: list[int]
    max_tokens: int = 24
    params: SamplingParams = field(default_factory=SamplingParams)
    ends: frozenset[int] = frozenset()
    min_tokens: int = 0
    salt: bytes = b""


class Always(Speculation):
    """As many guesses as there may be, in every step; or in those that `when` names."""

    def __init__(self, proposer: Proposer, draft_tokens: int, when: Callable[[int], bool] = lambda step: True) -> None:
        super().__init__(proposer, draft_tokens, lambda rows: None)
        self.when = when
        self.step = 0

    def plan(self, decoding: list[Sequence]) -> None:
        self.step += 1
        for sequence in decoding:
            sequence.draft_limit = self.draft_tokens if self.when(self.step) else 0


class Scripted:
    """A proposer that says what a function of the tokens so far says."""

    def __init__(self, guess: Callable[[list[int]], int]) -> None:
        self.guess = guess

    def look(self, sequence: Sequence, room: int) -> Outlook | None:
        return Outlook(0)

    def propose(self, chunks: list[Chunk], samplers: Mapping[Sequence, Sampler]) -> None:
        for chunk in chunks:
            for _ in range(chunk.draft_room):
                chunk.draft.append(self.guess(chunk.sequence.tokens + chunk.draft))

    def forget(self, sequence: Sequence) -> None:
        pass


class Stepping:
    def __init__(
        self,
        runner: Runner,
        speculation: Speculation | None = None,
        *,
        max_running: int = 4,
        budget: int = 64,
    ) -> None:
        self.runner = runner
        self.blocks = BlockAllocator(runner.num_blocks, runner.block_size)
        self.scheduler = Scheduler(self.blocks, max_running=max_running, max_waiting=64)
        self.speculation = speculation or Speculation(None, 0, lambda rows: None)
        self.budget = budget
        self.tasks: dict[Sequence, Task] = {}
        self.samplers: dict[Sequence, Sampler] = {}
        self.sampled: dict[Sequence, list[Sampled]] = {}
        self.proposed = self.accepted = self.steps = 0

    def add(self, task: Task) -> Sequence:
        sequence = Sequence.of(task.prompt, task.max_tokens)
        sequence.salt = task.salt
        self.tasks[sequence] = task
        self.samplers[sequence] = Sampler(
            task.params, task.prompt, self.runner.model.config.vocab_size, end_ids=task.ends, min_tokens=task.min_tokens
        )
        self.sampled[sequence] = []
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> None:
        self.steps += 1
        self.speculation.plan(self.scheduler.decoding)
        chunks = self.scheduler.schedule(0.0, self.budget)
        self.speculation.propose(chunks, self.samplers)
        for chunk, rows in zip(chunks, self.runner.run(chunks), strict=True):
            sequence = chunk.sequence
            if rows.logits is None:
                self.scheduler.advance(chunk, [])
                continue
            assert len(chunk.draft) <= chunk.draft_room
            ends = self.tasks[sequence].ends
            new = verify(chunk, rows.logits, self.samplers[sequence], None, lambda token, ends=ends: token in ends)
            self.proposed += len(chunk.draft)
            self.accepted += len(new) - 1
            self.sampled[sequence] += new
            self.scheduler.advance(chunk, [one.token for one in new])
            if new[-1].token in ends or sequence.completion_tokens >= sequence.max_tokens:
                assert sequence.completion_tokens <= sequence.max_tokens
                self.scheduler.finish(sequence)
                self.speculation.forget(sequence)
        self.scheduler.check_integrity()

    def finish(self) -> "Stepping":
        while self.scheduler.running or self.scheduler.waiting:
            self.step()
        assert all(sequence.status is Status.FINISHED for sequence in self.tasks)
        return self

    def run(self, tasks: list[Task]) -> list[list[Sampled]]:
        sequences = [self.add(task) for task in tasks]
        self.finish()
        return [self.sampled[sequence] for sequence in sequences]


def tiny_runner(seed: int = 0, num_blocks: int = 64) -> Runner:
    return Runner(random_model(seed=seed), num_blocks, BLOCK)
