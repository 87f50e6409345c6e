"""Workers hear of new deliveries when the transaction of an end commits, as of jobs made in SQL."""

from alembic import op

from promptstack.config.names import NEW_JOBS_CHANNEL

revision = "0049"
down_revision = "0048"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(
        f"""
        CREATE FUNCTION webhook_ring() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NOTIFY {NEW_JOBS_CHANNEL};
            RETURN NULL;
        END
        $$
        """
    )
    # Once a statement. Of several in a transaction, PostgreSQL sends one.
    op.execute(
        "CREATE TRIGGER webhook_deliveries_ring AFTER INSERT ON webhook_deliveries "
        "FOR EACH STATEMENT EXECUTE FUNCTION webhook_ring()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER webhook_deliveries_ring ON webhook_deliveries")
    op.execute("DROP FUNCTION webhook_ring")
