"""Bulk jobs that were not sent yet are found by user, and not among the jobs without a message."""

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
    op.create_index(
        "jobs_held", "jobs", ["queue", sa.text(USER), "id"], postgresql_where=sa.text(HELD)
    )
    op.drop_index("jobs_unrung", "jobs")
    op.create_index("jobs_unrung", "jobs", ["not_before"], postgresql_where=sa.text(NOT_HELD))


def downgrade() -> None:
    op.drop_index("jobs_unrung", "jobs")
    op.create_index("jobs_unrung", "jobs", ["not_before"], postgresql_where=sa.text(UNSENT))
    op.drop_index("jobs_held", "jobs")
