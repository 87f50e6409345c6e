"""Runs may write their output to object storage when they have ended."""

import sqlalchemy as sa
from alembic import op

revision = "0045"
down_revision = "0044"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("runs", sa.Column("output_url", sa.Text))
    op.add_column("runs", sa.Column("output_written_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("runs", "output_written_at")
    op.drop_column("runs", "output_url")
