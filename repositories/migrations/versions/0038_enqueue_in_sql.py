"""Jobs are enqueued in SQL: two functions, for database roles that may do nothing else.

The functions store what they are given. A worker checks it before any call, and `is_checked` says
whether one has. docs/sql.md tells callers of the functions.
"""

import sqlalchemy as sa
from alembic import op

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None

OPTIONS = "boolean, text, integer, double precision, text[]"
FUNCTIONS = (
    f"enqueue_generation(text, jsonb, text, text, jsonb, jsonb, {OPTIONS})",
    f"enqueue_embedding(text, text, text, text, integer, text, {OPTIONS})",
    "add_job(text, text, jsonb, bigint, text, text, text, integer, double precision, text[])",
    "check_name(text, text, integer)",
    "refuse(text, text)",
    "new_id()",
)

NEW_ID = """
CREATE FUNCTION promptstack.new_id() RETURNS uuid LANGUAGE sql VOLATILE AS $$ {body} $$
"""
UUID7 = """
    SELECT encode(set_bit(set_bit(
        overlay(
            uuid_send(gen_random_uuid())
            PLACING substring(
                int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3
            ) FROM 1 FOR 6
        ), 52, 1), 53, 1), 'hex')::uuid
"""
"""Of version 7, whose order is that of creation. PostgreSQL 18 has a function of its own."""

REFUSE = """
CREATE FUNCTION promptstack.refuse(what text, hint text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = what, HINT = hint;
END $$
"""

CHECK_NAME = r"""
CREATE FUNCTION promptstack.check_name(name text, what text, longest integer) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF name IS NULL THEN
        RETURN;
    END IF;
    IF length(name) NOT BETWEEN 1 AND longest THEN
        PERFORM promptstack.refuse(
            format('%s must have 1 to %s characters.', what, longest), 'Use a shorter one, or none.'
        );
    ELSIF name ~ '[\u0001-\u001f\u007f-\u009f]' THEN
        PERFORM promptstack.refuse(
            format('%s has a control character.', what), 'Use text of one line.'
        );
    END IF;
END $$
"""

