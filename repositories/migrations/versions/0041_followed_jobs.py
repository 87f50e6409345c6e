"""Jobs that have ended and whose end Celery must still be told are found without reading others."""

from alembic import op
from sqlalchemy import text

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nothing else belongs into this step: it is in no transaction, and may have to be done again.
    with op.get_context().autocommit_block():
        # Also what a build left that was broken off.
        op.drop_index("jobs_followed", "jobs", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "jobs_followed",
            "jobs",
            ["finished_at"],
            postgresql_where=text("is_followed AND finished_at IS NOT NULL"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    op.drop_index("jobs_followed", "jobs")
