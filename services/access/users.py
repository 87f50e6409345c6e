"""Users: who there is, and what they may do."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from promptstack.repositories.access_models import Role, Tier, User
from promptstack.repositories.idempotency import KeyedRequest
from promptstack.repositories.models import new_id
from promptstack.repositories.pages import Page, PageQuery
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.access.caller import Caller
from promptstack.services.access.emails import OPERATOR, normalised_email
from promptstack.services.access.passwords import Passwords
from promptstack.services.access.user_rules import (
    OWN_FIELDS,
    check_may_change,
    check_stays,
    check_super_admin,
    is_person,
)
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditLog
from promptstack.services.errors import InvalidInput, NotFound, NotPermitted, WrongState
from promptstack.services.idempotency.claims import claim
from promptstack.services.llm.answers import Capability
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.text import check_name, check_storable
from promptstack.services.validation.bounds import checked_limit
from promptstack.services.validation.ids import find_id

MAX_NAME_CHARACTERS = 200
MAX_QUERY_CHARACTERS = 200
FIELDS = OWN_FIELDS | {"role", "tier", "is_beta_tester", "disabled"}


class UserView(BaseModel):
    """A user as administrators and the user see them."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    email: str
    name: str
    role: Role
    tier: Tier
    is_beta_tester: bool
    preferred_provider: str | None
    has_password: bool
    """Whether they can sign in by one."""
    created_at: datetime
    disabled_at: datetime | None
    last_seen_at: datetime | None
    """To the minute."""

    @classmethod
    def of(cls, user: User) -> "UserView":
        """What is shown of a row."""
        return cls(
            id=user.id,
            email=user.email,
            name=user.name,
            role=Role(user.role),
            tier=Tier(user.tier),
            is_beta_tester=user.is_beta_tester,
            preferred_provider=user.preferred_provider,
            has_password=user.password_hash is not None,
            created_at=user.created_at,
            disabled_at=user.disabled_at,
            last_seen_at=user.last_seen_at,
        )


