"""The tables of who may do what: users, their sessions and their API keys."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import ARRAY, ForeignKey, Index, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from promptstack.repositories.models import EXPLICIT, Base, new_id, one_of


class Role(StrEnum):
    """What a person may do beyond their own work."""

    USER = "user"
    ADMIN = "admin"
    """Manages users, and sees everybody's work."""
    SUPER_ADMIN = "super_admin"
    """Also makes administrators."""


class Tier(StrEnum):
    """A user's subscription: how large their share is where users wait for each other."""

    FREE = "free"
    PRO = "pro"
    ENTERPRISE = "enterprise"


class Scope(StrEnum):
    """What an API key may be used for."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    RUNS_READ = "runs:read"
    RUNS_WRITE = "runs:write"
    FILES_READ = "files:read"
    FILES_WRITE = "files:write"
    BATCHES_READ = "batches:read"
    BATCHES_WRITE = "batches:write"
    SEARCH = "search"
    WEBHOOKS_READ = "webhooks:read"
    WEBHOOKS_WRITE = "webhooks:write"
    USAGE_READ = "usage:read"
    ADMIN = "admin"
    """What the role of the key's user allows, beyond their own work."""


class User(Base):
    """Somebody who enqueues jobs."""

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    email: Mapped[str]
    name: Mapped[str] = mapped_column(server_default="")
    """The full name."""
    role: Mapped[str] = mapped_column(server_default=Role.USER)
    tier: Mapped[str] = mapped_column(server_default=Tier.FREE)
    is_beta_tester: Mapped[bool] = mapped_column(server_default=text("false"))
    preferred_provider: Mapped[str | None]
    password_hash: Mapped[str | None]
    """None for who can't sign in by a password."""
    notify: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    """The events of their runs that they are told by mail."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    disabled_at: Mapped[datetime | None]
    last_seen_at: Mapped[datetime | None]

    api_keys: Mapped[list["ApiKey"]] = relationship(
        back_populates="user", passive_deletes=True, lazy=EXPLICIT
    )

    __table_args__ = (
        Index("users_email_key", text("lower(email)"), unique=True),
        one_of("role", Role),
        one_of("tier", Tier),
    )


class SqlRole(Base):
    """A role of the database that may enqueue jobs of one user, in SQL."""

    __tablename__ = "sql_roles"

    role: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKey(Base):
    """A key to the HTTP door, of which only the hash is kept."""

    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(server_default="")
    """How the key begins, for a person to know it by; empty for a key from before."""
    key_hash: Mapped[str] = mapped_column(unique=True)
    previous_hash: Mapped[str | None] = mapped_column(unique=True)
    """The secret before the last rotation; it opens until `previous_until`."""
    previous_until: Mapped[datetime | None]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    providers: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    """The only providers it may ask; None for all."""
    models: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    requests_a_minute: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    user: Mapped[User] = relationship(back_populates="api_keys", lazy=EXPLICIT)


class SignInSession(Base):
    """Somebody who has signed in, from then until they sign out."""

    __tablename__ = "sessions"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    cookie_hash: Mapped[str | None] = mapped_column(unique=True)
    """What a browser holds; None for a program, which has tokens."""
    user_agent: Mapped[str] = mapped_column(server_default="")
    address: Mapped[str] = mapped_column(server_default="")
    """Where it was opened from."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]

    user: Mapped[User] = relationship(lazy=EXPLICIT)


class RefreshToken(Base):
    """A refresh token of a session, by its hash. A used one is kept: who uses it again is found."""

    __tablename__ = "refresh_tokens"

    token_hash: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[UUID] = mapped_column(
        ForeignKey("sessions.id", ondelete="CASCADE"), index=True
    )
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    used_at: Mapped[datetime | None]
