"""The escapes under way: measured every second, moved on, halted. Owned by the control plane.

What is moved is published to the workers as shifts. Less is moved first and written down afterwards; more is written
down first and moved afterwards: whatever dies in between, no traffic is where nobody knows of it. While the ledger
cannot be read a step is held, and after `BLIND_SECONDS` nothing is moved until it can be read again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from gateway.config.model import Configuration
from gateway.errors import InvalidRequest, NotFound, StoreError
from gateway.escape.guards import LEAST, RECENT, Sample, Verdict, Z, judge
from gateway.escape.plan import Pair, find_pairs
from gateway.escape.record import from_row, owner_of, to_row
from gateway.escape.steps import (
    ACTIVE,
    RUNNING,
    Escape,
    EscapeRequest,
    advance,
    begin,
    end,
    go_blind,
    see_again,
    shifts_of,
)
from gateway.publication import Publication
from gateway.store.escapes import list_escapes, measure_source, measure_target, save_escape
from gateway.types import Shift

TICK_SECONDS = 1.0
LOAD_SECONDS = 5.0
MEASURE_SECONDS = 10.0
BLIND_SECONDS = 60.0
MAX_ACTIVE = 20
KEPT = 20
"""Ended escapes that `status` still shows."""

_log = logging.getLogger(__name__)


class EscapeRunner:
    """`configuration`: the one in force. `push`: has all workers take up the published shifts. `owner`: the machine;
    with the home folder it names this gateway among those that share the database. `is_current`: False while new rows
    do not reach the ledger. `wall`: the time, with a zone."""

    def __init__(
        self,
        engine: Engine,
        publication: Publication,
        *,
        configuration: Callable[[], Configuration],
        push: Callable[[], Awaitable[None]],
        owner: str,
        is_current: Callable[[], bool] = lambda: True,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._engine = engine
        self._publication = publication
        self._configuration = configuration
        self._push = push
        self._owner = f"{owner}:{publication.home}"
        self._is_current = is_current
        self._wall = wall
        self._escapes: dict[str, Escape] = {}  # the truth; the database follows
        self._unsaved: set[str] = set()
        self._ended: deque[Escape] = deque(maxlen=KEPT)
        self._saving = asyncio.Lock()
        self._measuring: asyncio.Task[tuple[Sample, Sample]] | None = None
        self._is_loaded = False

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            await self._load_at_last()
            while True:
                await self.tend()
                await asyncio.sleep(TICK_SECONDS)
        finally:
            if self._measuring is not None:
                self._measuring.cancel()
                await asyncio.gather(self._measuring, return_exceptions=True)

    async def _load_at_last(self) -> None:
        """However long PostgreSQL is away. After `BLIND_SECONDS` without it nothing is moved, and what was is over."""
        loop = asyncio.get_running_loop()
        until = loop.time() + BLIND_SECONDS
        while not self._is_loaded:
            try:
                await self.load()
            except (StoreError, SQLAlchemyError) as error:
                _log.error("escapes cannot be taken up: %s", error)
                if loop.time() > until:
                    await self._publish()
                await asyncio.sleep(LOAD_SECONDS)

    async def load(self) -> None:
        """Takes up what was under way when this gateway ended, at the same step. Raises `StoreError`."""
        published = {shift.escape_id for shift in self._published()}
        now = self._wall()
        for row in await asyncio.to_thread(list_escapes, self._engine, states=sorted(ACTIVE)):
            try:
                is_ours = row.escape_id in published or owner_of(row) == self._owner
                escape = from_row(row)
            except msgspec.DecodeError as error:
                _log.error("escape `%s` cannot be read and is left alone: %s", row.escape_id, error)
                continue
            if not is_ours or row.escape_id in self._escapes:
                continue
            if row.escape_id not in published:  # its end was published, and could not be written down
                escape = end(escape, "stopped", now, "nothing was moved when the gateway started")
                self._unsaved.add(row.escape_id)
            self._escapes[row.escape_id] = escape
        self._is_loaded = True
        await self._publish()

    async def start(self, request: EscapeRequest, author: str) -> str:
        """Begins an escape and returns its id. Raises `InvalidRequest` with the remedy, `StoreError`."""
        request.check()
        if not self._is_loaded:
            await self.load()
        pairs = tuple(find_pairs(self._configuration(), request.source, request.target))
        self._refuse_unfit(pairs)
        escape = begin(f"esc-{secrets.token_hex(4)}", request, pairs, author, self._wall())
        self._escapes[escape.escape_id] = escape  # before the first await: two starts at once cannot both pass
        try:
            await self._save(escape, is_new=True)
        except BaseException:
            del self._escapes[escape.escape_id]
            raise
        await self._publish()
        _log.info("escape `%s` from `%s` to `%s` has begun", escape.escape_id, request.source, request.target)
        return escape.escape_id

    def _refuse_unfit(self, pairs: tuple[Pair, ...]) -> None:
        configuration = self._configuration()
        active = [escape for escape in self._escapes.values() if escape.state in ACTIVE]
        sources = {pair.source: escape for escape in active for pair in escape.pairs}
        targets = {pair.target: escape for escape in active for pair in escape.pairs}
        if len(active) >= MAX_ACTIVE:
            raise refused(f"{MAX_ACTIVE} escapes are under way", "stop one of them")
        for pair in pairs:
            target = configuration.endpoints[pair.target]
            if target.provider.missing is not None:
                raise refused(f"`{pair.target}` cannot be used: {target.provider.missing}", "set it, and restart")
            if not is_used(configuration, pair.source):
                raise refused(f"no policy sends anything to `{pair.source}`", "name an endpoint that a policy has")
            for other in (sources.get(pair.source), sources.get(pair.target), targets.get(pair.source)):
                if other is not None:
                    hint = f"`hatchway escape stop {other.escape_id}` ends it"
                    raise refused(f"escape `{other.escape_id}` already moves traffic of these endpoints", hint)

    async def stop(self, escape_id: str, author: str) -> Escape:
        """Brings everything back to the source, at once. `escape_id`: its beginning is enough.

        Raises `NotFound`; a database that is away does not keep it from stopping.
        """
        escape = self._named(escape_id)
        ended = end(escape, "stopped", self._wall(), f"by {author}")
        await self._take(ended)
        return ended

    def status(self) -> list[Escape]:
        """Those under way, then those that ended since the start of the control plane, the newest first."""
        active = sorted(self._escapes.values(), key=lambda escape: escape.started_at, reverse=True)
        return [*active, *reversed(self._ended)]

    def _named(self, prefix: str) -> Escape:
        found = [e for e in self._escapes.values() if prefix and e.escape_id.startswith(prefix) and e.state in ACTIVE]
        if len(found) != 1:
            problem = "begins several escapes" if found else "is no escape that is under way"
            raise NotFound(
                f"`{prefix[:80]}` {problem}\nhint: `hatchway escape list` shows the ids",
                code="escape_not_found",
                param="id",
            )
        return found[0]

    async def tend(self) -> None:
        """One look at every escape. A ledger that cannot be read is told in the escape itself."""
        for escape in list(self._escapes.values()):
            if escape.state in ACTIVE:
                await self._look_after(escape)
        for escape_id in list(self._unsaved):
            await self._save_quietly(escape_id)
        for escape in list(self._escapes.values()):
            if escape.state not in ACTIVE and escape.escape_id not in self._unsaved:
                self._ended.append(self._escapes.pop(escape.escape_id))

    async def _look_after(self, escape: Escape) -> None:
        if ended := self._outdated(escape):
            await self._take(ended)
        elif escape.state in RUNNING:
            measured = await self._measure(escape)
            if self._escapes.get(escape.escape_id) is not escape:
                return  # stopped meanwhile
            if measured is None:
                await self._take(go_blind(escape, self._wall(), BLIND_SECONDS))
                return
            now = self._wall()
            seen = see_again(escape, now)
            if seen is not escape:
                await self._go_on(escape, seen)  # and judged at the next look, by what is measured from now on
                return
            target, source = measured
            moved = advance(escape, target, source, self._judge(escape, target, source), now)
            if moved.state in ACTIVE and len(moved.results) > len(escape.results):
                await self._go_on(escape, moved)
            else:
                await self._take(moved)

    def _judge(self, escape: Escape, target: Sample, source: Sample) -> Verdict:
        guards = escape.request.guards
        if escape.step.kind == "ramp":  # nobody has the other answer to compare with
            guards = msgspec.structs.replace(guards, min_similarity=None)
        return judge(guards, target, source, escape.step.requests)

    def _outdated(self, escape: Escape) -> Escape | None:
        """The escape's end, where the configuration has moved on."""
        configuration, now = self._configuration(), self._wall()
        for pair in escape.pairs:
            if pair.target not in configuration.endpoints:
                return end(escape, "halted", now, f"the configuration has no endpoint `{pair.target}` any more")
        if not any(is_used(configuration, pair.source) for pair in escape.pairs):
            return end(escape, "closed", now, "no policy sends anything to the source any more")
        return None

    async def _measure(self, escape: Escape) -> tuple[Sample, Sample] | None:
        """The target's and the source's numbers in the present step; None: they cannot be had."""
        if self._measuring is not None and not self._measuring.done():
            return None  # still stuck in the last one
        if not self._is_current():
            return None
        self._measuring = asyncio.ensure_future(asyncio.to_thread(measure, self._engine, escape))
        await asyncio.wait({self._measuring}, timeout=MEASURE_SECONDS)
        if not self._measuring.done():
            return None
        error = self._measuring.exception()
        if error is None:
            return self._measuring.result()
        if escape.blind_since is None:  # once, not every second
            known = isinstance(error, (StoreError, SQLAlchemyError))
            _log.warning("escape `%s` is held: %s", escape.escape_id, error, exc_info=None if known else error)
        return None

    async def _go_on(self, before: Escape, after: Escape) -> None:
        """More may be moved: only once it is written down."""
        try:
            await self._save(after)
        except (StoreError, SQLAlchemyError):
            if self._escapes.get(before.escape_id) is before:
                await self._take(go_blind(before, self._wall(), BLIND_SECONDS))
            return
        if self._escapes.get(before.escape_id) is not before:
            return  # stopped meanwhile; that is written down after this, for saving goes in order
        self._escapes[after.escape_id] = after
        await self._publish()
        _log.info("escape `%s`: %s", after.escape_id, after.events[-1].what)

    async def _take(self, escape: Escape) -> None:
        """The new state holds at once; it moves no more than the old one did."""
        before = self._escapes[escape.escape_id]
        self._escapes[escape.escape_id] = escape
        if shifts_of(escape) != shifts_of(before):
            await self._publish()
        if escape.events != before.events:
            _log.log(
                logging.INFO if escape.state in ACTIVE else logging.WARNING,
                "escape `%s`: %s",
                escape.escape_id,
                escape.events[-1].what,
            )
            self._unsaved.add(escape.escape_id)
            await self._save_quietly(escape.escape_id)

    async def _publish(self) -> None:
        shifts = [shift for escape in self._escapes.values() for shift in shifts_of(escape)]
        if shifts != self._published():
            self._publication.publish_shifts(shifts)
            await self._push()

    def _published(self) -> list[Shift]:
        try:
            return self._publication.read_shifts()
        except (OSError, msgspec.DecodeError) as error:
            _log.error("the published shifts cannot be read: %s", error)
            return []

    async def _save_quietly(self, escape_id: str) -> None:
        escape = self._escapes[escape_id]
        try:
            await self._save(escape)
        except (StoreError, SQLAlchemyError) as error:
            _log.warning("escape `%s` is not written down yet: %s", escape_id, error)
        else:
            if self._escapes.get(escape_id) is escape:
                self._unsaved.discard(escape_id)

    async def _save(self, escape: Escape, *, is_new: bool = False) -> None:
        async with self._saving:  # in order
            await asyncio.to_thread(save_escape, self._engine, to_row(escape, self._owner), is_new=is_new)


def measure(engine: Engine, escape: Escape) -> tuple[Sample, Sample]:
    """What the ledger says of the present step. A source that was hardly asked in it is judged by the whole escape.

    Raises `StoreError`.
    """
    half = Z * 0.5
    sources = [pair.source for pair in escape.pairs]
    targets = [pair.target for pair in escape.pairs]
    since = escape.step_started_at
    target = Sample(**measure_target(engine, escape.escape_id, escape.step.role, targets, since, half, RECENT))
    source = Sample(**measure_source(engine, escape.escape_id, sources, since, half))
    if source.requests < LEAST and since > escape.started_at:
        source = Sample(**measure_source(engine, escape.escape_id, sources, escape.started_at, half))
    return target, source


def is_used(configuration: Configuration, endpoint: str) -> bool:
    """Whether any policy may send requests to it."""
    return any(
        endpoint in policy.endpoints or any(canary.endpoint == endpoint for canary in policy.canaries)
        for policy in configuration.policies.values()
    )


def refused(problem: str, hint: str) -> InvalidRequest:
    return InvalidRequest(f"{problem}\nhint: {hint}", code="escape_refused")
