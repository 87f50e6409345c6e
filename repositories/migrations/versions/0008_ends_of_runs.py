"""Runs that are being deleted, and indexes for what is asked of runs every second."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("pruned_runs", sa.Column("run_id", sa.Uuid(), primary_key=True))
    op.create_index(
        "runs_ended",
        "runs",
        ["finished_at"],
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_index(
        "jobs_of_run_failed",
        "jobs",
        ["run_id"],
        postgresql_where=sa.text(
            "run_id IS NOT NULL AND state IN ('failed', 'cancelled', 'expired')"
        ),
    )
    op.drop_index("answers_used", "answers")
    op.create_index("answers_used", "answers", ["used_at"])


def downgrade() -> None:
    op.drop_index("answers_used", "answers")
    op.create_index("answers_used", "answers", ["used_at"], postgresql_using="brin")
    op.drop_index("jobs_of_run_failed", "jobs")
    op.drop_index("runs_ended", "runs")
    # What they name would else never be deleted.
    op.execute("DELETE FROM outcomes WHERE run_id IN (SELECT run_id FROM pruned_runs)")
    op.execute("DELETE FROM items WHERE run_id IN (SELECT run_id FROM pruned_runs)")
    op.drop_table("pruned_runs")
