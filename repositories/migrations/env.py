"""Run by Alembic: `repositories.migrations.upgrade` hands it the connection."""

from alembic import context

import promptstack.repositories.access_models
import promptstack.repositories.audit_models
import promptstack.repositories.batch_models
import promptstack.repositories.budget_models
import promptstack.repositories.content.embeddings
import promptstack.repositories.content_models
import promptstack.repositories.file_models
import promptstack.repositories.flag_models
import promptstack.repositories.notification_models
import promptstack.repositories.operation_models
import promptstack.repositories.response_models
import promptstack.repositories.run_models
import promptstack.repositories.webhook_models  # noqa: F401 - they add their tables to the metadata
from promptstack.repositories.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # So that a step may leave it, and build an index without stopping those that write.
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
