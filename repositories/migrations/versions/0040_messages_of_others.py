"""Jobs are sent by another service's Celery: what waits for their ends is kept with them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    # With a constant default, PostgreSQL adds it without a look at the rows.
    op.add_column(
        "jobs", sa.Column("is_followed", sa.Boolean, nullable=False, server_default=sa.false())
    )
    op.create_table(
        "celery_messages",
        sa.Column(
            "job_id", sa.Uuid, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("options", postgresql.JSONB, nullable=False),
        sa.Column("asked_at", TIME),
        sa.Column("taken_at", TIME),
    )


def downgrade() -> None:
    op.drop_table("celery_messages")
    op.drop_column("jobs", "is_followed")
