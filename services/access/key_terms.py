"""What an API key may be used for: its scopes, providers, models, rate and expiry."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from promptstack.repositories.access_models import ApiKey, Scope
from promptstack.services.errors import NotPermitted
from promptstack.services.validation.bounds import Name, Time

USUAL_SCOPES = frozenset(Scope) - {Scope.ADMIN}
MAX_PROVIDERS, MAX_MODELS = 50, 200
MAX_REQUESTS_A_MINUTE = 1_000_000


def _still_to_come(time: datetime) -> datetime:
    if time <= datetime.now(UTC):
        raise ValueError("must be in the future")
    return time


Given = Annotated[Name, Field(min_length=1)]
Providers = Annotated[tuple[Given, ...], Field(min_length=1, max_length=MAX_PROVIDERS)]
Models = Annotated[tuple[Given, ...], Field(min_length=1, max_length=MAX_MODELS)]
Rate = Annotated[int, Field(strict=True, ge=1, le=MAX_REQUESTS_A_MINUTE)]


class KeyTerms(BaseModel):
    """What a new key is called, and what it may be used for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Given = Field(description="What it is for, for you to know it again.")
    scopes: Annotated[frozenset[Scope], Field(min_length=1)] = Field(
        USUAL_SCOPES, description="What it may be used for; unset: all but `admin`."
    )
    providers: Providers | None = Field(
        None, description="The only providers it may ask; unset: all."
    )
    models: Models | None = Field(
        None, description="The only models it may ask; `gpt-5-*` names all that begin so."
    )
    requests_a_minute: Rate | None = Field(
        None, description="Most HTTP requests a minute; unset: no limit."
    )
    expires_at: Annotated[Time, AfterValidator(_still_to_come)] | None = Field(
        None, description="When it stops to open anything; UTC unless it says."
    )


@dataclass(frozen=True)
class KeyLimits:
    """Whom the jobs of a key may ask."""

    providers: Sequence[str] | None
    models: Sequence[str] | None

    @classmethod
    def of(
        cls, providers: Sequence[str] | None, models: Sequence[str] | None
    ) -> "KeyLimits | None":
        """The limits of a key; None where it has none."""
        if providers is None and models is None:
            return None
        limits = (None if one is None else tuple(one) for one in (providers, models))
        return cls(*limits)

    def allows(self, provider: str, model: str) -> bool:
        """Whether the key may ask this model of this provider."""
        return self._has(provider) and self._names(model)

    def check(self, provider: str, model: str) -> None:
        """Raise `NotPermitted` for a provider or model that the key may not ask."""
        if self.providers is not None and not self._has(provider):
            raise NotPermitted(
                f"This API key may not ask the provider {provider}; it may ask "
                f"{', '.join(self.providers)}."
            )
        if self.models is not None and not self._names(model):
            raise NotPermitted(
                f"This API key may not ask the model {model}; it may ask {', '.join(self.models)}."
            )

    def _has(self, provider: str) -> bool:
        return self.providers is None or provider in self.providers

    def _names(self, model: str) -> bool:
        return self.models is None or any(fnmatchcase(model, one) for one in self.models)


def check_came_with(api_key_id: UUID | None, only_key: UUID | None) -> None:
    """Raise `NotPermitted` for a job or run that did not come with the only key that may retry."""
    if only_key is not None and api_key_id != only_key:
        raise NotPermitted(
            "This API key may ask only some providers or models, so it retries only what came "
            "with it."
        )


class KeyView(BaseModel):
    """What may be shown of a key."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    email: str
    """Whose it is."""
    name: str
    prefix: str
    """How it begins."""
    scopes: tuple[Scope, ...]
    providers: tuple[str, ...] | None
    models: tuple[str, ...] | None
    requests_a_minute: int | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    """To the minute."""
    previous_until: datetime | None
    """Until when the secret before the last rotation opens too."""
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: ApiKey) -> "KeyView":
        """The view of a key whose user is loaded."""
        columns: dict[str, Any] = {
            name: getattr(key, name) for name in cls.model_fields if name not in {"email", "scopes"}
        }
        return cls(email=key.user.email, scopes=tuple(known_scopes(key.scopes)), **columns)


def known_scopes(scopes: Sequence[str]) -> list[Scope]:
    """The scopes of a key. One that only a later version knows is left out."""
    return [Scope(scope) for scope in scopes if scope in set(Scope)]
