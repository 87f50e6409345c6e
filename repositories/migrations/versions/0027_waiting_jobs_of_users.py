"""Jobs that wait for a rate limit are found by user."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

USER = "coalesce(user_id, '00000000-0000-0000-0000-000000000000'::uuid)"
WAITING = sa.text("state = 'queued' AND error_code = 'RATE_LIMIT_WAIT'")


def upgrade() -> None:
    # Nothing else belongs into this step: it is in no transaction, and may have to be done again.
    with op.get_context().autocommit_block():
        _build("jobs_waiting_of_user", ["provider", "model", sa.text(USER), "not_before"])
        _drop("jobs_waiting")


def downgrade() -> None:
    columns = ["provider", "model", "not_before"]
    op.create_index("jobs_waiting", "jobs", columns, postgresql_where=WAITING)
    op.drop_index("jobs_waiting_of_user", "jobs")


def _build(name: str, columns: list[Any]) -> None:
    _drop(name)  # also what a build left that was broken off
    op.create_index(name, "jobs", columns, postgresql_where=WAITING, postgresql_concurrently=True)


def _drop(name: str) -> None:
    op.drop_index(name, "jobs", if_exists=True, postgresql_concurrently=True)
