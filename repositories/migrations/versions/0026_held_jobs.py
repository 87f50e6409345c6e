"""Bulk jobs that were not sent yet are found by user, and not among the jobs without a message.

Workers of the version before read all jobs without a message, for which the old index is gone: it
takes them longer, until they are restarted.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

UNSENT = "state = 'queued' AND rung_at IS NULL"
IS_BULK = "queue IN ('generation-bulk', 'embeddings-bulk')"
HELD = f"{UNSENT} AND not_before IS NULL AND run_id IS NULL AND {IS_BULK}"
NOT_HELD = f"{UNSENT} AND (not_before IS NOT NULL OR run_id IS NOT NULL OR NOT {IS_BULK})"
USER = "coalesce(user_id, '00000000-0000-0000-0000-000000000000'::uuid)"


def upgrade() -> None:
    # Nothing else belongs into this step: it is in no transaction, and may have to be done again.
    with op.get_context().autocommit_block():
        _build("jobs_held", ["queue", sa.text(USER), "id"], HELD)
        _build("jobs_unsent", ["not_before"], NOT_HELD)
        _drop("jobs_unrung")


def downgrade() -> None:
    op.create_index("jobs_unrung", "jobs", ["not_before"], postgresql_where=sa.text(UNSENT))
    op.drop_index("jobs_unsent", "jobs")
    op.drop_index("jobs_held", "jobs")


def _build(name: str, columns: list[Any], where: str) -> None:
    _drop(name)  # also what a build left that was broken off
    op.create_index(
        name, "jobs", columns, postgresql_where=sa.text(where), postgresql_concurrently=True
    )


def _drop(name: str) -> None:
    op.drop_index(name, "jobs", if_exists=True, postgresql_concurrently=True)
