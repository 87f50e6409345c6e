"""Runs: their items, outcomes and answers; shards are jobs; vectors in 2 bytes a number."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

QUEUES = "'generation', 'embeddings', 'generation-bulk', 'embeddings-bulk', 'resumed'"
KINDS = "'generation', 'embedding'"
STATES = "'preparing', 'running', 'finalizing', 'completed', 'failed', 'cancelled', 'expired'"


def upgrade() -> None:
    _create_runs()
    op.create_table(
        "items",
        sa.Column("run_id", sa.Uuid(), primary_key=True),
        sa.Column("position", sa.Integer(), primary_key=True),
        sa.Column("custom_id", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary()),
        sa.Column("text", sa.Text()),
        sa.Column("messages", JSONB()),
        sa.Column("metadata", JSONB(), nullable=False),
    )
    op.create_index(
        "items_content",
        "items",
        ["content_hash"],
        postgresql_where=sa.text("content_hash IS NOT NULL"),
    )
    op.create_table(
        "outcomes",
        sa.Column("run_id", sa.Uuid(), primary_key=True),
        sa.Column("position", sa.Integer(), primary_key=True),
        sa.Column("is_reused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("error_code", sa.Text()),
        sa.Column("error", sa.Text()),
        sa.Column("detail", sa.Text()),
    )
    op.create_table(
        "answers",
        sa.Column("provider", sa.Text(), primary_key=True),
        sa.Column("model", sa.Text(), primary_key=True),
        sa.Column("content_hash", sa.LargeBinary(), primary_key=True),
        sa.Column("result", JSONB(), nullable=False),
        _time("used_at"),
    )
    op.create_index("answers_used", "answers", ["used_at"], postgresql_using="brin")
    _shards_are_jobs()
    op.add_column(
        "embedding_models",
        sa.Column("storage", sa.Text(), server_default="vector", nullable=False),
    )
    op.create_check_constraint(
        "storage_known", "embedding_models", "storage IN ('vector', 'halfvec')"
    )
    op.create_table(
        "half_embeddings",
        sa.Column("model_id", sa.Integer(), primary_key=True),
        sa.Column("content_hash", sa.LargeBinary(), primary_key=True),
        sa.Column("vector", HALFVEC(), nullable=False),
        _time("created_at", nullable=True),
        postgresql_partition_by="LIST (model_id)",
    )


def downgrade() -> None:
    op.execute("DELETE FROM jobs WHERE run_id IS NOT NULL")
    op.execute("DELETE FROM embedding_models WHERE storage = 'halfvec'")
    op.drop_table("half_embeddings")
    op.drop_constraint("storage_known", "embedding_models")
    op.drop_column("embedding_models", "storage")
    op.drop_index("jobs_of_run_open", "jobs")
    op.drop_index("jobs_of_run", "jobs")
    op.drop_column("jobs", "run_id")
    _allow(KINDS, QUEUES)
    for table in ("answers", "outcomes", "items", "runs"):
        op.drop_table(table)


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Uuid(), primary_key=True),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("kind", "name")),
        sa.Column("state", sa.Text(), server_default="preparing", nullable=False),
        sa.Column("user_id", sa.Uuid(), sa.ForeignKey("users.id", ondelete="CASCADE")),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("provider", "model")),
        sa.Column("parameters", JSONB(), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("in_flight", "max_retries")),
        sa.Column("max_cost_usd", sa.Numeric(18, 10)),
        *map(_count, ("total", "last_position", "next_position", "succeeded", "failed", "reused")),
        _time("served_at"),
        _count("calls"),
        *(_count(name, sa.BigInteger()) for name in ("input_tokens", "output_tokens", "version")),
        *(_count(name, sa.Numeric(18, 10)) for name in ("cost_usd", "reserved_usd")),
        _count("limiter_wait_seconds", sa.Float()),
        *(sa.Column(name, sa.Text()) for name in ("error_code", "error")),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        *map(_time, ("created_at", "touched_at")),
        *(sa.Column(name, sa.DateTime(timezone=True)) for name in ("started_at", "finished_at")),
        sa.CheckConstraint(f"kind IN ({KINDS})", name="kind_known"),
        sa.CheckConstraint(f"state IN ({STATES})", name="state_known"),
    )
    op.create_index(
        "runs_open", "runs", ["served_at"], postgresql_where=sa.text("finished_at IS NULL")
    )
    op.create_index("runs_of_user", "runs", ["user_id", "id"])


def _shards_are_jobs() -> None:
    op.add_column("jobs", sa.Column("run_id", sa.Uuid()))
    op.create_foreign_key(
        "jobs_run_id_fkey", "jobs", "runs", ["run_id"], ["id"], ondelete="CASCADE"
    )
    is_shard = "run_id IS NOT NULL"
    op.create_index("jobs_of_run", "jobs", ["run_id"], postgresql_where=sa.text(is_shard))
    op.create_index(
        "jobs_of_run_open",
        "jobs",
        ["run_id"],
        postgresql_where=sa.text(f"{is_shard} AND finished_at IS NULL"),
    )
    _allow(f"{KINDS}, 'shard', 'finalization'", f"{QUEUES}, 'maintenance'")


def _allow(kinds: str, queues: str) -> None:
    op.drop_constraint("kind_known", "jobs")
    op.create_check_constraint("kind_known", "jobs", f"kind IN ({kinds})")
    op.drop_constraint("queue_known", "jobs")
    op.create_check_constraint("queue_known", "jobs", f"queue IN ({queues})")


def _count(name: str, kind: Any = None) -> "sa.Column[object]":
    return sa.Column(name, kind or sa.Integer(), server_default="0", nullable=False)


def _time(name: str, *, nullable: bool = False) -> "sa.Column[object]":
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=nullable
    )
