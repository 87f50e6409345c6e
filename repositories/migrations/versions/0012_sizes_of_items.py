"""How long items are, so that a shard has no more of them than a worker has memory for."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    # At once, whatever the table holds. Items from before have none: a shard of them is bounded in
    # number only.
    op.add_column("items", sa.Column("size", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("items", "size")
