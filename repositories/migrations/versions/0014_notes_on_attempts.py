"""What was odd in the form of an answer that was used all the same."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("attempts", sa.Column("note", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "note")
