"""Reads MODELS_FILE: providers, and limits, prices and facts of models, in TOML."""

import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import ErrorDetails

from promptstack.config.errors import ConfigurationError
from promptstack.config.limits import ModelLimits
from promptstack.config.prices import ModelPrice
from promptstack.config.providers import ModelFacts, NamedProvider


class ModelsFile(BaseModel):
    """Providers, and facts, limits and prices of models; the first entry that matches holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    providers: tuple[NamedProvider, ...] = ()
    models: tuple[ModelFacts, ...] = ()
    limits: tuple[ModelLimits, ...] = ()
    prices: tuple[ModelPrice, ...] = ()

    @field_validator("providers")
    @classmethod
    def _names_differ(cls, providers: tuple[NamedProvider, ...]) -> tuple[NamedProvider, ...]:
        names = [provider.name for provider in providers]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the name {twice} stands there twice")
        return providers

    def named(self) -> set[str]:
        """The names of providers in facts, limits and prices."""
        spoken: list[ModelFacts | ModelLimits | ModelPrice] = [
            *self.models,
            *self.limits,
            *self.prices,
        ]
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
