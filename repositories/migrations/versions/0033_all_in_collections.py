"""The documents and runs that are there move into the default collections of their users.

A document's source is unique within its collection, and no longer for its user. The constraint
keeps its name, which the version before this one stores documents by.
"""

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None

NOBODYS = "00000000-0000-0000-0000-000000000000"
AT_ONCE = 5_000
TABLES = ("documents", "runs")


def upgrade() -> None:
    # Each statement is a transaction of its own, and may be done again: no lock is held for long.
    with op.get_context().autocommit_block():
        for table in TABLES:
            _move(table)
            op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {table}_collection_id_fkey")
            _require(table)
            _build(f"{table}_of_collection", table, ["collection_id", "id"])
        _build("documents_metadata", "documents", ["metadata"], gin=True)
        if not _is_unique_within_collections():
            _build("documents_in_collection", "documents", ["collection_id", "source"], unique=True)
            op.execute(
                "ALTER TABLE documents DROP CONSTRAINT documents_source_key, "
                "ADD CONSTRAINT documents_source_key UNIQUE USING INDEX documents_in_collection"
            )


def downgrade() -> None:
    # Of documents with the same source, the version before can have one for each user.
    op.execute(
        "DELETE FROM documents WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER "
        "(PARTITION BY user_id, source ORDER BY updated_at DESC) AS place FROM documents) AS one "
        "WHERE place > 1)"
    )
    op.drop_constraint("documents_source_key", "documents")
    op.create_unique_constraint(
        "documents_source_key",
        "documents",
        ["user_id", "source"],
        postgresql_nulls_not_distinct=True,
    )
    op.drop_index("documents_metadata", "documents")
    for table in TABLES:
        op.drop_index(f"{table}_of_collection", table)
        op.alter_column(table, "collection_id", nullable=True)


def _move(table: str) -> None:
    """Move rows into their default collections, some at a time."""
    connection = op.get_bind()
    one_batch = sa.text(
        f"""
        WITH batch AS (
            SELECT id FROM {table} WHERE id > :after ORDER BY id LIMIT {AT_ONCE}
        ), moved AS (
            UPDATE {table} SET collection_id = coalesce(user_id, '{NOBODYS}')
            WHERE id IN (SELECT id FROM batch) AND collection_id IS NULL
        )
        SELECT id FROM batch ORDER BY id DESC LIMIT 1
        """  # noqa: S608 - names of our own
    )
    after = NOBODYS
    while after is not None:
        after = connection.scalar(one_batch, {"after": after})


def _require(table: str) -> None:
    """Let no row be without a collection. PostgreSQL reads the rows before it locks the table."""
    check = f"{table}_has_collection"
    op.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {check}")
    op.execute(
        f"ALTER TABLE {table} ADD CONSTRAINT {check} CHECK (collection_id IS NOT NULL) NOT VALID"
    )
    op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {check}")
    op.execute(f"ALTER TABLE {table} ALTER COLUMN collection_id SET NOT NULL")
    op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {check}")


def _is_unique_within_collections() -> bool:
    constraints = sa.inspect(op.get_bind()).get_unique_constraints("documents")
    return any("collection_id" in one["column_names"] for one in constraints)


def _build(
    name: str, table: str, columns: list[str], *, unique: bool = False, gin: bool = False
) -> None:
    # Also what a build left that was broken off.
    op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
    op.create_index(
        name,
        table,
        columns,
        unique=unique,
        postgresql_using="gin" if gin else "btree",
        postgresql_ops={"metadata": "jsonb_path_ops"} if gin else {},
        postgresql_concurrently=True,
    )
