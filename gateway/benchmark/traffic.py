"""The soak's load: requests of several kinds at a set rate, whatever becomes of them; some clients leave.

Requests come at even intervals, the kinds in an order that a seed decides. A connection is used again when its answer
is whole, the one that was free last first, so that with luck no idle one is closed by the gateway just then.
"""

from __future__ import annotations

import random
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.benchmark.client import RECEIVE_BYTES, Connection, Run

MOST_OPEN = 2000
"""Connections. A gateway that falls so far behind has failed: further requests are counted as such and not sent."""

ANSWER_SECONDS = 30.0


@dataclass
class Share:
    """One kind of requests. `weight`: of all, in hundredths. `leaves_after`: stamped chunks after which the client
    closes its connection; 0: before any answer; None: it stays. `left_ids`: of requests whose client left."""

    name: str
    weight: int
    run: Run
    leaves_after: int | None = None
    sent: int = 0
    left: int = 0
    left_ids: list[str] = field(default_factory=list)


class Traffic:
    """One loop, in which samples are taken too."""

    def __init__(self, shares: list[Share], rate: float, seed: int = 1) -> None:
        self._shares = shares
        self._rate = rate
        self._random = random.Random(seed)
        self._selector = selectors.DefaultSelector()
        self._idle: list[Connection] = []
        self._busy: dict[Connection, tuple[Share, int]] = {}  # and when it is given up, in ns

    def go(self, seconds: float, every: float, sample: Callable[[], None]) -> None:
        """Sends for so long, then awaits what is under way. `sample` is called in between, after every so many seconds.

        Raises OSError when nobody listens any more.
        """
        began = now = time.monotonic_ns()
        stop_at, gap, sent = began + int(seconds * 1e9), int(1e9 / self._rate), 0
        step = int(every * 1e9)
        tick = began + step
        try:
            while now < stop_at or self._busy:
                while now < stop_at and now >= began + sent * gap:
                    self._send()
                    sent += 1
                for key, _ in self._selector.select(min(0.2, max(0.0, (began + sent * gap - now) / 1e9))):
                    self._serve(key.data)
                now = time.monotonic_ns()
                if now >= tick:
                    tick += step
                    self._give_up(now)
                    if now < stop_at:
                        sample()
        finally:
            for key in list(self._selector.get_map().values()):
                key.data.socket.close()
            self._selector.close()

    def _send(self) -> None:
        share = self._random.choices(self._shares, [share.weight for share in self._shares])[0]
        share.sent += 1
        if len(self._busy) >= MOST_OPEN:
            share.run.fail(f"{MOST_OPEN} requests wait for their answers: no more were sent")
            return
        connection = self._idle.pop() if self._idle else self._open(share)
        self._busy[connection] = share, time.monotonic_ns() + int(ANSWER_SECONDS * 1e9)
        try:
            connection.ask(share.run)
        except OSError as error:
            share.run.fail(f"a connection broke: {error}")
            self._close(connection)
            return
        if share.leaves_after == 0:
            self._leave(connection, share)

    def _open(self, share: Share) -> Connection:
        connection = Connection(share.run.place)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        return connection

    def _serve(self, connection: Connection) -> None:
        why = "a connection was closed on a request"
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
        except OSError as error:
            data, why = b"", f"a connection broke: {error}"
        if connection not in self._busy:  # the gateway closes what nobody uses
            self._idle.remove(connection)
            self._close(connection)
            return
        share, _ = self._busy[connection]
        if not data:
            share.run.fail(why)
            self._close(connection)
        elif connection.take(data, time.monotonic_ns()):
            del self._busy[connection]
            self._idle.append(connection)
        elif share.leaves_after is not None and connection.seen >= share.leaves_after:
            self._leave(connection, share)

    def _leave(self, connection: Connection, share: Share) -> None:
        share.left += 1
        if connection.request_id is not None:
            share.left_ids.append(connection.request_id)
        self._close(connection)

    def _give_up(self, now: int) -> None:
        for connection, (share, until) in list(self._busy.items()):
            if now > until:
                share.run.fail(f"no answer within {ANSWER_SECONDS:.0f} s")
                self._close(connection)

    def _close(self, connection: Connection) -> None:
        self._busy.pop(connection, None)
        self._selector.unregister(connection.socket)
        connection.socket.close()
