"""The audit log, to which rows are only added."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

YOUNGEST_SECONDS = 86_400
"""Whatever the retention says, a row of the last day stays: who clears the log is seen in it."""


def upgrade() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("actor_kind", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object_kind", sa.Text(), nullable=True),
        sa.Column("object_id", sa.Text(), nullable=True),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), server_default="ok", nullable=False),
        sa.Column("detail", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.CheckConstraint(
            "actor_kind IN ('user', 'key', 'command_line', 'proxy', 'system')",
            name="actor_kind_known",
        ),
        sa.CheckConstraint("result IN ('ok', 'refused', 'failed')", name="result_known"),
        sa.CheckConstraint("octet_length(CAST(detail AS text)) <= 16000", name="detail_is_small"),
    )
    op.create_index("audit_log_at", "audit_log", ["at"])
    op.create_index("audit_log_user", "audit_log", ["user_id", "id"])
    op.create_index("audit_log_action", "audit_log", ["action", "id"])
    op.create_index("audit_log_object", "audit_log", ["object_id", "id"])
    op.execute(
        f"""
        CREATE FUNCTION audit_log_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            -- Set by the retention for its own transaction.
            retention text := nullif(current_setting('promptstack.audit_retention', true), '');
        BEGIN
            IF TG_OP = 'DELETE' AND retention IS NOT NULL AND OLD.at < now() - make_interval(
                secs => greatest(CAST(retention AS double precision), {YOUNGEST_SECONDS})
            ) THEN
                RETURN OLD;
            END IF;
            RAISE EXCEPTION 'The audit log is append only: % is refused.', TG_OP
                USING ERRCODE = 'insufficient_privilege';
        END
        $$
        """
    )
    op.execute(
        "CREATE TRIGGER audit_log_keeps_rows BEFORE UPDATE OR DELETE ON audit_log "
        "FOR EACH ROW EXECUTE FUNCTION audit_log_is_append_only()"
    )
    op.execute(
        "CREATE TRIGGER audit_log_keeps_all BEFORE TRUNCATE ON audit_log "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_log_is_append_only()"
    )


def downgrade() -> None:
    op.drop_table("audit_log")
    op.execute("DROP FUNCTION audit_log_is_append_only")
