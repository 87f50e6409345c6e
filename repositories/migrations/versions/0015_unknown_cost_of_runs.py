"""How many calls of a run have a cost that nobody knows: such a run was not free."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    # At once, whatever the table holds. Of runs from before, only what they cost is told.
    op.add_column(
        "runs", sa.Column("unknown_cost", sa.Integer(), nullable=False, server_default="0")
    )


def downgrade() -> None:
    op.drop_column("runs", "unknown_cost")
