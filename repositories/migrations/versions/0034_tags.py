"""Jobs and runs have tags, to find them by."""

import sqlalchemy as sa
from alembic import op

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in ("jobs", "runs"):
        # With a constant default, PostgreSQL adds it without a look at the rows.
        op.add_column(
            table,
            sa.Column("tags", sa.ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
        )


def downgrade() -> None:
    for table in ("jobs", "runs"):
        op.drop_column(table, "tags")
