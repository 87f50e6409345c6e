"""Reads MODELS_FILE: providers, aliases, and limits, prices and facts of models, in TOML."""

import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError, field_validator
from pydantic_core import ErrorDetails

from promptstack.config.errors import ConfigurationError
from promptstack.config.providers import ModelFacts, ModelName, NamedProvider

PositiveCount = Annotated[int, Field(ge=1, le=10**12)]
Entry = TypeVar("Entry", "NamedProvider", "ModelAlias")


class ModelLimits(BaseModel):
    """The limits of one credential for a model. A missing value sets no limit.

    The provider's headers set limits too; the lower one holds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str
    model: str = "*"
    """A model's name, or a pattern such as `gpt-5*`; each model that matches has its own limit."""
    requests_per_minute: PositiveCount | None = None
    tokens_per_minute: PositiveCount | None = None
    """Input and output together, for providers that count so."""
    input_tokens_per_minute: PositiveCount | None = None
    output_tokens_per_minute: PositiveCount | None = None
    in_flight: PositiveCount | None = None
    """Calls under way at once."""
    burst_seconds: float = Field(default=1.0, gt=0, le=60)
    """Seconds' worth of calls that may leave at once after a rest; more where headers say so."""


def plain(amount: Decimal) -> str:
    """Return an amount in plain digits. PostgreSQL's zero would print as 0E-10."""
    return f"{amount.normalize():f}"


Dollars = Annotated[Decimal, Field(ge=0, le=1_000_000)]
Money = Annotated[Decimal, PlainSerializer(plain, when_used="json")]
"""An amount that JSON shows in plain digits."""


class ModelPrice(BaseModel):
    """What a model costs, in US dollars per million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str
    model: str = "*"
    """A model's name, or a pattern such as `llama-*`."""
    input_per_million: Dollars
    output_per_million: Dollars = Decimal(0)
    cached_input_per_million: Dollars | None = None
    """Of input tokens that the provider had in its cache; as other input where it isn't given."""


class AliasFallback(BaseModel):
    """Who is asked where the target of an alias can't answer a generation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str
    model: ModelName | None = None
    """None is the provider's default."""


class AliasTarget(AliasFallback):
    """A model that an alias may stand for."""

    weight: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Its share of the requests, beside those of the other targets."""


class ModelAlias(BaseModel):
    """A name that clients of the OpenAI and Anthropic doors may send as their model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^\S+$")]
    targets: Annotated[tuple[AliasTarget, ...], Field(min_length=1, max_length=50)]
    fallbacks: Annotated[tuple[AliasFallback, ...], Field(max_length=5)] = ()
    """Asked in this order where the target can't answer a generation."""


class ModelsFile(BaseModel):
    """Providers, and facts, limits, prices and aliases of models; the first that matches holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    providers: tuple[NamedProvider, ...] = ()
    models: tuple[ModelFacts, ...] = ()
    limits: tuple[ModelLimits, ...] = ()
    prices: tuple[ModelPrice, ...] = ()
    aliases: tuple[ModelAlias, ...] = ()

    @field_validator("providers", "aliases")
    @classmethod
    def _names_differ(cls, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        names = [entry.name for entry in entries]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the name {twice} stands there twice")
        return entries

    def named(self) -> set[str]:
        """The names of providers in facts, limits, prices and aliases."""
        spoken: list[ModelFacts | ModelLimits | ModelPrice | AliasFallback] = [
            *self.models,
            *self.limits,
            *self.prices,
        ]
        for alias in self.aliases:
            spoken += [*alias.targets, *alias.fallbacks]
        return {entry.provider for entry in spoken}

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """Read the file; empty if no file is named. Raises `ConfigurationError`."""
        if path is None:
            return cls()
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigurationError(f"MODELS_FILE {path} cannot be read: {reason}.") from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigurationError(
                f"MODELS_FILE {path} is not valid at {where}: {_in_words(first)}."
            ) from error


def _in_words(fault: ErrorDetails) -> str:
    if fault["type"] != "extra_forbidden":
        return fault["msg"].removeprefix("Value error, ")
    if "key" in str(fault["loc"][-1]):
        return "a key does not stand in this file; name its variable by api_key_env"
    return "there is no field of this name"
