"""A kind of job that makes the vectors of some inputs, and the tokens of each that is kept."""

from alembic import op

revision = "0054"
down_revision = "0053"
branch_labels = None
depends_on = None

KINDS = "'generation', 'embedding', 'shard', 'finalization', 'notification', 'operation', 'batch'"


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_constraint("kind_known", "jobs")
    # The next step reads the rows that are there, without stopping those that write.
    op.execute(
        f"ALTER TABLE jobs ADD CONSTRAINT kind_known CHECK (kind IN ({KINDS}, 'vectors')) NOT VALID"
    )
    op.execute("ALTER TABLE query_vectors ADD COLUMN tokens integer")


def downgrade() -> None:
    op.execute("ALTER TABLE query_vectors DROP COLUMN tokens")
    op.execute("DELETE FROM jobs WHERE kind = 'vectors'")
    op.drop_constraint("kind_known", "jobs")
    op.create_check_constraint("kind_known", "jobs", f"kind IN ({KINDS})")
