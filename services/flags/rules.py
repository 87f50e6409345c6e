"""The rules of a feature flag, and whom they fit."""

import logging
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any, Literal, Protocol
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_serializer

from promptstack.repositories.access_models import Role, Tier
from promptstack.services.errors import InvalidInput
from promptstack.services.validation.bounds import Line

logger = logging.getLogger(__name__)

MAX_RULES = 20
MAX_USERS = 1_000
"""In one rule."""
MAX_EMAIL_CHARACTERS = 254

Email = Annotated[Line, Field(min_length=3, max_length=MAX_EMAIL_CHARACTERS)]
SOME = Field(min_length=1)
"""Of none, a rule would fit nobody, and read as if it fitted everybody."""
Environment = Literal["development", "test", "production"]


class FlagUser(Protocol):
    """What of a user the rules look at. A `Caller` has it."""

    @property
    def user_id(self) -> UUID: ...
    @property
    def email(self) -> str: ...
    @property
    def role(self) -> Role: ...
    @property
    def tier(self) -> Tier: ...
    @property
    def is_beta_tester(self) -> bool: ...


class Rule(BaseModel):
    """Whom a feature is on for: who meets all that the rule says. An empty rule fits everybody."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    environments: Annotated[frozenset[Environment], SOME] | None = Field(
        None, description="Only in these."
    )
    roles: Annotated[frozenset[Role], SOME] | None = Field(
        None, description="Only users of these roles."
    )
    tiers: Annotated[frozenset[Tier], SOME] | None = Field(
        None, description="Only users of these tiers."
    )
    beta_testers: Literal[True] | None = Field(None, description="Only beta testers.")
    users: Annotated[frozenset[Email], Field(min_length=1, max_length=MAX_USERS)] | None = Field(
        None, description="Only users of these e-mail addresses."
    )
    percentage: Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)] | None = (
        Field(None, description="Only so many of a hundred users. Raised, it keeps those it had.")
    )

    def fits(self, flag: str, environment: str, user: FlagUser | None) -> bool:
        """Whether the feature is on by this rule; without a user only where it asks for none."""
        if self.environments is not None and environment not in self.environments:
            return False
        asks = [self.roles, self.tiers, self.beta_testers, self.users, self.percentage]
        if user is None:
            return all(one is None for one in asks)
        return (
            (self.roles is None or user.role in self.roles)
            and (self.tiers is None or user.tier in self.tiers)
            and (self.beta_testers is None or user.is_beta_tester)
            and (self.users is None or user.email.lower() in map(str.lower, self.users))
            and (self.percentage is None or place_of(flag, user.user_id) < self.percentage)
        )

    @model_serializer(mode="plain")
    def as_json(self) -> dict[str, Any]:
        """What the rule says, without what it doesn't, always in the same order."""
        said = {
            name: value
            for name in type(self).model_fields
            if (value := getattr(self, name)) is not None
        }
        return {
            name: sorted(map(str, value)) if isinstance(value, frozenset) else value
            for name, value in said.items()
        }


Rules = Annotated[tuple[Rule, ...], Field(max_length=MAX_RULES)]
"""A feature is on for whom any of its rules fits; without rules it is off."""
ON, OFF = (Rule(),), tuple[Rule, ...]()
_RULES: TypeAdapter[tuple[Rule, ...]] = TypeAdapter(Rules)


def place_of(flag: str, user_id: UUID) -> float:
    """The user's place of a hundred for a flag: always the same, and another one for each flag."""
    digest = blake2b(f"{flag}:{user_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64 * 100


def read_rules(said: object) -> tuple[Rule, ...]:
    """Read rules as settings have them: true, false, one rule, or several.

    Raises `ValueError`, which says what is wrong where.
    """
    match said:
        case bool():
            return ON if said else OFF
        case Mapping():
            said = [said]
    try:
        return _RULES.validate_python(said)
    except InvalidInput as error:
        raise ValueError(str(error)) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def stored_rules(flag: str, said: object) -> tuple[Rule, ...]:
    """Read rules from the ledger. Those of a later version fit nobody: off is the safe side."""
    try:
        return read_rules(said)
    except ValueError as error:
        logger.warning("the feature flag %s is off: %s", flag, error)
        return OFF


def on_for(rules: Sequence[Rule], flag: str, environment: str, user: FlagUser | None) -> bool:
    """Whether any of the rules fits."""
    return any(rule.fits(flag, environment, user) for rule in rules)
