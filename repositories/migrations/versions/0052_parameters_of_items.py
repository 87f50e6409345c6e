"""An item may have parameters of its own, as each request of OpenAI's Batch API has.

Most have none, and then the column takes no room.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0052"
down_revision = "0051"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("items", sa.Column("parameters", postgresql.JSONB()))


def downgrade() -> None:
    op.drop_column("items", "parameters")
