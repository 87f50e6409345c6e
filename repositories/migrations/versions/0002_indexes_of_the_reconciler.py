"""Indexes for what the reconciler asks every second, however long the backlog is."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

OPEN = sa.text("finished_at IS NULL")


def upgrade() -> None:
    op.drop_index("jobs_open", "jobs")
    op.create_index("jobs_open", "jobs", ["state"], postgresql_where=OPEN)
    op.create_index("jobs_deadline", "jobs", ["expires_at"], postgresql_where=OPEN)
    unrung = sa.text("state = 'queued' AND rung_at IS NULL")
    op.create_index("jobs_unrung", "jobs", ["not_before"], postgresql_where=unrung)
    queued = sa.text("state = 'queued'")
    op.create_index("jobs_rung", "jobs", ["rung_epoch", "kind", "rung_at"], postgresql_where=queued)
    taken = sa.text("state <> 'queued' AND rung_at IS NOT NULL")
    op.create_index("jobs_taken", "jobs", ["kind", "rung_at"], postgresql_where=taken)


def downgrade() -> None:
    for index in ("jobs_taken", "jobs_rung", "jobs_unrung", "jobs_deadline", "jobs_open"):
        op.drop_index(index, "jobs")
    op.create_index("jobs_open", "jobs", ["state", "not_before"], postgresql_where=OPEN)
