"""Vectors of a size that a request asks for are kept apart from those of the model's own size."""

import sqlalchemy as sa
from alembic import op

revision = "0057"
down_revision = "0056"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(
        "embedding_models",
        sa.Column("is_asked", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.drop_constraint("embedding_models_key", "embedding_models")
    op.create_unique_constraint(
        "embedding_models_key", "embedding_models", ["provider", "model", "dimensions", "is_asked"]
    )


def downgrade() -> None:
    op.execute("DELETE FROM embedding_models WHERE is_asked")
    op.drop_constraint("embedding_models_key", "embedding_models")
    op.create_unique_constraint(
        "embedding_models_key", "embedding_models", ["provider", "model", "dimensions"]
    )
    op.drop_column("embedding_models", "is_asked")
