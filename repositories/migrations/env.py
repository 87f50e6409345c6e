"""Run by Alembic: `repositories.migrations.upgrade` hands it the connection and its transaction."""

from alembic import context

import repositories.embeddings
import repositories.run_models  # noqa: F401 - they add their tables to the metadata
from repositories.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
