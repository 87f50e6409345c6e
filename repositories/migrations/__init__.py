"""The ledger's schema, step by step (Alembic)."""

from pathlib import Path

from sqlalchemy import Engine, text

from promptstack.repositories.driver_errors import explained
from promptstack.repositories.migrations.rights import rights_explained

STEPS = Path(__file__).with_name("versions")


def upgrade(engine: Engine) -> tuple[str | None, str | None]:
    """Bring the schema to the newest revision; the revisions before and after.

    Safe to run by many processes at once: one migrates, the others wait and find it done.
    Raises `RightsMissing`, and what `Ledger.transaction` raises.
    """
    with rights_explained():
        if not pending(engine):
            return newest(), newest()
        # Alembic takes as long to import as all of SQLAlchemy, and most starts find nothing to do.
        from promptstack.repositories.migrations.steps import take_steps  # noqa: PLC0415

        return take_steps(engine)


def pending(engine: Engine) -> bool:
    """Whether the schema is not that of this code. Raises what `Ledger.transaction` raises."""
    with explained(), engine.connect() as connection:
        # Asked first, as a query of a table that is not there would be an error.
        if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
            return True
        revisions = connection.scalars(text("SELECT version_num FROM alembic_version")).all()
    return revisions != [newest()]


def newest() -> str:
    """The newest revision. Each step's file begins with the name of its revision."""
    return max(file.name.partition("_")[0] for file in STEPS.glob("[0-9]*.py"))
