"""Starts commands of ours by fork, from a process that has imported what they need.

An interpreter of its own imports for two seconds before a command does anything; a fork takes a
twentieth of that. What was not imported here is imported by the command itself, with the
environment it is given: so is `api.cli`, which looks at the terminal while it is imported.

`python -m tests.fork_server` is started by `tests.processes.ForkServer`, with the socket of its
requests for standard input. It has one thread, since a fork would copy the others by half.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

IMPORTED = (
    "aiohttp.web",
    "promptstack.api.http.app",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.concurrency.thread",
    "celery.worker.components",
    "celery.worker.consumer",
    "flower.app",
    "kombu.transport.redis",
    "openai.resources.chat",
    "openai.resources.embeddings",
    "promptstack.repositories.migrations",
    "rich.progress",
    "rich.table",
    "promptstack.services.llm.demo",
    "typer.main",
    "uvicorn",
    "wordllama",
    "promptstack.worker.process",
)
FILES = 3
"""Standard input, output and error."""
NUMBER_BYTES = 4


def main() -> None:
    """Serve requests until the socket closes; in each child, run what was asked for."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    requested = _serve(socket.socket(fileno=os.dup(0)))
    if requested is not None:
        _become(requested)


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; answers what was asked for in the child, and None at the end."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    # A handler, unlike SIG_IGN, is not inherited: children start with the default.
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    started: dict[int, socket.socket] = {}
    while True:
        readable, _, _ = select.select([channel.fileno(), woken], [], [])
        if woken in readable:
            os.read(woken, 4_096)
            _report(started)
        if channel.fileno() not in readable:
            continue
        message, descriptors, _, _ = socket.recv_fds(channel, 1, 1 + FILES)
        if not message:
            return None
        asker, files = socket.socket(fileno=descriptors[0]), descriptors[1:]
        request = _read(asker)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for each in (channel, asker, *started.values()):
                each.close()
            _take(files, leaving=(woken, wake))
            return request
        for descriptor in files:
            os.close(descriptor)
        started[pid] = asker
        asker.sendall(number_sent(pid))


def _take(files: list[int], leaving: tuple[int, ...]) -> None:
    """Make these files standard input, output and error, and keep nothing else."""
    for number, descriptor in enumerate(files):
        os.dup2(descriptor, number)
    for descriptor in (*files, *leaving):
        os.close(descriptor)


def number_sent(number: int) -> bytes:
    """A process id or an exit code as it travels."""
    return number.to_bytes(NUMBER_BYTES, "big", signed=True)


def number_read(sent: bytes) -> int:
    """What `number_sent` made."""
    return int.from_bytes(sent, "big", signed=True)


def _read(asker: socket.socket) -> dict[str, Any]:
    size = number_read(asker.recv(NUMBER_BYTES, socket.MSG_WAITALL))
    request: dict[str, Any] = json.loads(asker.recv(size, socket.MSG_WAITALL))
    return request


def _report(started: dict[int, socket.socket]) -> None:
    """Tell who asked for a child that it has ended, and how."""
    while started:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with started.pop(pid) as asker, suppress(BrokenPipeError):  # nobody wants to know
            asker.sendall(number_sent(os.waitstatus_to_exitcode(status)))


def _become(request: dict[str, Any]) -> None:
    """Be `python *arguments`, as near as may be to an interpreter that has just started."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["new_session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _open_files(os.environ.get("PYTHONIOENCODING", "utf-8"))
    how, *rest = request["arguments"]
    if how == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [how, *rest]
        runpy.run_path(how, run_name="__main__")


def _open_files(given: str) -> None:
    encoding, _, errors = given.partition(":")
    how: dict[str, Any] = {"encoding": encoding, "errors": errors or "strict", "closefd": False}
    sys.stdin = open(0, **how)  # noqa: SIM115
    sys.stdout = open(1, "w", **how)  # noqa: SIM115
    sys.stderr = open(2, "w", **{**how, "errors": "backslashreplace"}, buffering=1)  # noqa: SIM115


if __name__ == "__main__":
    main()
