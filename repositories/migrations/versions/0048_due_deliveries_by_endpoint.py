"""Deliveries of an endpoint that are due are read in their order, however many hosts they go to."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0048"
down_revision = "0047"
branch_labels = None
depends_on = None

TABLE = "webhook_deliveries"
BEFORE, AFTER = "webhook_deliveries_due_of", "webhook_deliveries_due_in_order"
IS_DUE = "due_at IS NOT NULL"


def upgrade() -> None:
    # Nothing else belongs into this step: it is in no transaction, and may have to be done again.
    with op.get_context().autocommit_block():
        _build(AFTER, ["endpoint_id", "due_at", "host"])
        op.drop_index(BEFORE, TABLE, if_exists=True, postgresql_concurrently=True)


def downgrade() -> None:
    op.create_index(
        BEFORE, TABLE, ["endpoint_id", "host", "due_at"], postgresql_where=sa.text(IS_DUE)
    )
    op.drop_index(AFTER, TABLE)


def _build(name: str, columns: list[Any]) -> None:
    # Also what a build left that was broken off.
    op.drop_index(name, TABLE, if_exists=True, postgresql_concurrently=True)
    op.create_index(
        name, TABLE, columns, postgresql_concurrently=True, postgresql_where=sa.text(IS_DUE)
    )
