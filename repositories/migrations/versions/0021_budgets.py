"""Spend caps of keys, users and the deployment, and which key a job and a call belong to."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

MONEY = sa.Numeric(18, 10)
SUM = sa.Numeric(20, 10)


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the tables behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in ("jobs", "runs", "attempts"):
        op.add_column(table, sa.Column("api_key_id", sa.Uuid()))
    op.add_column("attempts", sa.Column("reserved_usd", MONEY))
    op.create_table(
        "budgets",
        sa.Column(
            "subject",
            sa.Uuid(),
            sa.Computed(
                "coalesce(user_id, api_key_id, '00000000-0000-0000-0000-000000000000'::uuid)",
                persisted=True,
            ),
            primary_key=True,
        ),
        sa.Column("user_id", sa.Uuid(), sa.ForeignKey("users.id", ondelete="CASCADE")),
        sa.Column("api_key_id", sa.Uuid(), sa.ForeignKey("api_keys.id", ondelete="CASCADE")),
        *(sa.Column(f"{window}_cap_usd", MONEY) for window in ("day", "month", "total")),
        sa.Column("day", sa.Date(), nullable=False),
        *(
            sa.Column(f"{window}_usd", SUM, nullable=False, server_default="0")
            for window in ("day", "month", "total")
        ),
        sa.CheckConstraint("user_id IS NULL OR api_key_id IS NULL", name="one_subject"),
    )


def downgrade() -> None:
    op.drop_table("budgets")
    op.drop_column("attempts", "reserved_usd")
    for table in ("attempts", "runs", "jobs"):
        op.drop_column(table, "api_key_id")
