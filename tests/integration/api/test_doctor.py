"""`promptstack doctor` asks everything at once, and waits for nobody long."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pydantic import SecretStr

from promptstack.api.cli.doctor import Finding, examine
from promptstack.config.settings import Settings
from promptstack.tasks.composition import PromptStack
from tests.mail_server import mail_server

PATIENCE = 2.0
HANGING = 4


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server that takes connections, and then says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield server.getsockname()[1]


def findings(stack: PromptStack) -> dict[str, Finding]:
    return {found.name: found for found in examine(stack, PATIENCE)}


def test_providers_that_hang_are_waited_for_together(
    environment: dict[str, str], port: int, tmp_path: Path
) -> None:
    models = tmp_path / "models.toml"
    models.write_text(
        "".join(
            f'[[providers]]\nname = "slow-{number}"\nwire = "openai"\n'
            f'base_url = "http://127.0.0.1:{port}/v1"\n'
            for number in range(HANGING)
        )
    )
    with PromptStack.open(Settings(_env_file=None, models_file=models)) as stack:
        stack.factory.service_class("slow-0")  # its SDK takes long to import
        began = time.monotonic()
        found = findings(stack)
        seconds = time.monotonic() - began

    # One after the other, they would take so long by themselves.
    assert seconds < PATIENCE * HANGING
    for number in range(HANGING):
        hanging = found[f"slow-{number}"]
        assert (hanging.status, hanging.detail) == ("warning", "did not answer within 2.0 s.")
    assert found["PostgreSQL"].status == found["demo"].status == found["local"].status == "ok"


def test_a_database_that_hangs_keeps_nobody_from_the_rest(
    environment: dict[str, str], port: int
) -> None:
    settings = Settings(_env_file=None)
    url = f"postgresql+psycopg2://user@127.0.0.1:{port}/name"
    with ExitStack() as opened:
        stack = opened.enter_context(PromptStack(settings, url, str(settings.redis_url)))
        began = time.monotonic()
        found = findings(stack)
        # It is asked in three ways, each of which gives up after five seconds by itself.
        assert time.monotonic() - began < 15.0

    for name in ("PostgreSQL", "schema", "workers"):
        assert (found[name].status, found[name].detail) == (
            "missing",
            "did not answer within 2.0 s",
        )
    assert found["Redis"].status == found["broker"].status == "ok"


def test_what_has_no_key_is_not_imported(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(variable, "")
    with PromptStack.open(Settings(_env_file=None)) as stack:
        found = findings(stack)
        assert "openai" not in stack.factory._classes

    needs = "openai needs an API key, which is read from OPENAI_API_KEY."
    assert (found["openai"].status, found["openai"].detail) == ("warning", needs)


def test_the_mail_server_is_asked_where_one_is_set(environment: dict[str, str]) -> None:
    with PromptStack.open(Settings(_env_file=None)) as stack:
        assert "mail" not in findings(stack)
    with mail_server() as server:
        where = f"localhost:{server.port}"
        url = SecretStr(f"smtp://{where}?tls=off")
        settings = Settings(_env_file=None, smtp_url=url, mail_from="stack@example.org")
        with PromptStack.open(settings) as stack:
            found = findings(stack)["mail"]
    assert (found.status, found.detail) == ("ok", f"{where}, without TLS")
    with PromptStack.open(settings) as stack:
        found = findings(stack)["mail"]
    assert found.status == "missing"
    assert f"The mail server {where} can't be reached" in found.detail
