"""Collections: documents and runs belong to one. A default one exists for every user.

The id of a user's default collection is the user's id, and that of callers without a user has only
zeros. So nobody has to look for it, and a version before this one, which knows of no collections,
adds documents and runs to it.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None

NOBODYS = "00000000-0000-0000-0000-000000000000"
TABLES = ("documents", "runs")


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the tables behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "collections",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("language", sa.Text(), server_default="english", nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
    )
    op.create_index(
        "collections_name",
        "collections",
        ["user_id", "name"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_index("collections_of_user", "collections", ["user_id", "id"])
    op.create_index(
        "collections_deleted",
        "collections",
        ["deleted_at"],
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.execute(
        """
        CREATE FUNCTION add_default_collection() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO collections (id, user_id, name) VALUES (NEW.id, NEW.id, 'default');
            RETURN NULL;
        END
        $$
        """
    )
    op.execute(
        "CREATE TRIGGER users_have_a_collection AFTER INSERT ON users "
        "FOR EACH ROW EXECUTE FUNCTION add_default_collection()"
    )
    op.execute("INSERT INTO collections (id, user_id, name) SELECT id, id, 'default' FROM users")
    nobodys = sa.text("INSERT INTO collections (id, name) VALUES (CAST(:id AS uuid), 'default')")
    op.get_bind().execute(nobodys, {"id": NOBODYS})

    op.execute(
        f"""
        CREATE FUNCTION use_default_collection() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.collection_id := coalesce(NEW.user_id, '{NOBODYS}');
            RETURN NEW;
        END
        $$
        """
    )
    op.add_column("documents", sa.Column("metadata", JSONB(), nullable=True))
    for table in TABLES:
        op.add_column(table, sa.Column("collection_id", sa.Uuid(), nullable=True))
        op.execute(
            f"CREATE TRIGGER {table}_are_in_a_collection BEFORE INSERT ON {table} FOR EACH ROW "
            "WHEN (NEW.collection_id IS NULL) EXECUTE FUNCTION use_default_collection()"
        )
        # The next step checks the rows that are there, without stopping those that write.
        op.execute(
            f"ALTER TABLE {table} ADD CONSTRAINT {table}_collection_id_fkey "
            "FOREIGN KEY (collection_id) REFERENCES collections (id) NOT VALID"
        )


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"DROP TRIGGER {table}_are_in_a_collection ON {table}")
        op.drop_column(table, "collection_id")
    op.drop_column("documents", "metadata")
    op.execute("DROP TRIGGER users_have_a_collection ON users")
    op.drop_table("collections")
    op.execute("DROP FUNCTION add_default_collection")
    op.execute("DROP FUNCTION use_default_collection")
