"""Sends events until their receivers have them.

Each worker takes deliveries that are due from the ledger, and holds each by a lease. If it dies,
the lease ends and another worker sends the event again, under the same id. The requests run on the
event loop beside the jobs and take no job's place; a receiver that hangs keeps only its own events
waiting.
"""

import json
import logging
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from promptstack.config.errors import PromptStackError
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.repositories.webhooks.sending import DueDelivery, Room, SettledDelivery
from promptstack.services.llm.event_loop import EventLoop
from promptstack.services.webhooks.answers import Answer
from promptstack.services.webhooks.events import event_body, event_name
from promptstack.services.webhooks.health import EndpointHealth
from promptstack.services.webhooks.secrets import SecretBox, signed_headers

if TYPE_CHECKING:
    from promptstack.services.webhooks.receivers import Receivers

logger = logging.getLogger(__name__)

MOST_DELIVERIES = 100
"""Under way at once in a worker."""
MOST_OF_ENDPOINT = 30
"""Of these to one endpoint, or to all addresses that one user's jobs and runs have named."""
MOST_OF_TARGET = 10
"""Of these to one endpoint, or one such host. One that has just failed gets one at a time."""
JITTER = 0.1
"""The share by which a wait is longer at most: what failed together does not come together."""
OUR_WAIT_SECONDS = 30.0
"""Before the next attempt where this worker could send nothing: another one may be able to."""


@dataclass(frozen=True)
class _Attempt:
    """A delivery that was tried, and what came of it."""

    delivery: DueDelivery
    answer: Answer


class WebhookSender:
    """Sends what is due. One thread calls `run_once`."""

    def __init__(
        self,
        ledger: Ledger,
        loop: EventLoop,
        receivers: "Receivers",
        secrets: SecretBox,
        health: EndpointHealth,
        *,
        retry_seconds: Sequence[float],
        lease_seconds: float,
    ) -> None:
        """Take the wait before each attempt, and how long this worker may hold a delivery."""
        self._ledger = ledger
        self._loop = loop
        self._receivers = receivers
        self._secrets = secrets
        self._health = health
        self._retry_seconds = retry_seconds
        self._lease_seconds = lease_seconds
        self._under_way: dict[tuple[UUID, int], DueDelivery] = {}
        """By their claims: a replay may be sent beside the attempt before it."""
        self._tried: deque[_Attempt] = deque()
        self._is_closed = threading.Event()
        self.wake: Callable[[], None] = lambda: None
        """Called when something came of a delivery."""

    def run_once(self) -> None:
        """Note what came of deliveries, and begin those that are due. Raises as the ledger does."""
        tried = list(self._tried)
        if not tried and not self._is_any_due():
            return
        with self._ledger.transaction() as unit:
            if tried:
                self._settle(unit, tried)
            taken = self._take(unit, tried)
        # What is noted is forgotten only now: the commit might have failed.
        for attempt in tried:
            self._tried.popleft()
            del self._under_way[attempt.delivery.claim]
        for delivery in taken:
            self._under_way[delivery.claim] = delivery
            self._loop.submit(self._deliver(delivery))

    def close(self) -> None:
        """Note what came, and give back what is under way: another worker sends it."""
        self._is_closed.set()
        try:
            with self._ledger.transaction() as unit:
                tried = list(self._tried)
                if tried:
                    self._settle(unit, tried)
                done = {attempt.delivery.claim for attempt in tried}
                # Of two claims of a delivery the later one, which holds it, comes last.
                if left := dict(claim for claim in self._under_way if claim not in done):
                    unit.webhook_sending.release(left)
        except PromptStackError as error:
            logger.warning("deliveries of events are given back when their leases end: %s", error)
        self._loop.run(self._receivers.aclose())

    def _is_any_due(self) -> bool:
        with self._ledger.statement() as statement:
            return statement.signs.of_webhooks()

    def _take(self, unit: UnitOfWork, tried: Sequence[_Attempt]) -> list[DueDelivery]:
        done = {attempt.delivery.claim for attempt in tried}
        busy = Counter(one.target for claim, one in self._under_way.items() if claim not in done)
        room = Room(MOST_DELIVERIES - busy.total(), MOST_OF_ENDPOINT, MOST_OF_TARGET, busy)
        if room.deliveries <= 0 or self._is_closed.is_set():
            return []
        unit.webhook_sending.hold_disabled()
        return unit.webhook_sending.claim(room, self._lease_seconds)

    async def _deliver(self, delivery: DueDelivery) -> None:
        try:
            answer = await self._send(delivery)
        except PromptStackError as error:
            logger.warning("an event could not be sent: %s", error)
            answer = Answer(None, str(error), 0.0, is_ours=True)
        except Exception as error:
            # It must not stay under way for ever.
            logger.exception("an event could not be sent")
            why = f"It could not be sent ({type(error).__name__})."
            answer = Answer(None, why, 0.0, is_ours=True)
        self._tried.append(_Attempt(delivery, answer))
        self.wake()

    async def _send(self, delivery: DueDelivery) -> Answer:
        body = event_body(
            delivery.event_id,
            delivery.type,
            delivery.object_id,
            delivery.created_at,
            is_response=delivery.is_response,
        )
        sealed = filter(None, (delivery.secret, delivery.previous_secret))
        secrets = [self._secrets.open(one) for one in sealed]
        headers = signed_headers(secrets, event_name(delivery.event_id), delivery.claimed_at, body)
        return await self._receivers.post(delivery.url, body, headers, delivery.user_id)

    def _settle(self, unit: UnitOfWork, tried: Sequence[_Attempt]) -> None:
        # Of two attempts of a delivery, the one that was taken tells, else the later one.
        found = sorted(tried, key=lambda one: (one.answer.is_taken, one.delivery.claims))
        last = {one.delivery.id: one for one in found}
        unit.webhook_sending.settle([self._settled(attempt) for attempt in last.values()])
        answered = [(one.delivery, one.answer) for one in tried if not one.answer.is_ours]
        self._health.note(unit, answered)

    def _settled(self, attempt: _Attempt) -> SettledDelivery:
        answer = attempt.answer
        entry = {
            "at": attempt.delivery.claimed_at.isoformat(timespec="milliseconds"),
            "status": answer.status,
            "error": answer.error,
            "seconds": answer.seconds,
        }
        delivery = attempt.delivery
        wait = None if answer.is_taken else self._wait(delivery.failures + 1, answer)
        return SettledDelivery(
            delivery.id,
            delivery.claims,
            answer.is_taken,
            not answer.is_taken and not answer.is_ours,
            wait,
            json.dumps(entry),
        )

    def _wait(self, failures: int, answer: Answer) -> float | None:
        """The seconds before the next attempt after so many failed ones; None: there is none."""
        if answer.is_ours:
            return OUR_WAIT_SECONDS
        if failures >= len(self._retry_seconds):
            return None
        planned = self._retry_seconds[failures]
        jitter = random.uniform(1, 1 + JITTER)  # noqa: S311 - it protects nothing
        return max(planned * jitter, answer.retry_after or 0.0)
