"""Calls of searches, which belong to no job, are found where their process died."""

from alembic import op
from sqlalchemy import text

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nothing else belongs into this step: it is in no transaction, and may have to be done again.
    with op.get_context().autocommit_block():
        # Also what a build left that was broken off.
        op.drop_index("attempts_alone", "attempts", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "attempts_alone",
            "attempts",
            ["started_at"],
            postgresql_where=text("job_id IS NULL AND state = 'started'"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    op.drop_index("attempts_alone", "attempts")
