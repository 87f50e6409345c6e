"""Words are found by an index. Maintenance fills in those of the chunks that are there."""

from alembic import op
from sqlalchemy import text

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nothing else belongs into this step: it is in no transaction, and may have to be done again.
    with op.get_context().autocommit_block():
        _drop("chunks_words")  # also what a build left that was broken off
        op.create_index(
            "chunks_words",
            "chunks",
            ["words"],
            postgresql_using="gin",
            postgresql_concurrently=True,
        )
        _drop("chunks_without_words")
        op.create_index(
            "chunks_without_words",
            "chunks",
            ["id"],
            postgresql_where=text("words IS NULL"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    op.drop_index("chunks_without_words", "chunks")
    op.drop_index("chunks_words", "chunks")


def _drop(name: str) -> None:
    op.drop_index(name, "chunks", if_exists=True, postgresql_concurrently=True)
