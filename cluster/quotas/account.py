"""Account: a gateway's dealings with one book of limits (`cluster.quotas.book`), wherever that is kept.

What is asked or released is said at once, and while a turn is under way with the next one, so a book is spoken to once
for all that happens at the same time; what is burned can wait for a beat. When the book cannot be reached the askers
wait a little; then the gateway goes on alone.
"""

import logging
from collections.abc import Callable, Iterable

import msgspec

from cluster.frames import QuotaAnswer, QuotaTurn
from cluster.quotas.alone import Alone
from cluster.quotas.book import LEASE_S
from cluster.quotas.bucket import Ask, Change, Reply

BEAT_S = 0.5  #: a turn at least so often
AWAY_S = LEASE_S + 1.0  #: after so long without an answer the book surely takes this gateway for away
MAX_ASKS = 256  #: in one turn

logger = logging.getLogger(__name__)


class Asked:
    """One ask, until it is answered or withdrawn."""

    def __init__(self, ask: Ask, done: Callable[[Reply, "Purse"], object]) -> None:
        self.ask, self._done = ask, done
        self.is_open = True

    def answer(self, reply: Reply, purse: "Purse") -> None:
        self.is_open = False
        self._done(reply, purse)

    def withdraw(self) -> None:
        """Nobody waits for it any more; what is granted goes back."""
        self.is_open = False


class Purse:
    """Where something was granted, and is settled: with the book, or alone. `share`: of each limit that it has."""

    def __init__(self, change: Callable[[Iterable[Change]], object], share: float) -> None:
        self.change, self.share = change, share


class Account:
    """`tick` it several times a second; `clock` is steady, in seconds."""

    def __init__(self, name: str, num_gateways: int, clock: Callable[[], float]) -> None:
        self._name, self._num_gateways, self._clock = name, num_gateways, clock
        self._send: Callable[[QuotaTurn], object] | None = None
        self._turn: QuotaTurn | None = None  #: said, not answered yet
        self._asked: list[Asked] = []  #: with that turn
        self._queue: list[Asked] = []
        self._changes: dict[str, Change] = {}
        self._has_released = False  #: there is a release among them
        self._held: dict[str, Change] = {}  #: as negative burns
        self._number, self._epoch, self._seen = 0, "", 0.0
        self._spoke_at = clock()  #: to the book, or heard of it
        self._alone: Alone | None = None
        self._shared = Purse(self._change, 1.0)
        self.num_times_alone = 0

    @property
    def is_alone(self) -> bool:
        """The book cannot be reached: limits are divided."""
        return self._alone is not None

    def put(self, ask: Ask, done: Callable[[Reply, Purse], object]) -> Asked:
        """Ask; `done` may be called at once."""
        asked = Asked(ask, done)
        if self._alone is not None:
            self._answer_alone(asked, self._alone)
        else:
            self._queue.append(asked)
            self._speak()
        return asked

    # What the store's shell tells

    def on_store(self, send: Callable[[QuotaTurn], object]) -> None:
        """The book can be spoken to (again): say once more what was not answered."""
        self._send = send
        self._spoke_at = self._clock()
        if self._turn is not None:
            send(self._turn)
        else:
            self._speak(even_if_silent=True)

    def on_lost(self) -> None:
        """It cannot."""
        self._send = None

    def on_answer(self, answer: QuotaAnswer) -> None:
        """The book has answered a turn."""
        if self._turn is None or answer.number != self._turn.number:
            return
        self._turn, asked, self._asked = None, self._asked, []
        self._spoke_at = self._clock()
        if self._epoch and answer.epoch != self._epoch:
            logger.warning("the limits of %s are kept anew: they begin empty", self._name)
            for held in self._held.values():
                self._note(held)
        self._epoch, self._seen = answer.epoch, answer.seen
        if self._alone is not None:
            self._return(self._alone)
        if answer.is_back:
            self._queue = [*asked, *self._queue]
        for one, reply in zip(asked, answer.replies, strict=False):
            self._take_reply(one, reply)
        self._speak(even_if_silent=answer.is_back)

    def tick(self) -> None:
        """Say something if it is time to, or go on alone."""
        silent_s = self._clock() - self._spoke_at
        if self._alone is None and silent_s >= AWAY_S and (self._turn is not None or self._send is None):
            self._go_on_alone()
        self._speak(even_if_silent=silent_s >= BEAT_S)

    # Turns

    def _speak(self, even_if_silent: bool = False) -> None:
        if self._send is None or self._turn is not None or not (self._queue or self._has_released or even_if_silent):
            return
        self._queue = [asked for asked in self._queue if asked.is_open]
        self._asked, self._queue = self._queue[:MAX_ASKS], self._queue[MAX_ASKS:]
        changes, self._changes = list(self._changes.values()), {}
        self._has_released = False
        self._number += 1
        asks = [asked.ask for asked in self._asked]
        self._turn = QuotaTurn(self._number, self._num_gateways, self._epoch, self._seen, changes, asks)
        self._spoke_at = self._clock()
        self._send(self._turn)

    def _take_reply(self, asked: Asked, reply: Reply) -> None:
        if reply.granted:
            for want in asked.ask.wants:
                self._hold(Change(want.key, want.capacity, burned=-want.amount))
        if asked.is_open:
            asked.answer(reply, self._shared)
        elif reply.granted:
            for want in asked.ask.wants:
                self._settle(Change(want.key, want.capacity, released=want.amount))

    def _change(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self._settle(change)
        self._speak()

    def _settle(self, change: Change) -> None:
        self._note(change)
        self._hold(msgspec.structs.replace(change, burned=change.burned + change.released, released=0.0))

    def _note(self, change: Change) -> None:
        """For the next turn."""
        self._changes[change.key] = _sum(self._changes.get(change.key), change)
        self._has_released |= change.released > 0.0

    def _hold(self, change: Change) -> None:
        held = _sum(self._held.get(change.key), change)
        if held.burned < 0.0:
            self._held[change.key] = held
        else:
            self._held.pop(change.key, None)

    # Alone

    def _go_on_alone(self) -> None:
        self.num_times_alone += 1
        alone = self._alone = Alone(self._num_gateways, self._clock())
        logger.error("%s cannot be reached: this gateway grants 1/%d of each limit", self._name, self._num_gateways)
        waiting, self._queue = [*self._asked, *self._queue], []
        for asked in waiting:
            if asked.is_open:
                self._answer_alone(asked, alone)

    def _answer_alone(self, asked: Asked, alone: Alone) -> None:

        def settle(changes: Iterable[Change]) -> None:
            for change in changes:
                alone.change(change, self._clock())

        purse = Purse(settle, alone.share)
        asked.answer(alone.ask(asked.ask, self._clock()), purse)

    def _return(self, alone: Alone) -> None:
        logger.warning("%s can be reached again", self._name)
        self._alone = None
        for debt in alone.debts():
            self._note(debt)


def release(purse: Purse, ask: Ask) -> None:
    """Give back all that was granted."""
    purse.change([Change(want.key, want.capacity, released=want.amount) for want in ask.wants])


def _sum(before: Change | None, change: Change) -> Change:
    if before is None:
        return change
    return Change(
        change.key,
        change.capacity,
        before.burned + change.burned,
        before.released + change.released,
        before.taken + change.taken,
    )
