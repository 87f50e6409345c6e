"""Takes the missing steps of the schema, by Alembic."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, text

from promptstack.repositories.migrations.rights import prepare_database
from promptstack.repositories.timeouts import IDLE_LIMIT

# Any fixed number: all that matters is that every migrating process takes the same one.
MIGRATION_LOCK = 7_316_498_025
LOOK_SECONDS = 0.2
"""Between two looks whether another process has done it."""


def take_steps(engine: Engine) -> tuple[str | None, str | None]:
    """Bring the schema to the newest revision; the revisions before and after.

    Of many processes one takes the steps, the others wait and find them taken.
    """
    with _alone(engine), engine.connect() as connection:
        before = MigrationContext.configure(connection).get_current_revision()
        connection.rollback()  # each step has a transaction of its own
        prepare_database(connection)
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return before, MigrationContext.configure(connection).get_current_revision()


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    """Let one process at a time migrate, also where it is killed: a transaction has the lock.

    Not waited for in a statement: an index's build waits for all statements to end.
    """
    key = {"key": MIGRATION_LOCK}
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL {IDLE_LIMIT} = 0"))
        while not connection.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), key):
            time.sleep(LOOK_SECONDS)
        yield


def _config() -> Config:
    config = Config()
    # Alembic's options use % for interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
