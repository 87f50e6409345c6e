"""A budget that begins to count finds the calls of its key or user without reading all others."""

from alembic import op
from sqlalchemy import text

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nothing else belongs into this step: it is in no transaction, and may have to be done again.
    with op.get_context().autocommit_block():
        _build("attempts_of_user", "user_id")
        _build("attempts_of_key", "api_key_id")


def downgrade() -> None:
    op.drop_index("attempts_of_key", "attempts")
    op.drop_index("attempts_of_user", "attempts")


def _build(name: str, column: str) -> None:
    # Also what a build left that was broken off.
    op.drop_index(name, "attempts", if_exists=True, postgresql_concurrently=True)
    op.create_index(
        name,
        "attempts",
        [column],
        postgresql_where=text(f"{column} IS NOT NULL"),
        postgresql_concurrently=True,
    )
