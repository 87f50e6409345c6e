"""Operations: a kind of job that changes many jobs, and the account of each."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None

KINDS = "'generation', 'embedding', 'shard', 'finalization', 'notification'"


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_constraint("kind_known", "jobs")
    # The next step reads the rows that are there, without stopping those that write.
    op.execute(
        f"ALTER TABLE jobs ADD CONSTRAINT kind_known CHECK (kind IN ({KINDS}, 'operation')) "
        "NOT VALID"
    )
    op.create_table(
        "operations",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("wanted", JSONB(), nullable=False),
        sa.Column(
            "until", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column("cursor", sa.Uuid(), nullable=True),
        sa.Column("matched", sa.Integer(), nullable=True),
        sa.Column("done", sa.Integer(), server_default="0", nullable=False),
        sa.Column("skipped", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", JSONB(), server_default=sa.text("'[]'"), nullable=False),
        sa.CheckConstraint("action IN ('retry', 'cancel')", name="action_known"),
        sa.ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    )


def downgrade() -> None:
    op.drop_table("operations")
    op.execute("DELETE FROM jobs WHERE kind = 'operation'")
    op.drop_constraint("kind_known", "jobs")
    op.create_check_constraint("kind_known", "jobs", f"kind IN ({KINDS})")
