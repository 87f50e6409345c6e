"""Answers of models, found by what was asked."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import LargeBinary, Table, bindparam, delete, func, select, text, update
from sqlalchemy.orm import Session

from promptstack.repositories.base import change_rows
from promptstack.repositories.run_models import Answer, Run
from promptstack.repositories.wire_values import ArrayLiteral, dump_jsonb


class AnswerRepository:
    """One answer for each provider, model and content."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def store(self, provider: str, model: str, results: Mapping[bytes, Mapping[str, Any]]) -> None:
        """Store answers by their content. An answer that is there already stays."""
        # In one order, so that two workers with the same contents don't deadlock.
        rows = [
            {"content_hash": content.hex(), "result": results[content]}
            for content in sorted(results)
        ]
        if rows:
            whose = {"provider": provider, "model": model}
            self._session.execute(_STORE, {**whose, "rows": dump_jsonb(rows)})

    def find_stored(self, provider: str, model: str, hashes: Sequence[bytes]) -> set[bytes]:
        """Return the contents that have an answer, and note that it is used."""
        if not hashes:
            return set()
        these = {"the_provider": provider, "the_model": model, "the_hashes": list(hashes)}
        found = set(map(bytes, self._session.scalars(_FIND, these)))
        if found:
            self._session.execute(_USE, these)
        return found

    def prune(self, retention: float, limit: int = 500) -> int:
        """Delete up to `limit` answers that no run used in the last `retention` seconds.

        Answers that a run which is still here may have used stay.
        """
        # Ids are in order of creation, and have an index.
        oldest_run = select(Run.created_at).order_by(Run.id).limit(1).scalar_subquery()
        old = (
            select(Answer.provider, Answer.model, Answer.content_hash)
            .where(
                # A day more, as `used_at` is raised once a day.
                Answer.used_at < func.now() - timedelta(seconds=retention, days=1),
                Answer.used_at < func.coalesce(oldest_run, func.now()) - timedelta(days=1),
            )
            .order_by(Answer.used_at)
            .limit(limit)
            .subquery()
        )
        is_old = (
            Answer.provider == old.c.provider,
            Answer.model == old.c.model,
            Answer.content_hash == old.c.content_hash,
        )
        return change_rows(self._session, delete(Answer).where(*is_old))


# Built once: building a statement costs more than running it.

_ANSWERS = cast("Table", Answer.__table__)
_THESE = (
    _ANSWERS.c.provider == bindparam("the_provider"),
    _ANSWERS.c.model == bindparam("the_model"),
    _ANSWERS.c.content_hash == func.any(bindparam("the_hashes", type_=ArrayLiteral(LargeBinary()))),
)
_FIND = select(_ANSWERS.c.content_hash).where(*_THESE)
_USE = (
    update(_ANSWERS)
    .where(*_THESE, _ANSWERS.c.used_at < func.now() - timedelta(days=1))
    .values(used_at=func.now())
)
# Rows travel as one JSON document, which PostgreSQL reads.
_STORE = text("""
INSERT INTO answers (provider, model, content_hash, result)
SELECT :provider, :model, decode(content_hash, 'hex'), result
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS new(content_hash text, result jsonb)
ON CONFLICT DO NOTHING
""")
