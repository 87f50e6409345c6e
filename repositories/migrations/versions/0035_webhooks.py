"""Ends of jobs and runs are told to other services.

A trigger notes them, in the transaction of the end: an event is there if the end is, whatever ended
the job. See docs/decisions/0020-webhooks.md.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
OWNER = "coalesce(user_id, '00000000-0000-0000-0000-000000000000'::uuid)"
IS_DUE = "due_at IS NOT NULL"


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("jobs", sa.Column("webhook", sa.Text()))
    op.add_column("runs", sa.Column("webhook", sa.Text()))
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("user_id", sa.Uuid(), sa.ForeignKey("users.id", ondelete="CASCADE")),
        sa.Column("url", sa.Text()),
        sa.Column("events", postgresql.ARRAY(sa.Text()), server_default="{*}", nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("previous_secret", sa.Text()),
        sa.Column("previous_until", TIME),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("rests_until", TIME),
        sa.Column("disabled_at", TIME),
        sa.Column("disabled_reason", sa.Text()),
        sa.Column("created_at", TIME, server_default=sa.func.now(), nullable=False),
    )
    op.create_index("webhook_endpoints_of_user", "webhook_endpoints", [sa.text(OWNER), "id"])
    op.create_index(
        "webhook_endpoints_of_objects",
        "webhook_endpoints",
        [sa.text(OWNER)],
        unique=True,
        postgresql_where=sa.text("url IS NULL"),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.Text()),
        sa.Column("host", sa.Text(), server_default="", nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("due_at", TIME),
        sa.Column("claims", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", postgresql.JSONB(), server_default="[]", nullable=False),
        sa.Column("created_at", TIME, server_default=sa.func.clock_timestamp(), nullable=False),
        sa.Column("finished_at", TIME),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state_known"),
    )
    op.create_index(
        "webhook_deliveries_due", "webhook_deliveries", ["due_at"], postgresql_where=sa.text(IS_DUE)
    )
    op.create_index(
        "webhook_deliveries_due_of",
        "webhook_deliveries",
        ["endpoint_id", "host", "due_at"],
        postgresql_where=sa.text(IS_DUE),
    )
    op.create_index("webhook_deliveries_created", "webhook_deliveries", ["created_at"])
    op.create_index("webhook_deliveries_of", "webhook_deliveries", ["endpoint_id", "id"])
    op.execute(NEW_ID)
    op.execute(ADD_EVENT)
    op.execute(TELL_JOB)
    op.execute(TELL_RUN)
    op.execute(
        "CREATE TRIGGER jobs_tell_end AFTER UPDATE OF state ON jobs FOR EACH ROW WHEN ("
        "NEW.finished_at IS NOT NULL AND OLD.state IS DISTINCT FROM NEW.state "
        "AND NEW.run_id IS NULL AND NEW.kind IN ('generation', 'embedding')"
        ") EXECUTE FUNCTION webhook_tell_job()"
    )
    op.execute(
        "CREATE TRIGGER runs_tell_end AFTER UPDATE OF state ON runs FOR EACH ROW WHEN ("
        "NEW.finished_at IS NOT NULL AND OLD.state IS DISTINCT FROM NEW.state "
        "AND NEW.error_code IS DISTINCT FROM 'DISCARDED'"
        ") EXECUTE FUNCTION webhook_tell_run()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER jobs_tell_end ON jobs")
    op.execute("DROP TRIGGER runs_tell_end ON runs")
    op.execute("DROP FUNCTION webhook_tell_job")
    op.execute("DROP FUNCTION webhook_tell_run")
    op.execute("DROP FUNCTION webhook_add_event")
    op.execute("DROP FUNCTION webhook_new_id")
    op.drop_table("webhook_deliveries")
    op.drop_table("webhook_endpoints")
    op.drop_column("runs", "webhook")
    op.drop_column("jobs", "webhook")


# A UUID of version 7, whose order is the order of creation; PostgreSQL has one from 18 on.
NEW_ID = """
CREATE FUNCTION webhook_new_id() RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT CAST(encode(set_bit(set_bit(overlay(
        uuid_send(gen_random_uuid())
        PLACING substring(
            int8send(CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS bigint)) FROM 3
        )
        FROM 1 FOR 6
    ), 52, 1), 53, 1), 'hex') AS uuid)
$$
"""

# One delivery for each endpoint that wants the event; of one event, all have the same event_id. The
# row of a user without an address of its own is for the objects that name an address themselves.
ADD_EVENT = """
CREATE FUNCTION webhook_add_event(
    the_event uuid, the_user uuid, the_type text, the_object uuid, the_url text
) RETURNS void LANGUAGE sql VOLATILE AS $$
    INSERT INTO webhook_deliveries (id, endpoint_id, event_id, type, object_id, url, host, due_at)
    SELECT
        webhook_new_id(), endpoints.id, the_event, the_type, the_object,
        CASE WHEN endpoints.url IS NULL THEN the_url END,
        CASE
            WHEN endpoints.url IS NULL
            THEN lower(coalesce(substring(the_url FROM '^[a-zA-Z]+://([^/?#]+)'), ''))
            ELSE ''
        END,
        CASE WHEN endpoints.disabled_at IS NULL THEN clock_timestamp() END
    FROM webhook_endpoints AS endpoints
    WHERE coalesce(endpoints.user_id, '00000000-0000-0000-0000-000000000000'::uuid)
        = coalesce(the_user, '00000000-0000-0000-0000-000000000000'::uuid)
    AND CASE
        WHEN endpoints.url IS NULL THEN the_url IS NOT NULL
        ELSE the_type = ANY (endpoints.events) OR '*' = ANY (endpoints.events)
    END
$$
"""

# First what ends most jobs: neither the job nor its user has a webhook.
NOBODY_LISTENS = """
    IF NEW.webhook IS NULL AND NOT EXISTS (
        SELECT FROM webhook_endpoints
        WHERE coalesce(user_id, '00000000-0000-0000-0000-000000000000'::uuid)
            = coalesce(NEW.user_id, '00000000-0000-0000-0000-000000000000'::uuid)
    ) THEN
        RETURN NULL;
    END IF;
"""

TELL_JOB = f"""
CREATE FUNCTION webhook_tell_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {NOBODY_LISTENS}
    PERFORM webhook_add_event(
        gen_random_uuid(),
        NEW.user_id,
        CASE NEW.kind
            WHEN 'generation' THEN 'response.' || CASE NEW.state
                WHEN 'succeeded' THEN 'completed' WHEN 'expired' THEN 'incomplete' ELSE NEW.state
            END
            ELSE 'embedding.' || CASE NEW.state
                WHEN 'succeeded' THEN 'completed' WHEN 'expired' THEN 'failed' ELSE NEW.state
            END
        END,
        NEW.id,
        NEW.webhook
    );
    RETURN NULL;
END
$$
"""

TELL_RUN = f"""
CREATE FUNCTION webhook_tell_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {NOBODY_LISTENS}
    PERFORM webhook_add_event(
        gen_random_uuid(), NEW.user_id, 'run.' || NEW.state, NEW.id, NEW.webhook
    );
    RETURN NULL;
END
$$
"""
