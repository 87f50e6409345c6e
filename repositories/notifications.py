"""Notifications and their deliveries. A notification is a job; its mail is in the job's request."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, exists, func, select, update

from promptstack.repositories.base import BaseRepository
from promptstack.repositories.models import Job, JobKind, JobState
from promptstack.repositories.notification_models import Delivery, DeliveryState
from promptstack.repositories.pages import Page, PageQuery, read_page


@dataclass(frozen=True)
class NotificationRow:
    """A notification, without its text."""

    id: UUID
    state: str
    user_id: str
    event: str | None
    subject: str
    message_id: str
    attempt: int
    error_code: str | None
    error: str | None
    not_before: datetime | None
    created_at: datetime
    finished_at: datetime | None
    recipient: str | None
    """Where it was last handed in."""
    accepted: int
    """Times that the mail server has accepted it."""
    uncertain: int
    """Times that it may have, and nobody knows."""


class DeliveryRepository(BaseRepository[Delivery]):
    """Deliveries, and the notifications that they belong to."""

    model = Delivery

    def begin(self, job_id: UUID, number: int, recipient: str) -> int:
        """Note that a mail is about to leave; the delivery's id."""
        return self.create(job_id=job_id, number=number, recipient=recipient).id

    def settle(
        self, delivery_id: int, state: DeliveryState, code: int | None, reply: str | None
    ) -> None:
        """Note what came of it."""
        self._session.execute(
            update(Delivery)
            .where(Delivery.id == delivery_id)
            .values(state=state, reply_code=code, reply=reply, finished_at=func.now())
        )

    def lose(self, job_id: UUID, why: str) -> None:
        """Note that nobody will ever hear what came of deliveries that were under way."""
        self._session.execute(
            update(Delivery)
            .where(Delivery.job_id == job_id, Delivery.state == DeliveryState.STARTED)
            .values(state=DeliveryState.UNKNOWN, reply=why, finished_at=func.now())
        )

    def was_accepted(self, job_id: UUID) -> bool:
        """Whether the mail server is known to have accepted the mail."""
        query = select(Delivery.id).where(
            Delivery.job_id == job_id, Delivery.state == DeliveryState.ACCEPTED
        )
        return self._session.scalars(query.limit(1)).first() is not None

    def notifications(
        self,
        asked: PageQuery,
        *,
        state: JobState | None = None,
        is_uncertain: bool = False,
    ) -> Page[NotificationRow]:
        """A page of notifications, newest first."""
        conditions = [Job.kind == JobKind.NOTIFICATION]
        if state is not None:
            conditions.append(Job.state == state)
        if is_uncertain:
            conditions.append(exists().where(Delivery.job_id == Job.id, _may_be_accepted()))
        request = Job.request
        accepted = _count(Delivery.state == DeliveryState.ACCEPTED)
        last = select(Delivery.recipient).where(Delivery.job_id == Job.id)
        query = select(
            Job.id,
            Job.state,
            request["user_id"].as_string().label("user_id"),
            request["event"].as_string().label("event"),
            request["subject"].as_string().label("subject"),
            request["message_id"].as_string().label("message_id"),
            Job.attempt,
            Job.error_code,
            Job.error,
            Job.not_before,
            Job.created_at,
            Job.finished_at,
            last.order_by(Delivery.id.desc()).limit(1).scalar_subquery().label("recipient"),
            accepted.label("accepted"),
            _count(_may_be_accepted()).label("uncertain"),
        ).where(*conditions)
        found = read_page(self._session, query, Job.id, asked)
        return found.of(lambda row: NotificationRow(**row._mapping))


def _may_be_accepted() -> ColumnElement[bool]:
    """No reply came, and none will: also where its worker died and nobody has missed it yet."""
    is_under_way = and_(Job.state == JobState.RUNNING, Job.attempt == Delivery.number)
    is_left = and_(Delivery.state == DeliveryState.STARTED, ~is_under_way)
    return (Delivery.state == DeliveryState.UNKNOWN) | is_left


def _count(condition: ColumnElement[bool]) -> Any:
    query = select(func.count()).where(Delivery.job_id == Job.id, condition)
    return query.correlate(Job).scalar_subquery()
