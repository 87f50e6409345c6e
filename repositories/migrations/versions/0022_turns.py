"""Whose turn it was, where users share; and the open runs of a user."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "turns",
        sa.Column("shared", sa.Text(), primary_key=True),
        sa.Column("last", sa.Uuid(), nullable=True),
        sa.Column("credits", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        if_not_exists=True,
    )
    # It is in no transaction, and may have to be done again.
    with op.get_context().autocommit_block():
        op.drop_index("runs_open_of_user", "runs", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "runs_open_of_user",
            "runs",
            ["user_id", "served_at"],
            postgresql_where=sa.text("finished_at IS NULL"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    op.drop_index("runs_open_of_user", "runs")
    op.drop_table("turns")
