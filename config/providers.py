"""Providers that an operator names, and facts of their models."""

import os
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FilePath,
    SecretStr,
    model_validator,
)

Wire = Literal["openai", "anthropic", "gemini"]
Parameter = Literal["temperature", "max_tokens", "stop", "seed", "json_schema", "tools"]
"""What a generation may ask for and not every server honours."""
IN_THIS_PROCESS = ("demo", "local")
OFFICIAL_HOSTS: dict[str, str] = {
    "api.openai.com": "openai",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "google",
}
"""Where the providers' own prices hold, by the names that genai-prices has for them."""
Count = Annotated[int, Field(ge=1, le=10**9)]
ModelName = Annotated[str, Field(min_length=1, max_length=200)]


def official_host(wire: Wire) -> str:
    """Return the host of the provider's own server."""
    owner = {"gemini": "google"}.get(wire, wire)
    return next(host for host, name in OFFICIAL_HOSTS.items() if name == owner)


def server_address(url: str) -> str:
    """Check an address. It may hold a password, so no error quotes it."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        is_whole = parts.scheme in {"http", "https"} and bool(parts.hostname)
        _ = parts.port
    except ValueError as error:
        raise ValueError("is not an address such as http://gpu1:8000/v1") from error
    if not is_whole or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("is not an address such as http://gpu1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must have no user, password, query or fragment; name the key's variable")
    return url.rstrip("/")


class NamedProvider(BaseModel):
    """A server that jobs can name as their provider. Missing values are the wire's defaults.

    An entry with a built-in provider's name extends that provider. Key and address come from the
    settings unless the entry has its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    wire: Wire
    """Whose API it speaks."""
    base_url: Annotated[str, AfterValidator(server_address)] | None = None
    """Its address with its path prefix; None is the wire's own provider, by another key."""
    api_key_env: str | None = Field(None, pattern=r"^\w+$")
    """The variable that holds its key, in the environment or in `.env`."""
    api_key_file: Path | None = None
    """The file that holds its key, such as a secret of Docker or Kubernetes."""
    generation_model: ModelName | None = None
    """Taken where a generation names no model."""
    embedding_model: ModelName | None = None
    """Taken where an embedding names no model."""
    api_version: str | None = Field(None, pattern=r"^[\w.-]+$")
    """With `openai`: Azure's, and the address is that of an Azure resource. With `gemini`: the
    first part of its paths, such as v1beta. With `anthropic`: the header anthropic-version."""
    prices_of: str | None = Field(None, pattern=r"^[\w.-]+$")
    """Whose prices hold, by its name in genai-prices, such as openai for a proxy before OpenAI."""

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key_env and self.api_key_file:
            raise ValueError("has api_key_env and api_key_file; give one of them")
        return self

    @model_validator(mode="after")
    def _own_name(self) -> Self:
        if self.name in IN_THIS_PROCESS:
            raise ValueError(f"{self.name} is a built-in provider without a server")
        if self.name in {"openai", "anthropic", "gemini"} and self.name != self.wire:
            raise ValueError(f"{self.name} is a built-in provider of the wire {self.name}")
        return self

    @property
    def key_source(self) -> str:
        """Where its key is read from, for a person."""
        own = f"{self.wire.upper()}_API_KEY" if self.name == self.wire else None
        return self.key_setting or own or "what api_key_env in MODELS_FILE names"

    @property
    def key_setting(self) -> str | None:
        """The variable of the key, for error messages; None if there is none."""
        return self.api_key_env or (f"the file {self.api_key_file}" if self.api_key_file else None)

    @property
    def is_official(self) -> bool:
        """Whether this is the provider itself, with its own models."""
        return self.base_url is None or urlsplit(self.base_url).hostname in OFFICIAL_HOSTS

    @property
    def priced_as(self) -> str | None:
        """The provider in genai-prices whose prices hold; None if no prices are known."""
        if self.prices_of is not None or self.base_url is not None:
            return self.prices_of or OFFICIAL_HOSTS.get(
                urlsplit(self.base_url or "").hostname or ""
            )
        return {"openai": "openai", "anthropic": "anthropic", "gemini": "google"}[self.wire]

    def read_key(self) -> SecretStr | None:
        """Read the key. None if there is none; the first call then says what to set."""
        if self.api_key_file is not None:
            try:
                return SecretStr(self.api_key_file.read_text(encoding="utf-8").strip())
            except (OSError, UnicodeDecodeError):
                return None
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env) or dotenv_values(".env").get(self.api_key_env)
        return SecretStr(key) if key else None


class ModelFacts(BaseModel):
    """Bounds of one call to a model. A missing one is learned from refusals, or sets no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str
    model: str = "*"
    """A model's name, or a pattern such as `bge-*`."""
    texts_per_call: Count | None = None
    """Most texts of one embedding call."""
    tokens_per_text: Count | None = None
    """Longest text that it embeds, in its own tokens."""
    tokenizer: FilePath | None = None
    """Its tokenizer.json of Hugging Face: documents are then cut by its own tokens."""
    tokens_per_call: Count | None = None
    """Most tokens of one embedding call, all texts together."""
    unsupported: tuple[Parameter, ...] = ()
    """The parameters that it doesn't honour: a request with one of them is refused."""
    max_tokens_parameter: Literal["max_completion_tokens", "max_tokens"] | None = None
    """How chat completions name the longest answer."""
    encoding_format: Literal["base64", "float"] | None = None
    """The form in which embeddings are asked for."""