# It runs with the rights and the search path of the functions that call it.
ADD_JOB = """
CREATE FUNCTION promptstack.add_job(
    kind text, queue text, request jsonb, bytes bigint, provider text, model text,
    idempotency_key text, max_retries integer, expires_in double precision, tags text[]
) RETURNS uuid LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    owner_id uuid;
    disabled timestamptz;
    hash text := '';
    job_id uuid;
    known_hash text;
    tag text;
BEGIN
    SELECT users.id, users.disabled_at INTO owner_id, disabled
    FROM {schema}.sql_roles JOIN {schema}.users ON users.id = sql_roles.user_id
    WHERE sql_roles.role = session_user;
    IF owner_id IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('The database role %I may enqueue for no user.', session_user),
            HINT = format('Bind it to one: promptstack sql grant %I --user EMAIL', session_user);
    ELSIF disabled IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('The user of the database role %I is disabled.', session_user),
            HINT = 'An administrator can enable the user again, or bind the role to another one.';
    END IF;

    IF add_job.bytes > {most_bytes} THEN
        PERFORM promptstack.refuse(
            format('The request has %s bytes; at most {most_bytes} are accepted.', add_job.bytes),
            'Split it.'
        );
    END IF;
    PERFORM promptstack.check_name(add_job.provider, 'provider', 200);
    PERFORM promptstack.check_name(add_job.model, 'model', 200);
    PERFORM promptstack.check_name(add_job.idempotency_key, 'idempotency_key', 200);
    IF add_job.max_retries NOT BETWEEN 0 AND 100 THEN
        PERFORM promptstack.refuse(
            'max_retries must be from 0 to 100.', 'Leave it out for the deployment''s own number.'
        );
    END IF;
    -- NaN is greater than every number.
    IF NOT (add_job.expires_in > 0 AND add_job.expires_in <= 366 * 86400) THEN
        PERFORM promptstack.refuse(
            'expires_in must be over 0 and at most 31622400 seconds (366 days).',
            'Leave it out for the deployment''s own time.'
        );
    END IF;
    IF cardinality(add_job.tags) > 16 THEN
        PERFORM promptstack.refuse('There are more than 16 tags.', 'Leave some out.');
    END IF;
    FOREACH tag IN ARRAY coalesce(add_job.tags, '{{}}') LOOP
        IF tag IS NULL THEN
            PERFORM promptstack.refuse('A tag is NULL.', 'Leave it out.');
        END IF;
        PERFORM promptstack.check_name(tag, 'A tag', 64);
    END LOOP;

    IF add_job.idempotency_key IS NOT NULL THEN
        hash := 'sql:' || encode(
            sha256(convert_to(add_job.kind || ' ' || add_job.request::text, 'UTF8')), 'hex'
        );
    END IF;
    INSERT INTO {schema}.jobs (
        id, kind, queue, provider, model, request, request_hash, user_id, idempotency_key,
        max_retries, expires_at, not_before, is_checked, tags
    ) VALUES (
        promptstack.new_id(), add_job.kind, add_job.queue,
        coalesce(add_job.provider, ''), coalesce(add_job.model, ''),
        -- The worker that checks it puts the deployment's own numbers where none is given.
        add_job.request || jsonb_strip_nulls(jsonb_build_object(
            'max_retries', add_job.max_retries, 'expires_in', add_job.expires_in
        )),
        hash, owner_id, add_job.idempotency_key,
        coalesce(add_job.max_retries, 0),
        now() + make_interval(secs => coalesce(add_job.expires_in, 7 * 86400)),
        -- Due at once. Bulk jobs wait for their users' turns.
        CASE WHEN add_job.queue NOT LIKE '%-bulk' THEN now() END,
        false, coalesce(add_job.tags, '{{}}')
    )
    ON CONFLICT (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id INTO job_id;
    IF job_id IS NULL THEN
        SELECT id, request_hash INTO job_id, known_hash FROM {schema}.jobs
        WHERE user_id = owner_id AND idempotency_key = add_job.idempotency_key;
        IF job_id IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'serialization_failure',
                MESSAGE = 'A job of the same idempotency key was deleted just now.',
                HINT = 'Try again.';
        ELSIF known_hash <> hash THEN
            RAISE EXCEPTION USING ERRCODE = 'unique_violation',
                MESSAGE = format(
                    'The idempotency key was used for another request (job %s).', job_id
                ),
                HINT = 'Send a new key for a new request.';
        END IF;
        RETURN job_id;
    END IF;
    -- However many there are in a transaction, workers hear it once, when it commits.
    PERFORM pg_notify('promptstack_jobs', '');
    RETURN job_id;
END $$
"""

ENQUEUE_GENERATION = """
CREATE FUNCTION promptstack.enqueue_generation(
    prompt text DEFAULT NULL, messages jsonb DEFAULT NULL,
    provider text DEFAULT NULL, model text DEFAULT NULL,
    parameters jsonb DEFAULT '{}', fallbacks jsonb DEFAULT '[]',
    bulk boolean DEFAULT false, idempotency_key text DEFAULT NULL,
    max_retries integer DEFAULT NULL, expires_in double precision DEFAULT NULL,
    tags text[] DEFAULT '{}'
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    request jsonb;
BEGIN
    IF (prompt IS NULL) = (messages IS NULL) THEN
        PERFORM promptstack.refuse(
            'Give either prompt or messages.', 'For example: enqueue_generation(''Say hello.'')'
        );
    ELSIF prompt !~ '[^[:space:]]' THEN
        PERFORM promptstack.refuse('The prompt is empty.', 'Say what the model is to do.');
    ELSIF jsonb_typeof(messages) <> 'array' OR messages = '[]' THEN
        PERFORM promptstack.refuse(
            'messages must be a list of turns.', 'For example: [{"role": "user", "content": "..."}]'
        );
    END IF;
    parameters := coalesce(parameters, '{}');
    fallbacks := coalesce(fallbacks, '[]');
    IF jsonb_typeof(parameters) <> 'object' THEN
        PERFORM promptstack.refuse(
            'parameters must be an object.', 'For example: {"temperature": 0.2, "max_tokens": 100}'
        );
    ELSIF jsonb_typeof(fallbacks) <> 'array' THEN
        PERFORM promptstack.refuse(
            'fallbacks must be a list of objects.', 'For example: [{"provider": "anthropic"}]'
        );
    END IF;
    request := parameters || jsonb_strip_nulls(
        jsonb_build_object('prompt', prompt, 'provider', provider, 'model', model)
    );
    IF messages IS NOT NULL THEN
        request := request || jsonb_build_object('messages', messages);
    END IF;
    IF fallbacks <> '[]' THEN
        request := request || jsonb_build_object('fallbacks', fallbacks);
    END IF;
    RETURN promptstack.add_job(
        'generation', CASE WHEN bulk THEN 'generation-bulk' ELSE 'generation' END, request,
        coalesce(octet_length(prompt), 0)::bigint + coalesce(pg_column_size(messages), 0)
            + pg_column_size(parameters) + pg_column_size(fallbacks),
        provider, model, idempotency_key, max_retries, expires_in, tags
    );
END $$
"""

