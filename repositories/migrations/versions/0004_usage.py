"""What a call cost: cached tokens, money, and its wait for the rate limit."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Without defaults: instant, however many attempts there are.
    op.add_column("attempts", sa.Column("cached_tokens", sa.Integer()))
    op.add_column("attempts", sa.Column("cost_usd", sa.Numeric(18, 10)))
    op.add_column("attempts", sa.Column("limiter_wait_seconds", sa.Float()))
    # Attempts come in the order of time, so a few pages of index tell where a day lies.
    op.create_index("attempts_started", "attempts", ["started_at"], postgresql_using="brin")


def downgrade() -> None:
    op.drop_index("attempts_started", "attempts")
    for column in ("limiter_wait_seconds", "cost_usd", "cached_tokens"):
        op.drop_column("attempts", column)
