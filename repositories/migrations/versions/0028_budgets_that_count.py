"""A budget says whether it has counted what was spent before."""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "budgets", sa.Column("is_counted", sa.Boolean(), server_default=sa.false(), nullable=False)
    )


def downgrade() -> None:
    # The version before takes a budget without caps for one that nobody has counted.
    op.execute(
        "DELETE FROM budgets WHERE num_nonnulls(day_cap_usd, month_cap_usd, total_cap_usd) = 0"
    )
    op.drop_column("budgets", "is_counted")