ENQUEUE_EMBEDDING = """
CREATE FUNCTION promptstack.enqueue_embedding(
    text text, source text, provider text DEFAULT NULL, model text DEFAULT NULL,
    chunk_tokens integer DEFAULT NULL, collection text DEFAULT NULL,
    bulk boolean DEFAULT false, idempotency_key text DEFAULT NULL,
    max_retries integer DEFAULT NULL, expires_in double precision DEFAULT NULL,
    tags text[] DEFAULT '{}'
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF text IS NULL OR text !~ '[^[:space:]]' THEN
        PERFORM promptstack.refuse(
            'The document is empty; there is nothing to embed.', 'Give its text.'
        );
    ELSIF source IS NULL OR octet_length(source) NOT BETWEEN 1 AND 2000 THEN
        PERFORM promptstack.refuse(
            'The source must have 1 to 2000 bytes.',
            'It names the document: a path, an address, an id of yours.'
        );
    ELSIF chunk_tokens NOT BETWEEN 16 AND 8000 THEN
        PERFORM promptstack.refuse(
            'chunk_tokens must be from 16 to 8000.',
            'Leave it out for the deployment''s own number.'
        );
    END IF;
    PERFORM promptstack.check_name(source, 'source', 2000);
    PERFORM promptstack.check_name(collection, 'collection', 200);
    RETURN promptstack.add_job(
        'embedding', CASE WHEN bulk THEN 'embeddings-bulk' ELSE 'embeddings' END,
        jsonb_strip_nulls(jsonb_build_object(
            'text', text, 'source', source, 'provider', provider, 'model', model,
            'chunk_tokens', chunk_tokens, 'collection', collection
        )),
        octet_length(text), provider, model, idempotency_key, max_retries, expires_in, tags
    );
END $$
"""

MOST_BYTES = 64_000_000


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    # With a constant default, PostgreSQL adds it without a look at the rows.
    op.add_column(
        "jobs", sa.Column("is_checked", sa.Boolean, nullable=False, server_default=sa.true())
    )
    op.create_table(
        "sql_roles",
        sa.Column("role", sa.Text, primary_key=True),
        sa.Column(
            "user_id", sa.Uuid, sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()
        ),
    )
    connection = op.get_bind()
    schema = connection.dialect.identifier_preparer.quote(
        connection.scalar(sa.text("SELECT current_schema()"))
    )
    if connection.scalar(sa.text("SELECT to_regnamespace('promptstack')")) is None:
        _run("CREATE SCHEMA promptstack")
    version = int(connection.scalar(sa.text("SHOW server_version_num")))
    _run(NEW_ID.format(body="SELECT uuidv7()" if version >= 180_000 else UUID7))
    _run(REFUSE)
    _run(CHECK_NAME)
    _run(ADD_JOB.format(schema=schema, most_bytes=MOST_BYTES))
    _run(ENQUEUE_GENERATION)
    _run(ENQUEUE_EMBEDDING)
    for function in FUNCTIONS:
        # Everybody may call a function, unless that is taken back.
        _run(f"REVOKE ALL ON FUNCTION promptstack.{function} FROM PUBLIC")


def downgrade() -> None:
    for function in FUNCTIONS:
        _run(f"DROP FUNCTION promptstack.{function}")
    _run("DROP SCHEMA promptstack")
    op.drop_table("sql_roles")
    op.drop_column("jobs", "is_checked")


def _run(statement: str) -> None:
    op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
