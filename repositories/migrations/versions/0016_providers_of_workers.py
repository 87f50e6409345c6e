"""Which providers a worker can ask, so that what no worker could do is refused at once."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("workers", sa.Column("providers", sa.ARRAY(sa.Text()), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "providers")
