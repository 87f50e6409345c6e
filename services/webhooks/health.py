"""The health of endpoints: one that fails again and again rests, and is disabled in the end."""

import logging
from collections.abc import Iterable
from urllib.parse import urlsplit
from uuid import UUID

from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.repositories.webhooks.endpoints import Judged
from promptstack.repositories.webhooks.sending import DueDelivery
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditLog
from promptstack.services.notifications.service import NotificationService
from promptstack.services.webhooks.answers import Answer

logger = logging.getLogger(__name__)

REST_AFTER = 3
"""Failures in a row after which an endpoint rests before anything else is sent there: a receiver
that starts again must not be disabled since a hundred events come in that second."""
MOST_REST_SECONDS = 300.0
FAILING = "{failures} attempts to deliver failed, one after the other. The last: {error}"
EVENT = "webhook_disabled"
"""Of the mail. Nobody has to choose it: nobody sees by themselves that nothing comes."""
GONE = "The receiver answered 410: it wants no more events."


class EndpointHealth:
    """Counts failures in a row, and disables endpoints."""

    def __init__(
        self, notifications: NotificationService, *, disable_after: int, rest_seconds: float
    ) -> None:
        """Take the failures after which an endpoint is disabled, and its first rest."""
        self._notifications = notifications
        self._disable_after = disable_after
        self._rest_seconds = rest_seconds

    def note(self, unit: UnitOfWork, attempts: Iterable[tuple[DueDelivery, Answer]]) -> None:
        """Note what came of attempts that ended together: who took any of them is well."""
        judged: dict[UUID, Judged] = {}
        last: dict[UUID, Answer] = {}
        gone: dict[UUID, None] = {}
        for delivery, answer in attempts:
            key, began = delivery.endpoint_id, delivery.claimed_at
            before = judged.get(key, Judged(key, False, began))
            is_alive = before.is_alive or answer.is_taken
            judged[key] = Judged(key, is_alive, max(before.began, began))
            if not answer.is_taken:
                last[key] = answer
            if answer.is_gone:
                gone[key] = None
        failing = unit.webhooks.note_health(
            list(judged.values()), REST_AFTER, self._rest_seconds, MOST_REST_SECONDS
        )
        for endpoint_id in gone:
            self._disable(unit, endpoint_id, GONE)
        for one in failing:
            if one.failures >= self._disable_after:
                why = FAILING.format(failures=one.failures, error=last[one.id].error)
                self._disable(unit, one.id, why)

    def _disable(self, unit: UnitOfWork, endpoint_id: UUID, reason: str) -> None:
        endpoint = unit.webhooks.disable(endpoint_id, reason)
        if endpoint is None:
            return
        logger.warning("the webhook endpoint %s is disabled: %s", endpoint_id, reason)
        AuditLog.record(
            unit,
            actor=Actor.system(),
            action=Action.WEBHOOK_DISABLED,
            object=ObjectKind.WEBHOOK.of(endpoint_id),
            detail={"owner_id": endpoint.user_id, "reason": reason},
        )
        user = unit.users.get(endpoint.user_id) if endpoint.user_id else None
        if user is None or user.disabled_at is not None or not self._notifications.is_on:
            return
        self._notifications.add(
            unit,
            user.id,
            f"Webhook to {urlsplit(endpoint.url or '').hostname} is disabled",
            f"Nothing is sent to the webhook endpoint {endpoint_id} any more.\n\n{reason}\n\n"
            "Its events are kept for some days, and go out when you enable it again:\n"
            f"promptstack webhooks enable {endpoint_id}\n",
            key=f"webhook:{endpoint_id}:{endpoint.disabled_at}",
            event=EVENT,
        )
