"""Items whose id could not be read have none, instead of one that another item may have."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.alter_column("items", "custom_id", existing_type=sa.Text(), nullable=True)


def downgrade() -> None:
    op.execute("UPDATE items SET custom_id = position::text WHERE custom_id IS NULL")
    op.alter_column("items", "custom_id", existing_type=sa.Text(), nullable=False)
