"""Reservations: which running job is about to pay for a content's vector."""

from collections.abc import Sequence

from sqlalchemy import (
    Integer,
    LargeBinary,
    Text,
    Uuid,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert

from repositories.base import BaseRepository
from repositories.jobs import Claim
from repositories.models import Job, JobState, Reservation

UNSEEN = {"synchronize_session": False}
"""No session holds these rows as objects: what is deleted need not be sent back."""


class ReservationRepository(BaseRepository[Reservation]):
    """One row a content that is being embedded; it holds while its attempt runs."""

    model = Reservation

    def take(self, claim: Claim, hashes: Sequence[bytes]) -> set[bytes]:
        """Reserve contents for a claim; those that no other running attempt has reserved."""
        holds = exists().where(
            Job.id == Reservation.job_id,
            Job.attempt == Reservation.attempt,
            Job.state == JobState.RUNNING,
        )
        # An array, since a document may have thousands. In one order: two jobs with the same
        # passages would else wait for each other.
        contents = select(
            literal(claim.provider, Text),
            literal(claim.model, Text),
            func.unnest(literal(sorted(set(hashes)), ARRAY(LargeBinary))),
            literal(claim.job_id, Uuid),
            literal(claim.attempt, Integer),
        )
        columns = ["provider", "model", "content_hash", "job_id", "attempt"]
        taken = (
            insert(Reservation)
            .from_select(columns, contents)
            .on_conflict_do_update(
                index_elements=[Reservation.provider, Reservation.model, Reservation.content_hash],
                set_={"job_id": claim.job_id, "attempt": claim.attempt},
                where=or_(Reservation.job_id == claim.job_id, ~holds),
            )
            .returning(Reservation.content_hash)
        )
        return set(map(bytes, self._session.scalars(taken)))

    def release(self, claim: Claim, hashes: Sequence[bytes]) -> None:
        """Give up the claim's reservations of these contents."""
        self._session.execute(
            delete(Reservation).where(
                Reservation.provider == claim.provider,
                Reservation.model == claim.model,
                Reservation.content_hash.in_(hashes),
                Reservation.job_id == claim.job_id,
            ),
            execution_options=UNSEEN,
        )

    def forget_idle(self) -> None:
        """Sweep away what no running job holds."""
        runs = exists().where(Job.id == Reservation.job_id, Job.state == JobState.RUNNING)
        self._session.execute(delete(Reservation).where(~runs), execution_options=UNSEEN)
