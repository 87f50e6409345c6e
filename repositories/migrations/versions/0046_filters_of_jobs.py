"""Lists of jobs are filtered without reading all jobs.

What few jobs have (a bad end, an error, tags) stands in indexes that the others don't enter. The
index of models has few different values, of which each is stored once a page.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0046"
down_revision = "0045"
branch_labels = None
depends_on = None

ENDED_BADLY = "state IN ('failed', 'cancelled', 'expired')"


def upgrade() -> None:
    # Nothing else belongs into this step: it is in no transaction, and may have to be done again.
    with op.get_context().autocommit_block():
        _build("jobs_ended_badly", ["user_id", "id"], postgresql_where=sa.text(ENDED_BADLY))
        _build(
            "jobs_with_error",
            ["user_id", "error_code", "id"],
            postgresql_where=sa.text("error_code IS NOT NULL"),
        )
        _build("jobs_of_model", ["user_id", "kind", "provider", "model"])
        _build(
            "jobs_with_tag",
            ["tags"],
            postgresql_using="gin",
            postgresql_where=sa.text("tags <> '{}'"),
        )
        _build("jobs_created", ["created_at"])


def downgrade() -> None:
    for name in ("ended_badly", "with_error", "of_model", "with_tag", "created"):
        op.drop_index(f"jobs_{name}", "jobs")


def _build(name: str, columns: list[Any], **how: Any) -> None:
    # Also what a build left that was broken off.
    op.drop_index(name, "jobs", if_exists=True, postgresql_concurrently=True)
    op.create_index(name, "jobs", columns, postgresql_concurrently=True, **how)
