"""Jobs that wait for a rate limit are found by user."""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

USER = "coalesce(user_id, '00000000-0000-0000-0000-000000000000'::uuid)"
WAITING = sa.text("state = 'queued' AND error_code = 'RATE_LIMIT_WAIT'")


def upgrade() -> None:
    op.drop_index("jobs_waiting", "jobs")
    op.create_index(
        "jobs_waiting",
        "jobs",
        ["provider", "model", sa.text(USER), "not_before"],
        postgresql_where=WAITING,
    )


def downgrade() -> None:
    op.drop_index("jobs_waiting", "jobs")
    columns = ["provider", "model", "not_before"]
    op.create_index("jobs_waiting", "jobs", columns, postgresql_where=WAITING)
