"""The client needs an HTTP client and pydantic, and loads nothing else."""

import subprocess
import sys
from importlib.metadata import requires
from importlib.util import find_spec

import pytest

from promptstack_client import AsyncClient, Client, NotConfigured

LOADED = """
import sys
import promptstack_client, promptstack_client.sql
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_nothing_of_the_server_is_here() -> None:
    for name in ("promptstack", "celery", "redis", "fastapi"):
        assert find_spec(name) is None, name


def test_it_depends_on_an_http_client_and_pydantic_only() -> None:
    needed = requires("promptstack-client") or []
    assert sorted(line.partition(">")[0] for line in needed) == ["httpx2", "pydantic"]


def test_no_driver_is_loaded_that_the_caller_has_not_loaded() -> None:
    ran = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    drivers = {"sqlalchemy", "psycopg", "psycopg2", "asyncpg"}
    assert not drivers & set(ran.stdout.split())


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_it_asks_for_what_it_must_know(
    monkeypatch: pytest.MonkeyPatch, kind: type[Client] | type[AsyncClient]
) -> None:
    monkeypatch.delenv("PROMPTSTACK_URL", raising=False)
    monkeypatch.delenv("PROMPTSTACK_API_KEY", raising=False)
    with pytest.raises(NotConfigured, match="PROMPTSTACK_URL"):
        kind(api_key="ps_x")
    with pytest.raises(NotConfigured, match="begins with http"):
        kind("localhost:8000", "ps_x")
    with pytest.raises(NotConfigured, match="PROMPTSTACK_API_KEY"):
        kind("http://localhost:8000")
    with pytest.raises(NotConfigured, match="whole"):
        kind("http://localhost:8000", "ps_x\n")


def test_a_key_is_not_shown() -> None:
    with Client("http://localhost:8000", "ps_secret") as client:
        assert "ps_secret" not in repr(client._sender.settings)
