"""What is known of a call's money; attempts outlive their job; what the reconcilers have seen."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


QUEUES = "'generation', 'embeddings', 'generation-bulk', 'embeddings-bulk'"


def upgrade() -> None:
    op.drop_constraint("queue_known", "jobs")
    op.create_check_constraint("queue_known", "jobs", f"queue IN ({QUEUES}, 'resumed')")
    op.add_column("attempts", sa.Column("user_id", sa.Uuid()))
    op.add_column(
        "attempts", sa.Column("billing", sa.Text(), nullable=False, server_default="unknown")
    )
    op.add_column("attempts", sa.Column("expected_tokens", sa.Integer()))
    op.add_column("attempts", sa.Column("expected_cost_usd", sa.Numeric(18, 10)))
    op.execute(
        "UPDATE attempts SET user_id = jobs.user_id, billing = CASE "
        "WHEN attempts.state = 'succeeded' THEN 'billed' "
        "WHEN attempts.state = 'failed' AND attempts.cost_usd = 0 THEN 'not_billed' "
        "ELSE 'unknown' END FROM jobs WHERE jobs.id = attempts.job_id"
    )
    op.create_check_constraint(
        "billing_known", "attempts", "billing IN ('unknown', 'not_billed', 'billed')"
    )
    op.create_foreign_key(
        "attempts_user_id_fkey", "attempts", "users", ["user_id"], ["id"], ondelete="SET NULL"
    )
    op.alter_column("attempts", "job_id", nullable=True)
    _job_key(ondelete="SET NULL")
    op.create_index(
        "attempts_unsettled",
        "attempts",
        ["id"],
        postgresql_where=sa.text("billing = 'unknown'"),
    )
    op.create_table(
        "watch",
        sa.Column("id", sa.Integer(), server_default="1", primary_key=True),
        sa.Column("last_round", sa.Float(), nullable=False),
        sa.Column("blind", JSONB(), nullable=False),
        sa.CheckConstraint("id = 1", name="one_row"),
    )
    op.create_index(
        "attempts_jobless",
        "attempts",
        ["started_at"],
        postgresql_where=sa.text("job_id IS NULL"),
    )
    op.create_index(
        "jobs_ended",
        "jobs",
        ["finished_at"],
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.execute(
        "UPDATE jobs SET queue = CASE kind WHEN 'embedding' THEN 'embeddings' ELSE kind END "
        "WHERE queue = 'resumed'"
    )
    op.drop_constraint("queue_known", "jobs")
    op.create_check_constraint("queue_known", "jobs", f"queue IN ({QUEUES})")
    op.drop_table("watch")
    op.drop_index("jobs_ended", "jobs")
    op.drop_index("attempts_jobless", "attempts")
    op.drop_index("attempts_unsettled", "attempts")
    op.execute("DELETE FROM attempts WHERE job_id IS NULL")
    _job_key(ondelete="CASCADE")
    op.alter_column("attempts", "job_id", nullable=False)
    op.drop_constraint("attempts_user_id_fkey", "attempts")
    op.drop_constraint("billing_known", "attempts")
    for column in ("expected_cost_usd", "expected_tokens", "billing", "user_id"):
        op.drop_column("attempts", column)


def _job_key(*, ondelete: str) -> None:
    op.drop_constraint("attempts_job_id_fkey", "attempts")
    op.create_foreign_key(
        "attempts_job_id_fkey", "attempts", "jobs", ["job_id"], ["id"], ondelete=ondelete
    )
