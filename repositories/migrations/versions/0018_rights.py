"""Users have a role, a tier and a password; a key has scopes, limits, an expiry and a rotation.

An administrator's key passes on its user's role from now on, so the users of such keys become
administrators. Their other keys don't, as these lack the scope `admin`.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

TEXTS = postgresql.ARRAY(sa.Text())
SCOPES = (
    "{jobs:read,jobs:write,runs:read,runs:write,files:read,files:write,batches:read,batches:write,"
    "search,usage:read}"
)


def upgrade() -> None:
    # Behind a long transaction it would wait, and all who use the table behind it.
    op.execute("SET LOCAL lock_timeout = '5s'")
    of_users: list[sa.Column[Any]] = [
        sa.Column("role", sa.Text(), server_default="user", nullable=False),
        sa.Column("tier", sa.Text(), server_default="free", nullable=False),
        sa.Column("is_beta_tester", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("password_hash", sa.Text()),
        sa.Column("notify", TEXTS, server_default="{}", nullable=False),
        _time("disabled_at"),
        _time("last_seen_at"),
    ]
    for column in of_users:
        op.add_column("users", column)
    op.create_check_constraint("role_known", "users", "role IN ('user', 'admin', 'super_admin')")
    op.create_check_constraint("tier_known", "users", "tier IN ('free', 'pro', 'enterprise')")
    of_keys: list[sa.Column[Any]] = [
        sa.Column("prefix", sa.Text(), server_default="", nullable=False),
        sa.Column("previous_hash", sa.Text()),
        _time("previous_until"),
        sa.Column("scopes", TEXTS, server_default=SCOPES, nullable=False),
        sa.Column("providers", TEXTS),
        sa.Column("models", TEXTS),
        sa.Column("requests_a_minute", sa.Integer()),
        _time("expires_at"),
        _time("last_used_at"),
    ]
    for column in of_keys:
        op.add_column("api_keys", column)
    op.create_unique_constraint("api_keys_previous_hash_key", "api_keys", ["previous_hash"])
    op.alter_column("api_keys", "scopes", server_default="{}")
    op.execute("UPDATE api_keys SET scopes = scopes || '{admin}' WHERE is_admin")
    op.execute(
        "UPDATE users SET role = 'admin' WHERE id IN "
        "(SELECT user_id FROM api_keys WHERE is_admin AND revoked_at IS NULL)"
    )
    # The command line's user.
    op.execute("UPDATE users SET role = 'super_admin' WHERE lower(email) = 'operator@localhost'")
    op.drop_column("api_keys", "is_admin")


def downgrade() -> None:
    op.add_column(
        "api_keys",
        sa.Column("is_admin", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    # No door opens again that is closed now.
    op.execute(
        "UPDATE api_keys SET is_admin = 'admin' = ANY (scopes) AND users.role <> 'user' "
        "FROM users WHERE users.id = user_id"
    )
    op.execute(
        "UPDATE api_keys SET revoked_at = now() FROM users WHERE users.id = user_id "
        "AND revoked_at IS NULL AND (expires_at <= now() OR users.disabled_at IS NOT NULL)"
    )
    for column in (
        "prefix",
        "previous_hash",
        "previous_until",
        "scopes",
        "providers",
        "models",
        "requests_a_minute",
        "expires_at",
        "last_used_at",
    ):
        op.drop_column("api_keys", column)
    for column in (
        "role",
        "tier",
        "is_beta_tester",
        "password_hash",
        "notify",
        "disabled_at",
        "last_seen_at",
    ):
        op.drop_column("users", column)


def _time(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True))
