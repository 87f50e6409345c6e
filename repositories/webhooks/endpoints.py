"""The endpoints of webhooks."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, case, func, literal_column, select, text, update

from promptstack.repositories.base import BaseRepository, change_rows
from promptstack.repositories.pages import Page, PageQuery
from promptstack.repositories.webhook_models import (
    OWNER,
    DeliveryState,
    WebhookDelivery,
    WebhookEndpoint,
)
from promptstack.repositories.wire_values import BatchStatement

NOBODY = UUID(int=0)
"""Stands in the indexes for callers without a user."""
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('webhooks:' || :owner, 0))")


class Judged(NamedTuple):
    """What some attempts tell of an endpoint."""

    id: UUID
    is_alive: bool
    """Whether it took an event."""
    began: datetime
    """When the last of them began."""


class EndpointHealth(NamedTuple):
    """How an endpoint does, after some attempts."""

    id: UUID
    user_id: UUID | None
    failures: int


class WebhookRepository(BaseRepository[WebhookEndpoint]):
    """Endpoints, and the row of a user whose secret signs for addresses that jobs name."""

    model = WebhookEndpoint

    def lock_user(self, user_id: UUID | None) -> None:
        """Let nobody else add an endpoint of this user before this transaction ends."""
        self._session.execute(_LOCK, {"owner": str(user_id or NOBODY)})

    def count(self, user_id: UUID | None) -> int:
        """How many endpoints a user has."""
        query = select(func.count()).where(belongs_to(user_id), WebhookEndpoint.url.is_not(None))
        return self._session.scalar(query) or 0

    def find(
        self, endpoint_id: UUID, *, user_id: UUID | None, is_anybodys: bool
    ) -> WebhookEndpoint | None:
        """An endpoint of this user, or of anybody, locked until the transaction ends."""
        conditions = [WebhookEndpoint.id == endpoint_id, WebhookEndpoint.url.is_not(None)]
        if not is_anybodys:
            conditions.append(belongs_to(user_id))
        query = select(WebhookEndpoint).where(*conditions).with_for_update(key_share=True)
        return self._session.scalars(query).one_or_none()

    def own_secret(self, user_id: UUID | None) -> WebhookEndpoint | None:
        """The row whose secret signs for the addresses that this user's jobs and runs name."""
        query = select(WebhookEndpoint).where(belongs_to(user_id), WebhookEndpoint.url.is_(None))
        return self._session.scalars(query.with_for_update(key_share=True)).one_or_none()

    def has_own_secret(self, user_id: UUID | None) -> bool:
        """Whether there is one."""
        query = select(WebhookEndpoint.id).where(belongs_to(user_id), WebhookEndpoint.url.is_(None))
        return self._session.scalar(query) is not None

    def rotate(
        self, endpoint: WebhookEndpoint, secret: str, seconds: float
    ) -> WebhookEndpoint | None:
        """Give an endpoint a new secret; the one it has now signs for `seconds` more.

        While an older one signs still, that one stays: a receiver may know no other.
        """
        is_repeated = WebhookEndpoint.previous_until > func.now()
        return self._set(
            endpoint.id,
            secret=secret,
            previous_secret=case(
                (is_repeated, WebhookEndpoint.previous_secret), else_=WebhookEndpoint.secret
            ),
            previous_until=case(
                (is_repeated, WebhookEndpoint.previous_until),
                else_=func.now() + timedelta(seconds=seconds),
            ),
        )

    def disable(self, endpoint_id: UUID, reason: str) -> WebhookEndpoint | None:
        """Send nothing there from now on; its events wait.

        None where it is disabled already, or is the row of a user's own secret.
        """
        can_be = (WebhookEndpoint.disabled_at.is_(None), WebhookEndpoint.url.is_not(None))
        return self._set(endpoint_id, *can_be, disabled_at=func.now(), disabled_reason=reason)

    def enable(self, endpoint_id: UUID) -> WebhookEndpoint | None:
        """Send there again, also what has waited."""
        endpoint = self._set(
            endpoint_id, disabled_at=None, disabled_reason=None, failures=0, rests_until=None
        )
        change_rows(
            self._session,
            update(WebhookDelivery)
            .where(
                WebhookDelivery.endpoint_id == endpoint_id,
                WebhookDelivery.state == DeliveryState.PENDING,
                WebhookDelivery.due_at.is_(None),
            )
            .values(due_at=func.now()),
        )
        return endpoint

    def note_health(
        self, judged: Sequence[Judged], rest_after: int, rest_seconds: float, most_rest: float
    ) -> list[EndpointHealth]:
        """Count failures in a row of endpoints; those that have failed now.

        Attempts that ran at the same time count once. From the failure `rest_after` on, an endpoint
        rests for `rest_seconds`, twice as long after each other one, and never longer than
        `most_rest`.
        """
        rows = [one._asdict() for one in judged]
        found = _NOTE_HEALTH.run(
            self._session, rows, after=rest_after, seconds=rest_seconds, most=most_rest
        )
        return [EndpointHealth(row.id, row.user_id, row.failures) for row in found if row.failures]

    def end_rest(self, endpoint_id: UUID) -> None:
        """Send there at once, though so many attempts have failed: a person wants to see it."""
        self._set(endpoint_id, WebhookEndpoint.rests_until.is_not(None), rests_until=None)

    def encrypted(self) -> Sequence[WebhookEndpoint]:
        """All rows, each with its secrets, locked."""
        return self._session.scalars(select(WebhookEndpoint).with_for_update(key_share=True)).all()

    def page_of(
        self, user_id: UUID | None, asked: PageQuery, *, is_everybodys: bool = False
    ) -> Page[WebhookEndpoint]:
        """A page of the endpoints of a user, or of everybody."""
        conditions: list[ColumnElement[bool]] = [WebhookEndpoint.url.is_not(None)]
        if not is_everybodys:
            conditions.append(belongs_to(user_id))
        return self.get_page(asked, *conditions)

    def _set(
        self, endpoint_id: UUID, *conditions: ColumnElement[bool], **values: Any
    ) -> WebhookEndpoint | None:
        changed = (
            update(WebhookEndpoint)
            .where(WebhookEndpoint.id == endpoint_id, *conditions)
            .values(**values)
            .returning(WebhookEndpoint)
        )
        how = {"populate_existing": True}
        return self._session.scalars(changed, execution_options=how).one_or_none()


