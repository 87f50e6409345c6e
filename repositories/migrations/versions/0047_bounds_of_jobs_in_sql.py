"""A job enqueued in SQL has bounds that its readers need.

Python reads no JSON that is nested thousands of levels deep, nor integers of thousands of digits,
which jsonb holds. PostgreSQL compresses what it stores, so a value's size says little of its length
as text, which is what a worker reads. And an array may have several dimensions; tags are a list.
"""

from importlib import import_module

import sqlalchemy as sa
from alembic import op

revision = "0047"
down_revision = "0046"
branch_labels = None
depends_on = None

BEFORE = import_module("promptstack.repositories.migrations.versions.0038_enqueue_in_sql")

SIZES = """coalesce(pg_column_size(messages), 0)
            + pg_column_size(parameters) + pg_column_size(fallbacks)"""
LENGTHS = """coalesce(octet_length(messages::text), 0)
            + octet_length(parameters::text) + octet_length(fallbacks::text)"""
RETURN = "    RETURN promptstack.add_job("
JUDGED = f"""\
    IF jsonb_path_exists(request, 'strict $.**{{101}}') THEN
        PERFORM promptstack.refuse(
            'The request is nested more than 100 levels deep.', 'Flatten it.'
        );
    ELSIF jsonb_path_exists(
        request, 'strict $.** ? (@.type() == "number" && (@ > 1e308 || @ < -1e308))'
    ) THEN
        PERFORM promptstack.refuse(
            'The request has a number beyond 1e308.', 'Use a smaller one, or text.'
        );
    END IF;
{RETURN}"""
COUNT = "    IF cardinality(add_job.tags) > 16 THEN"
LISTED = f"""\
    IF array_ndims(add_job.tags) > 1 THEN
        PERFORM promptstack.refuse(
            'The tags are an array of several dimensions.', 'For example: ARRAY[''orders'']'
        );
    END IF;
    add_job.tags := ARRAY(SELECT unnest(add_job.tags));  -- numbered from 1
{COUNT}"""  # noqa: S608 - ours


def upgrade() -> None:
    _replace(BEFORE.ENQUEUE_GENERATION.replace(SIZES, LENGTHS).replace(RETURN, JUDGED))
    _replace(_add_job().replace(COUNT, LISTED))


def downgrade() -> None:
    _replace(BEFORE.ENQUEUE_GENERATION)
    _replace(_add_job())


def _add_job() -> str:
    connection = op.get_bind()
    schema = connection.dialect.identifier_preparer.quote(
        connection.scalar(sa.text("SELECT current_schema()"))
    )
    return str(BEFORE.ADD_JOB.format(schema=schema, most_bytes=BEFORE.MOST_BYTES))


def _replace(function: str) -> None:
    # Who may call it stays as it is.
    statement = function.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
    op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