class UserService:
    """Adds, shows and changes users. `by` is who asks for it; None: the command line."""

    def __init__(
        self, ledger: Ledger, audit: AuditLog, passwords: Passwords, factory: LLMServiceFactory
    ) -> None:
        self._ledger = ledger
        self._audit = audit
        self._passwords = passwords
        self._factory = factory

    def create(
        self,
        email: str,
        *,
        by: Caller | None = None,
        password: str | None = None,
        role: Role = Role.USER,
        keyed: KeyedRequest | None = None,
        **fields: Any,
    ) -> UserView:
        """Add a user; without a password they can't sign in by one.

        A request that was `keyed` adds them once. Raises `InvalidInput`, `NotPermitted`,
        `IdempotencyConflict`, and `WrongState` where the address is taken.
        """
        email = normalised_email(email)
        values = self._checked_fields(fields, allowed=FIELDS - {"role", "disabled"})
        if role is not Role.USER:
            check_super_admin(by, "make administrators")
        password_hash = self._new_hash(password, email, values.get("name", ""))
        actor = _actor(by)
        with self._ledger.transaction() as unit:
            user_id = new_id()
            columns = {**values, "id": user_id, "role": role, "password_hash": password_hash}
            if (made := claim(unit, keyed, user_id)) is not None:
                return UserView.of(_found(unit.users.get(made), str(made)))
            if email == OPERATOR or not unit.users.add_if_new(email=email, **columns):
                raise WrongState(f"There is a user {email} already.")
            user = _found(unit.users.get_by_email(email), email)
            self._audit.record(
                unit,
                actor=actor,
                action=Action.USER_CREATED,
                object=ObjectKind.USER.of(user.id),
                detail={"role": role, "tier": user.tier},
            )
            return UserView.of(user)

    def create_first_admin(self, email: str, read_password: Callable[[], str]) -> bool:
        """Add a super_admin unless somebody is one. Returns whether this call added them.

        Several processes may do so at once. A user who is there is never changed.
        """
        email = normalised_email(email)
        if self._has_admin(email):
            return False
        password_hash = self._new_hash(read_password(), email, "")
        with self._ledger.transaction() as unit:
            # Of several processes, the first one adds; the others wait for it here.
            is_first = unit.users.add_if_new(
                email=email, role=Role.SUPER_ADMIN, password_hash=password_hash
            )
            if is_first:
                self._audit.record(
                    unit,
                    actor=Actor.system(),
                    action=Action.USER_CREATED,
                    object=ObjectKind.USER.of(email),
                    detail={"role": Role.SUPER_ADMIN},
                )
        return is_first

    def _has_admin(self, email: str) -> bool:
        with self._ledger.transaction() as unit:
            admins = [each for each in unit.users.get_admins() if each.role == Role.SUPER_ADMIN]
            return unit.users.get_by_email(email) is not None or any(map(is_person, admins))

    def get(self, user_id: UUID) -> UserView:
        """Show a user. Raises `NotFound`."""
        with self._ledger.transaction() as unit:
            return UserView.of(_found(unit.users.get(user_id), str(user_id)))

    def get_many(
        self, query: str = "", *, role: Role | None = None, limit: int = 100
    ) -> list[UserView]:
        """Users whose name or e-mail contains `query`, oldest first. Raises `InvalidInput`."""
        return self.get_page(PageQuery(checked_limit(limit)), query, role=role).rows

    def get_page(
        self, asked: PageQuery, query: str = "", *, role: Role | None = None
    ) -> Page[UserView]:
        """A page of them. Raises `InvalidInput`."""
        check_storable(query, "The query")
        if len(query) > MAX_QUERY_CHARACTERS:
            raise InvalidInput(f"A query has at most {MAX_QUERY_CHARACTERS} characters.")
        with self._ledger.transaction() as unit:
            return unit.users.search(asked, query, role=role).of(UserView.of)

    def find(self, given: str) -> UUID:
        """The id of the user with this e-mail, or the only one whose id begins so.

        Raises the errors of `find_id`.
        """
        with self._ledger.transaction() as unit:
            if "@" not in given:
                return find_id(unit.users, "user", given)
            return _found(unit.users.get_by_email(normalised_email(given)), given[:80]).id

    def change(self, user_id: UUID, *, by: Caller | None = None, **fields: Any) -> UserView:
        """Change fields of a user. Raises `InvalidInput`, `NotFound` and `NotPermitted`.

        Users change their name and preferred provider; administrators all of a user, and
        super_admins all of everybody. The last super_admin stays one: else nobody could make
        another. Who is disabled is signed out everywhere.
        """
        values = self._checked_fields(fields, allowed=FIELDS)
        role, disabled = values.pop("role", None), values.pop("disabled", None)
        with self._ledger.transaction() as unit:
            # All of them first, and in one order: of two changes at once, one sees the other.
            admins = unit.users.lock_super_admins() if role or disabled else []
            user = _found(unit.users.lock(user_id), str(user_id))
            check_may_change(by, user, set(fields))
            if role is not None or disabled is not None:
                check_stays(
                    user, role, bool(disabled), [each.id for each in admins if is_person(each)]
                )
            for action, detail in self._apply(unit, user, values, role, disabled):
                self._audit.record(
                    unit,
                    actor=_actor(by),
                    action=action,
                    object=ObjectKind.USER.of(user_id),
                    detail=detail,
                )
            return UserView.of(user)

    def _apply(
        self,
        unit: UnitOfWork,
        user: User,
        values: Mapping[str, Any],
        role: Role | None,
        disabled: bool | None,
    ) -> list[tuple[Action, dict[str, Any]]]:
        """Make changes. Returns what was done."""
        done: list[tuple[Action, dict[str, Any]]] = []
        changed = {name: value for name, value in values.items() if getattr(user, name) != value}
        if changed:
            unit.users.update(user, **changed)
            done.append((Action.USER_CHANGED, {"changed": sorted(changed)}))
        if role is not None and role != user.role:
            before = user.role
            unit.users.update(user, role=role)
            done.append((Action.ROLE_CHANGED, {"before": before, "after": role}))
        if disabled is not None and disabled != (user.disabled_at is not None):
            unit.users.set_disabled(user.id, disabled=disabled)
            ended = unit.sessions.revoke_all(user.id) if disabled else 0
            unit.session.refresh(user)
            action = Action.USER_DISABLED if disabled else Action.USER_ENABLED
            done.append((action, {"sessions": ended}))
        return done

    def reset_password(
        self, user_id: UUID, password: str | None, *, by: Caller | None = None
    ) -> UserView:
        """Give a user another password, or none. They are signed out everywhere.

        Raises `InvalidInput`, `NotFound` and `NotPermitted`.
        """
        user = self.get(user_id)
        password_hash = self._new_hash(password, user.email, user.name)
        with self._ledger.transaction() as unit:
            row = _found(unit.users.lock(user_id), str(user_id))
            check_may_change(by, row, {"password"})
            if by is not None and by.user_id == user_id:
                raise NotPermitted("Change your own password by the one you have.")
            if row.email == OPERATOR:
                raise NotPermitted(f"{OPERATOR} is the command line's, and has no password.")
            unit.users.update(row, password_hash=password_hash)
            ended = unit.sessions.revoke_all(user_id)
            self._audit.record(
                unit,
                actor=_actor(by),
                action=Action.PASSWORD_RESET,
                object=ObjectKind.USER.of(user_id),
                detail={"sessions": ended},
            )
            return UserView.of(row)

    def _new_hash(self, password: str | None, email: str, name: str) -> str | None:
        if password is None:
            return None
        self._passwords.check(password, email=email, name=name)
        return self._passwords.hash(password)

    def _checked_fields(
        self, fields: Mapping[str, Any], *, allowed: frozenset[str]
    ) -> dict[str, Any]:
        unknown = sorted(set(fields) - allowed)
        if unknown:
            raise InvalidInput(f"A user has no {', '.join(unknown)[:200]!a} that can be set here.")
        values = dict(fields)
        if "name" in values:
            values["name"] = check_name(values["name"], "The name").strip()
            if len(values["name"]) > MAX_NAME_CHARACTERS:
                raise InvalidInput(f"A name has at most {MAX_NAME_CHARACTERS} characters.")
        if (provider := values.get("preferred_provider")) is not None:
            self._factory.service_class(provider).choose_model(Capability.GENERATION, None)
        return values


def _found(user: User | None, given: str) -> User:
    if user is None:
        raise NotFound(f"There is no user {given}.")
    return user


def _actor(by: Caller | None) -> Actor:
    return Actor.command_line() if by is None else Actor.of(by)
