"""The right to see everybody's jobs is a key's, not its user's, whose other keys had it too.

Which of an administrator's keys were made to have it is not known, so none keeps it: make a new
one with `promptstack keys create --admin`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("api_keys", _is_admin())
    op.drop_column("users", "is_admin")


def downgrade() -> None:
    op.add_column("users", _is_admin())
    op.drop_column("api_keys", "is_admin")


def _is_admin() -> sa.Column[bool]:
    return sa.Column("is_admin", sa.Boolean(), server_default=sa.text("false"), nullable=False)
