"""Feature flags, which are changed without a restart."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "feature_flags",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("rules", postgresql.JSONB(), nullable=False),
        sa.Column(
            "changed_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.CheckConstraint("octet_length(CAST(rules AS text)) <= 2000000", name="rules_are_small"),
    )


def downgrade() -> None:
    op.drop_table("feature_flags")
