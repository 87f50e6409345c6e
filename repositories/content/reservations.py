"""Reservations: which running job is embedding a content now."""

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    CursorResult,
    Executable,
    Integer,
    LargeBinary,
    Table,
    Text,
    Uuid,
    bindparam,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import insert

from promptstack.repositories.base import BaseRepository
from promptstack.repositories.content_models import Reservation
from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.models import Job, JobState
from promptstack.repositories.wire_values import ArrayLiteral


class ReservationRepository(BaseRepository[Reservation]):
    """One row for each content that is being embedded. It is valid while its attempt runs."""

    model = Reservation

    def take(self, claim: Claim, hashes: Sequence[bytes]) -> set[bytes]:
        """Reserve contents for a claim. Returns those that no other running attempt has."""
        # In one order, so that two jobs with the same passages don't deadlock.
        wanted = sorted(set(hashes))
        of_claim = {**_of(claim), "the_hashes": wanted}
        taken = cast("CursorResult[None]", self._session.execute(_TAKE, of_claim)).rowcount
        if taken == len(wanted):
            return set(wanted)
        return set(map(bytes, self._session.scalars(_HELD, of_claim)))

    def release(self, claim: Claim, hashes: Sequence[bytes]) -> None:
        """Give up the claim's reservations of these contents.

        Rows that another job has locked just now are skipped, and stay until the job ends: waiting
        for a job that may wait for this one would be a deadlock.
        """
        if hashes:
            self._session.execute(_RELEASE, {**_of(claim), "the_hashes": list(hashes)})

    def forget_idle(self) -> None:
        """Delete reservations that no running job holds."""
        self._session.execute(_FORGET_IDLE)


def _of(claim: Claim) -> dict[str, object]:
    return {
        "the_provider": claim.provider,
        "the_model": claim.model,
        "the_job": claim.job_id,
        "the_attempt": claim.attempt,
    }


# Built once: building a statement costs more than running it.

_RESERVATIONS = cast("Table", Reservation.__table__)
_HASHES = bindparam("the_hashes", type_=ArrayLiteral(LargeBinary()))
_NEW = {
    "provider": bindparam("the_provider", type_=Text),
    "model": bindparam("the_model", type_=Text),
    "content_hash": func.unnest(_HASHES),
    "job_id": bindparam("the_job", type_=Uuid),
    "attempt": bindparam("the_attempt", type_=Integer),
}
_HOLDS = exists().where(
    Job.id == _RESERVATIONS.c.job_id,
    Job.attempt == _RESERVATIONS.c.attempt,
    Job.state == JobState.RUNNING,
)
_TAKE = (
    insert(_RESERVATIONS)
    .from_select(list(_NEW), select(*_NEW.values()))
    .on_conflict_do_update(
        index_elements=[_RESERVATIONS.c[name] for name in ("provider", "model", "content_hash")],
        set_={"job_id": _NEW["job_id"], "attempt": _NEW["attempt"]},
        where=or_(_RESERVATIONS.c.job_id == _NEW["job_id"], ~_HOLDS),
    )
)
_THESE = (
    _RESERVATIONS.c.provider == _NEW["provider"],
    _RESERVATIONS.c.model == _NEW["model"],
    _RESERVATIONS.c.content_hash == func.any(_HASHES),
    _RESERVATIONS.c.job_id == _NEW["job_id"],
    _RESERVATIONS.c.attempt == _NEW["attempt"],
)
_HELD = select(_RESERVATIONS.c.content_hash).where(*_THESE)


def _delete(*those: ColumnElement[bool]) -> Executable:
    """Delete rows that nobody else has locked."""
    row: ColumnElement[Any] = literal_column("ctid")
    free = select(row).select_from(_RESERVATIONS).where(*those).with_for_update(skip_locked=True)
    return delete(_RESERVATIONS).where(row == func.any(func.array(free.scalar_subquery())))


_RELEASE = _delete(*_THESE)
_FORGET_IDLE = _delete(~_HOLDS)
