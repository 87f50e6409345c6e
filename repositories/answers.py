"""Answers of models, found by what was asked."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ARRAY, LargeBinary, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from repositories.run_models import Answer, Run


class AnswerRepository:
    """One answer a provider, model and content."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def store(self, provider: str, model: str, results: Mapping[bytes, Mapping[str, Any]]) -> None:
        """Store answers by their content; one that is there already stays."""
        rows = [
            {"provider": provider, "model": model, "content_hash": content, "result": dict(result)}
            # In one order: two workers with the same contents would else wait for each other.
            for content, result in sorted(results.items())
        ]
        if rows:
            self._session.execute(insert(Answer).values(rows).on_conflict_do_nothing())

    def find_stored(self, provider: str, model: str, hashes: Sequence[bytes]) -> set[bytes]:
        """Those of the contents that have an answer, which is in use from now on."""
        if not hashes:
            return set()
        wanted = func.any(literal(list(hashes), ARRAY(LargeBinary)))
        these = (
            Answer.provider == provider,
            Answer.model == model,
            Answer.content_hash == wanted,
        )
        found = set(map(bytes, self._session.scalars(select(Answer.content_hash).where(*these))))
        if found:
            self._session.execute(
                update(Answer)
                .where(*these, Answer.used_at < func.now() - timedelta(days=1))
                .values(used_at=func.now())
                .execution_options(synchronize_session=False)
            )
        return found

    def prune(self, retention: float, limit: int = 500) -> int:
        """Delete up to `limit` answers that no run of the last `retention` seconds was served by.

        Nor any older run that is still here.
        """
        oldest_run = select(func.min(Run.created_at)).scalar_subquery()
        old = (
            select(Answer.provider, Answer.model, Answer.content_hash)
            .where(
                # A day more than it says: `used_at` isn't raised more often.
                Answer.used_at < func.now() - timedelta(seconds=retention, days=1),
                Answer.used_at < func.coalesce(oldest_run, func.now()) - timedelta(days=1),
            )
            .limit(limit)
            .subquery()
        )
        deleted = self._session.scalars(
            delete(Answer)
            .where(
                Answer.provider == old.c.provider,
                Answer.model == old.c.model,
                Answer.content_hash == old.c.content_hash,
            )
            .returning(Answer.content_hash)
            .execution_options(synchronize_session=False)
        )
        return len(deleted.all())
