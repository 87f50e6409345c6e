"""Files: what clients upload, in blocks, and what batches write."""

import sqlalchemy as sa
from alembic import op

revision = "0053"
down_revision = "0052"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    # It refers to users, whom nobody may change meanwhile.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "files",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.Uuid, sa.ForeignKey("users.id", ondelete="CASCADE")),
        sa.Column("api_key_id", sa.Uuid),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("sha256", sa.LargeBinary),
        sa.Column("batch_id", sa.Uuid),
        sa.Column("part", sa.Text),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("expires_at", TIME),
        sa.Column("deleted_at", TIME),
    )
    op.create_index("files_of_user", "files", ["user_id", "id"])
    for name, column in (
        ("files_of_batch", "batch_id"),
        ("files_expiring", "expires_at"),
        ("files_deleted", "deleted_at"),
    ):
        op.create_index(name, "files", [column], postgresql_where=sa.text(f"{column} IS NOT NULL"))
    op.create_table(
        "file_blocks",
        sa.Column(
            "file_id", sa.Uuid, sa.ForeignKey("files.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    # Compressing takes PostgreSQL longer than writing, and a file is read once or twice.
    op.execute("ALTER TABLE file_blocks ALTER COLUMN data SET STORAGE EXTERNAL")


def downgrade() -> None:
    op.drop_table("file_blocks")
    op.drop_table("files")
