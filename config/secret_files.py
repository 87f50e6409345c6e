"""Reads secrets from files, one each: an environment variable is shown by `docker inspect`."""

from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import SecretsSettingsSource

from promptstack.config.errors import ConfigurationError

SECRETS_DIR = Path("/run/secrets")
"""Where Docker and Podman put the secrets of a container."""


class SecretFiles(SecretsSettingsSource):
    """The files of SECRETS_DIR, named as settings in lower case. An empty one says nothing."""

    def __call__(self) -> dict[str, Any]:
        """What stands in the files. Only a folder that somebody has named must be there."""
        named = self.current_state.get("secrets_dir")
        folder = Path(named or SECRETS_DIR)
        if not folder.is_dir():
            if folder != SECRETS_DIR:
                raise ConfigurationError(f"SECRETS_DIR names {folder}, which is not a folder.")
            return {}
        self.secrets_dir = folder
        return {name: value for name, value in super().__call__().items() if value != ""}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """One setting's file. Raises `ConfigurationError` without a word of what stands in it."""
        try:
            return super().get_field_value(field, field_name)
        except UnicodeDecodeError as error:
            raise ConfigurationError(self._problem(field_name, "is not UTF-8 text")) from error
        except OSError as error:
            reason = f"can't be read ({error.strerror}); with Docker it needs the mode 644"
            raise ConfigurationError(self._problem(field_name, reason)) from error

    def _problem(self, field_name: str, reason: str) -> str:
        return f"The secret's file {self.secrets_dir}/{field_name} {reason}."
