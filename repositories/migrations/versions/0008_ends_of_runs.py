"""Runs that are being deleted, and those that ended, by when."""

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


def downgrade() -> None:
    op.drop_index("runs_ended", "runs")
    # What they name would else never be deleted.
    op.execute("DELETE FROM outcomes WHERE run_id IN (SELECT run_id FROM pruned_runs)")
    op.execute("DELETE FROM items WHERE run_id IN (SELECT run_id FROM pruned_runs)")
    op.drop_table("pruned_runs")
