"""Words of chunks for search, vectors that nobody uses, and vectors of queries."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the tables behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("chunks", sa.Column("words", TSVECTOR(), nullable=True))
    op.add_column(
        "pruned_runs",
        sa.Column("drops_vectors", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.create_table(
        "unused_contents",
        sa.Column("content_hash", sa.LargeBinary(), primary_key=True),
        sa.Column(
            "due_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column("collection_id", sa.Uuid(), nullable=True),
    )
    op.create_index("unused_contents_due", "unused_contents", ["due_at"])
    op.create_index(
        "unused_contents_of_collection",
        "unused_contents",
        ["collection_id"],
        postgresql_where=sa.text("collection_id IS NOT NULL"),
    )
    op.create_table(
        "query_vectors",
        sa.Column("provider", sa.Text(), primary_key=True),
        sa.Column("model", sa.Text(), primary_key=True),
        sa.Column("content_hash", sa.LargeBinary(), primary_key=True),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
    )
    op.create_index("query_vectors_created", "query_vectors", ["created_at"])


def downgrade() -> None:
    op.drop_table("query_vectors")
    op.drop_table("unused_contents")
    op.drop_column("pruned_runs", "drops_vectors")
    op.drop_column("chunks", "words")
