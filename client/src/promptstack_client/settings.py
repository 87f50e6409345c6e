"""Where the server is, who asks, and how patient the client is."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from promptstack_client.errors import NotConfigured

URL = "PROMPTSTACK_URL"
API_KEY = "PROMPTSTACK_API_KEY"
PREFIX = "/api/v1"
USER_AGENT = f"promptstack-client/{version('promptstack-client')}"


@dataclass(frozen=True, slots=True)
class Settings:
    """What every request of a client has in common."""

    url: str
    api_key: str = field(repr=False)
    timeout: float
    max_retries: int

    @classmethod
    def read(
        cls,
        url: str | None,
        api_key: str | None,
        *,
        timeout: float,
        max_retries: int,
        environment: Mapping[str, str] = os.environ,
    ) -> "Settings":
        """Take what is given, and the rest from the environment. Raises `NotConfigured`."""
        url = url or environment.get(URL)
        if not url:
            raise NotConfigured(f"Where is the server? Give url=, or set {URL}.")
        if not url.startswith(("http://", "https://")):
            raise NotConfigured(f"The server's address begins with http:// or https://: {url!r}")
        api_key = api_key or environment.get(API_KEY)
        if not api_key:
            raise NotConfigured(
                f"Who asks? Give api_key=, or set {API_KEY}; `promptstack keys create` makes a key."
            )
        if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            raise NotConfigured("The API key has characters that no key has; is it whole?")
        return cls(url.rstrip("/").removesuffix(PREFIX) + PREFIX, api_key, timeout, max_retries)

    @property
    def headers(self) -> dict[str, str]:
        """Who asks, and by what."""
        return {"Authorization": f"Bearer {self.api_key}", "User-Agent": USER_AGENT}
