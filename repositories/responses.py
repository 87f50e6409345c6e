"""Responses of OpenAI's Responses API, each with its job. `NewJobRepository` adds both."""

from collections.abc import Collection
from typing import Any
from uuid import UUID

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session, undefer

from promptstack.repositories.models import Job
from promptstack.repositories.response_models import StoredResponse


class ResponseRepository:
    """Responses."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(
        self, job_id: UUID, owner: UUID | None, *, with_input: bool = False
    ) -> tuple[StoredResponse, Job] | None:
        """A response that is kept with its job, if it is this user's; without what was asked."""
        query = _kept(owner).where(StoredResponse.id == job_id)
        rows = self._session.execute(query.options(undefer(Job.request)) if with_input else query)
        row = rows.one_or_none()
        return None if row is None else (row[0], row[1])

    def asked_with(self, job_id: UUID) -> dict[str, Any] | None:
        """What the response of a job was asked for with; None where the job is no response's."""
        query = select(StoredResponse.asked).where(StoredResponse.id == job_id)
        return self._session.scalar(query)

    def jobs_of(self, job_ids: Collection[UUID], owner: UUID | None) -> dict[UUID, Job]:
        """The jobs of those of these responses that are kept, and this user's."""
        rows = self._session.execute(_kept(owner).where(StoredResponse.id.in_(job_ids)))
        return {job.id: job for _, job in rows}

    def delete(self, job_id: UUID) -> None:
        """Delete a response, with its job and all that was asked and answered."""
        statement = delete(Job).where(Job.id == job_id)
        self._session.execute(statement, execution_options={"synchronize_session": False})


def _kept(owner: UUID | None) -> Select[StoredResponse, Job]:
    return (
        select(StoredResponse, Job)
        .join(Job, Job.id == StoredResponse.id)
        .where(StoredResponse.is_kept, Job.user_id.is_not_distinct_from(owner))
    )
