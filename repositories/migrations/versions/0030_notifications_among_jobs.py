"""Notifications are listed without reading all other jobs."""

from alembic import op
from sqlalchemy import text

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nothing else belongs into this step: it is in no transaction, and may have to be done again.
    with op.get_context().autocommit_block():
        # Also what a build left that was broken off.
        op.drop_index("jobs_notifications", "jobs", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "jobs_notifications",
            "jobs",
            ["id"],
            postgresql_where=text("kind = 'notification'"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    op.drop_index("jobs_notifications", "jobs")
