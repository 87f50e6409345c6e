"""A job's queue: bulk work waits apart from interactive work; and who waits for a limit."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

QUEUES = "'generation', 'embeddings', 'generation-bulk', 'embeddings-bulk'"


def upgrade() -> None:
    op.add_column(
        "jobs", sa.Column("queue", sa.Text(), nullable=False, server_default="generation")
    )
    op.execute("UPDATE jobs SET queue = 'embeddings' WHERE kind = 'embedding'")
    op.create_check_constraint("queue_known", "jobs", f"queue IN ({QUEUES})")
    _index("queue")
    op.create_index(
        "jobs_waiting",
        "jobs",
        ["provider", "model", "not_before"],
        postgresql_where=sa.text("state = 'queued' AND error_code = 'RATE_LIMIT_WAIT'"),
    )


def downgrade() -> None:
    op.drop_index("jobs_waiting", "jobs")
    _index("kind")
    op.drop_constraint("queue_known", "jobs")
    op.drop_column("jobs", "queue")


def _index(column: str) -> None:
    op.drop_index("jobs_rung", "jobs")
    op.drop_index("jobs_taken", "jobs")
    queued = sa.text("state = 'queued'")
    op.create_index("jobs_rung", "jobs", ["rung_epoch", column, "rung_at"], postgresql_where=queued)
    taken = sa.text("state <> 'queued' AND rung_at IS NOT NULL")
    op.create_index("jobs_taken", "jobs", [column, "rung_at"], postgresql_where=taken)
