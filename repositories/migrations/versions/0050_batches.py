"""Batches of OpenAI's and Anthropic's kind, and the jobs that take their files in."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0050"
down_revision = "0049"
branch_labels = None
depends_on = None

KINDS = "'generation', 'embedding', 'shard', 'finalization', 'notification', 'operation'"
TIME = sa.DateTime(timezone=True)
IS_OPEN, HAS_ENDED = sa.text("ended_at IS NULL"), sa.text("ended_at IS NOT NULL")


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_constraint("kind_known", "jobs")
    # The next step reads the rows that are there, without stopping those that write.
    op.execute(
        f"ALTER TABLE jobs ADD CONSTRAINT kind_known CHECK (kind IN ({KINDS}, 'batch')) NOT VALID"
    )
    op.create_table(
        "batches",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("user_id", sa.Uuid(), sa.ForeignKey("users.id", ondelete="CASCADE")),
        sa.Column("api_key_id", sa.Uuid()),
        sa.Column("door", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("input_file_id", sa.Uuid(), nullable=False),
        sa.Column("completion_window", sa.Text(), nullable=False),
        sa.Column("window_seconds", sa.Float(), nullable=False),
        sa.Column("metadata", JSONB()),
        sa.Column("outputs_kept_seconds", sa.Integer()),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid()),
        sa.Column("model", sa.Text()),
        sa.Column("state", sa.Text(), server_default="validating", nullable=False),
        sa.Column("errors", JSONB(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("total", sa.Integer(), server_default="0", nullable=False),
        sa.Column("completed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output_file_id", sa.Uuid()),
        sa.Column("error_file_id", sa.Uuid()),
        sa.Column("created_at", TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("in_progress_at", TIME),
        sa.Column("finalizing_at", TIME),
        sa.Column("cancelling_at", TIME),
        sa.Column("ended_at", TIME),
        sa.Column("expires_at", TIME, nullable=False),
        sa.CheckConstraint("door IN ('openai', 'anthropic')", name="door_known"),
        sa.CheckConstraint(
            "state IN ('validating', 'in_progress', 'completed', 'failed', 'expired', 'cancelled')",
            name="state_known",
        ),
    )
    op.create_index("batches_of_user", "batches", ["user_id", "door", "id"])
    op.create_index("batches_of_file", "batches", ["input_file_id", "id"])
    op.create_index("batches_open", "batches", ["id"], postgresql_where=IS_OPEN)
    op.create_index("batches_ended", "batches", ["ended_at"], postgresql_where=HAS_ENDED)
    op.create_index(
        "batches_run",
        "batches",
        ["run_id"],
        unique=True,
        postgresql_where=sa.text("run_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("batches")
    op.execute("DELETE FROM jobs WHERE kind = 'batch'")
    op.drop_constraint("kind_known", "jobs")
    op.create_check_constraint("kind_known", "jobs", f"kind IN ({KINDS})")
