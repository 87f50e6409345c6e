"""Responses of OpenAI's Responses API, and their names and ends in webhooks."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0056"
down_revision = "0055"
branch_labels = None
depends_on = None

CUT_OFF = (
    *("length", "max_tokens", "max_output_tokens", "model_length"),
    *("model_context_window_exceeded", "content_filter", "refusal", "safety", "recitation"),
    *("blocklist", "spii", "prohibited_content", "language", "image_safety"),
)
"""Reasons for which an answer has ended before its end; see `services/openai/chat.py`."""
NOBODY_LISTENS = """
    IF NEW.webhook IS NULL AND NOT EXISTS (
        SELECT FROM webhook_endpoints
        WHERE coalesce(user_id, '00000000-0000-0000-0000-000000000000'::uuid)
            = coalesce(NEW.user_id, '00000000-0000-0000-0000-000000000000'::uuid)
    ) THEN
        RETURN NULL;
    END IF;
"""


def tell_job(completed: str, expired: str) -> str:
    """The function that tells ends of jobs, with the words for two ends of a generation."""
    return f"""
    CREATE OR REPLACE FUNCTION webhook_tell_job() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        {NOBODY_LISTENS}
        PERFORM webhook_add_event(
            gen_random_uuid(),
            NEW.user_id,
            CASE NEW.kind
                WHEN 'generation' THEN 'response.' || CASE NEW.state
                    WHEN 'succeeded' THEN {completed} WHEN 'expired' THEN {expired} ELSE NEW.state
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


IS_RESPONSE = "EXISTS (SELECT FROM responses WHERE id = NEW.id)"
IS_CUT_OFF = "lower(NEW.result->>'finish_reason') IN ({})".format(
    ", ".join(f"'{reason}'" for reason in CUT_OFF)
)
COMPLETED = f"CASE WHEN {IS_CUT_OFF} AND {IS_RESPONSE} THEN 'incomplete' ELSE 'completed' END"
EXPIRED = f"CASE WHEN {IS_RESPONSE} THEN 'failed' ELSE 'incomplete' END"


def upgrade() -> None:
    # A reference locks the table that it refers to.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "responses",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("asked", JSONB(), nullable=False),
        sa.Column("turns_before", sa.Integer(), nullable=False),
        sa.Column("is_kept", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    )
    op.execute(tell_job(COMPLETED, EXPIRED))


def downgrade() -> None:
    op.execute(tell_job("'completed'", "'incomplete'"))
    op.drop_table("responses")
