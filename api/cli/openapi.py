"""The description of the HTTP API."""

from promptstack.api.cli.terminal import print_json
from promptstack.config.settings import get_settings


def openapi() -> None:
    """Print the description of the HTTP API (OpenAPI)."""
    # FastAPI takes long to load, and other commands don't need it.
    from promptstack.api.http.description import describe  # noqa: PLC0415

    print_json(describe(get_settings()))
