"""The file in which a person says what models allow: a TOML file named by MODELS_FILE."""

import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from config.errors import ConfigurationError
from config.limits import ModelLimits
from config.prices import ModelPrice


class ModelsFile(BaseModel):
    """Limits and prices of models; the first entry that matches a model holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limits: tuple[ModelLimits, ...] = ()
    prices: tuple[ModelPrice, ...] = ()

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """Read the file, or nothing where none is named. Raises `ConfigurationError`."""
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
                f"MODELS_FILE {path} is not valid at {where}: {first['msg']}."
            ) from error
