"""Run by Alembic: `repositories.migrations.upgrade` hands it the connection and its transaction."""

from alembic import context

import repositories.embeddings  # noqa: F401 - adds its table to the metadata
from repositories.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
