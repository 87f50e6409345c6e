"""Notifications by mail: a kind of job, and what is known of each time that a mail left."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

KINDS = "'generation', 'embedding', 'shard', 'finalization'"


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_constraint("kind_known", "jobs")
    # The next step reads the rows that are there, without stopping those that write.
    op.execute(
        f"ALTER TABLE jobs ADD CONSTRAINT kind_known CHECK (kind IN ({KINDS}, 'notification')) "
        "NOT VALID"
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), primary_key=True),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="started", nullable=False),
        sa.Column("reply_code", sa.Integer(), nullable=True),
        sa.Column("reply", sa.Text(), nullable=True),
        sa.Column(
            "started_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('started', 'accepted', 'refused', 'unknown')", name="state_known"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
    )
    op.create_index("deliveries_job", "deliveries", ["job_id"])
    op.create_index(
        "deliveries_uncertain",
        "deliveries",
        ["job_id"],
        postgresql_where=sa.text("state IN ('started', 'unknown')"),
    )


def downgrade() -> None:
    op.drop_table("deliveries")
    op.execute("DELETE FROM jobs WHERE kind = 'notification'")
    op.drop_constraint("kind_known", "jobs")
    op.create_check_constraint("kind_known", "jobs", f"kind IN ({KINDS})")