def belongs_to(user_id: UUID | None) -> ColumnElement[bool]:
    """Whether an endpoint is of this user: word by word as in the indexes."""
    owner: ColumnElement[UUID] = literal_column(OWNER)
    return owner == (user_id or NOBODY)


_NOTE_HEALTH = BatchStatement(
    "id uuid, is_alive boolean, began timestamptz",
    """
, changed AS (
    SELECT endpoints.id, CASE WHEN given.is_alive THEN 0 ELSE endpoints.failures + 1 END AS failures
    FROM given JOIN webhook_endpoints AS endpoints ON endpoints.id = given.id
    WHERE endpoints.url IS NOT NULL AND CASE
        WHEN given.is_alive THEN endpoints.failures > 0
        ELSE endpoints.judged_at IS NULL OR endpoints.judged_at <= given.began
    END
    ORDER BY endpoints.id FOR NO KEY UPDATE OF endpoints
)
UPDATE webhook_endpoints AS endpoints SET
    failures = changed.failures,
    judged_at = now(),
    rests_until = CASE
        WHEN changed.failures >= :after THEN now() + make_interval(
            secs => least(:most, :seconds * power(2, least(changed.failures - :after, 20)))
        )
    END
FROM changed WHERE endpoints.id = changed.id
RETURNING endpoints.id, endpoints.user_id, endpoints.failures
""",
)
