"""Importing a module does nothing: no socket, no thread, no process, no file."""

import json
import subprocess
import sys
from pathlib import Path

from tests.processes import PATIENCE, ROOT

SOURCE = ROOT / "src"
NOT_ALONE = {"promptstack.repositories.migrations.env"}
"""Run by Alembic within a migration, and never imported."""

PROGRAM = """
import importlib, json, os, signal, sys, threading

done = []
importing = None
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = {
    "socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.system",
    "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.mkdir", "os.remove", "os.rename",
    "os.rmdir", "os.truncate", "os.symlink", "os.link", "os.chmod", "os.chown",
    "tempfile.mkstemp", "tempfile.mkdtemp", "signal.pthread_kill",
}

def watch(event, arguments):
    if importing is None:
        return
    if event == "open":
        path, mode, flags = arguments
        if flags & WRITING and path != os.devnull:
            done.append([importing, event, str(path)])
    elif event == "socket.bind" and sys._getframe(1).f_code.co_name == "_has_ipv6":
        pass  # urllib3 asks the kernel whether it has IPv6, and closes the socket at once
    elif event in FORBIDDEN:
        done.append([importing, event, repr(arguments)[:200]])

sys.addaudithook(watch)
for name in sys.argv[1:]:
    importing = name
    handlers = {number: signal.getsignal(number) for number in (1, 2, 15)}
    importlib.import_module(name)
    if threading.active_count() != 1:
        done.append([name, "threads", repr(threading.enumerate())])
    if handlers != {number: signal.getsignal(number) for number in (1, 2, 15)}:
        done.append([name, "signal handlers", ""])
    importing = None
print(json.dumps(done))
"""


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> list[str]:
    # Path.rglob follows no links, and each folder here is one.
    files = [path for folder in (SOURCE / "promptstack").iterdir() for path in folder.rglob("*.py")]
    names = {module_of(path) for path in files if path.name != "__main__.py"}
    return sorted(names - NOT_ALONE)


def side_effects(names: list[str], folder: Path) -> list[list[str]]:
    """Import modules in a fresh interpreter; what they did besides."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "PYTHONPATH": str(SOURCE),
        # Python's own cache of compiled modules is no doing of ours.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=folder,
        timeout=PATIENCE,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    found: list[list[str]] = json.loads(finished.stdout)
    return found


def test_importing_a_module_does_nothing(tmp_path: Path) -> None:
    names = modules()
    rooms = {path.name for path in (SOURCE / "promptstack").iterdir() if path.is_symlink()}
    assert {name.split(".")[1] for name in names if "." in name} == rooms
    assert side_effects(names, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_watch_sees_what_a_module_does(tmp_path: Path) -> None:
    """Without this, a watch that sees nothing would pass."""
    thread = "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    programs = {
        "opens": "open('written', 'w').close()",
        "runs": "import subprocess; subprocess.run(['true'])",
        "binds": "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.close()",
        "handles": "import signal; signal.signal(15, signal.SIG_IGN)",
        "threads": f"import threading, time; {thread}",
    }
    for name, program in programs.items():
        (tmp_path / f"{name}.py").write_text(program)
    found = side_effects(list(programs), tmp_path)
    assert [entry[0] for entry in found] == list(programs)
