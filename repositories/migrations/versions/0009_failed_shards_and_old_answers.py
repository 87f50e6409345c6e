"""Indexes of failed shards and old answers, built while these tables are written to."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nothing else belongs into this step: it is in no transaction, and may have to be done again.
    with op.get_context().autocommit_block():
        _build(
            "jobs_of_run_failed",
            "jobs",
            ["run_id"],
            postgresql_where=sa.text(
                "run_id IS NOT NULL AND state IN ('failed', 'cancelled', 'expired')"
            ),
        )
        _build("answers_used", "answers", ["used_at"])


def downgrade() -> None:
    op.drop_index("jobs_of_run_failed", "jobs")
    op.drop_index("answers_used", "answers")
    op.create_index("answers_used", "answers", ["used_at"], postgresql_using="brin")


def _build(name: str, table: str, columns: list[str], **how: Any) -> None:
    # Also what a build left that was broken off.
    op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
    op.create_index(name, table, columns, postgresql_concurrently=True, **how)
