"""How PostgreSQL is reached: the spellings of DATABASE_URL, and what is said of wrong ones."""

from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import make_url

from promptstack.api.cli.doctor import _try
from promptstack.config.errors import ConfigurationError
from promptstack.config.settings import load_settings
from promptstack.embedded.servers import ServerUrls
from promptstack.repositories.errors import LedgerUnavailable
from promptstack.repositories.session import Ledger

PSYCOPG2 = "postgresql+psycopg2://"


def read(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DATABASE_URL", url)
    return str(load_settings(_env_file=None).database_url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://u:p@h:5/d", "u:p@h:5/d"),
        (" postgresql+psycopg://u:p%40ss%2F@h/d\r\n", "u:p%40ss%2F@h/d"),
        ("postgresql://u:p w#x@h/d", "u:p w%23x@h/d"),
        ("postgresql://u@[::1]:5/d?sslmode=verify-full", "u@[::1]:5/d?sslmode=verify-full"),
        ("postgresql:///?service=mine", "/?service=mine"),
        ("postgresql://a:1,b/d", "/d?host=a%2Cb&port=1%2C5432"),
        ("postgresql://u:p@a,[::1]:2/d?sslmode=require", None),
        ("postgresql://u@%2Frun%2Fpg:6/d", "u@/d?host=%2Frun%2Fpg&port=6"),
    ],
)
def test_the_usual_spellings_are_taken(
    url: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read(url, monkeypatch)
    if expected is not None:
        assert found == PSYCOPG2 + expected
    else:
        query = make_url(found).query
        assert query == {"host": "a,::1", "port": "5432,2", "sslmode": "require"}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://u:hunter2@h/d?schema=public", "does not know: schema"),
        ("postgresql://u:hunter2@h/d?pgbouncer=true", "does not know: pgbouncer"),
        ("postgresql+asyncpg://u:hunter2@h/d", "must begin with postgresql://"),
        ("jdbc:postgresql://h/d?password=hunter2", "is not a database URL"),
        ("postgresql://u:hunter2@h\r/d", "a line end"),
        ("postgresql://u:hunter2@h:port/d", "is not a database URL"),
        ("postgresql://u:hunter2@a:x,b/d", "is not a database URL"),
    ],
)
def test_what_the_driver_could_not_take_is_refused_at_once(
    url: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(url, monkeypatch)
    message = str(caught.value)
    assert message.startswith("Wrong setting: DATABASE_URL: ")
    assert reason in message
    assert "hunter2" not in message
    assert "\n" not in message


def test_the_first_of_several_hosts_that_answers_is_taken(
    servers: ServerUrls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = make_url(servers.database_url)
    there = f"{quote(str(real.query['host']), safe='')}:{real.query['port']}"
    nowhere = quote(str(tmp_path), safe="")
    url = read(f"postgresql://postgres@{nowhere},{there}/{real.database}", monkeypatch)
    ledger = Ledger(url)
    assert ledger.ping()
    ledger.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://u:hunter2@127.0.0.1:1/d", "Connection refused"),
        ("postgresql://u:hunter2@127.0.0.1:1/d?sslmode=perhaps", "invalid sslmode value"),
        ("postgresql://u:hunter2@127.0.0.1:99999/d", "invalid port number"),
        ("postgresql:///?service=nowhere&password=hunter2", 'service "nowhere" not found'),
    ],
)
def test_who_runs_the_servers_is_told_what_the_driver_said(
    url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(read(url, monkeypatch))
    with pytest.raises(LedgerUnavailable) as caught:
        ledger.ping()
    # Callers of the API are not: it names hosts and users.
    assert said not in str(caught.value)
    finding = _try("PostgreSQL", ledger.ping)
    assert said in finding.detail
    assert "hunter2" not in finding.detail
    assert "\n" not in finding.detail
