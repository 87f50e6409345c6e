"""A RabbitMQ node of the tests' own, where the machine has RabbitMQ."""

import os
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from kombu import Connection
from kombu.exceptions import OperationalError

from tests.processes import wait_until

PROGRAMS = "/usr/lib/rabbitmq/bin"
"""Debian's. Its `rabbitmq-server` in PATH is a wrapper that runs it as another user."""
STOP_SECONDS = 60.0


def why_missing() -> str:
    """Why no node can be started here; empty where one can."""
    missing = [program for program in ("rabbitmq-server", "epmd") if not _program(program)]
    if not missing:
        return ""
    return f"RabbitMQ is not installed: no {' and no '.join(missing)} here or in PATH"


class RabbitMQ:
    """One node, with its own data, cookie, ports and port mapper; `start` it again after an end."""

    def __init__(self, folder: Path) -> None:
        """Choose the ports, so that the URL is the same for each start."""
        self._folder = folder
        self._mapper: subprocess.Popen[bytes] | None = None
        self._node: subprocess.Popen[bytes] | None = None
        with ExitStack() as taken:
            sockets = [taken.enter_context(closing(socket.socket())) for _ in range(3)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            self._port, self._distribution, self._mapped = (
                each.getsockname()[1] for each in sockets
            )

    @property
    def url(self) -> str:
        """For CELERY_BROKER_URL."""
        return f"amqp://guest:guest@127.0.0.1:{self._port}//"

    @property
    def log(self) -> Path:
        """What the node says."""
        return self._folder / "rabbitmq.log"

    def launch(self) -> None:
        """Start it, and its port mapper where that doesn't run yet, and wait for nothing."""
        environment = self._environment()
        with self.log.open("ab") as log:
            if self._mapper is None:
                mapper = ["epmd", "-port", str(self._mapped)]
                self._mapper = _start(mapper, environment, log.fileno())
            self._node = _start(["rabbitmq-server"], environment, log.fileno())

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        self.launch()
        wait_until(self.answers, f"RabbitMQ to start; see {self.log}")

    def answers(self) -> bool:
        """Whether it takes a connection."""
        with suppress(OperationalError, OSError), Connection(self.url, connect_timeout=2) as one:
            one.connect()
            return True
        return False

    def stop(self) -> None:
        """End it in order: it writes down what lasts."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        assert self._node is not None
        os.killpg(self._node.pid, number)

    def close(self) -> None:
        """End it and its port mapper."""
        self.kill()
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper.wait(STOP_SECONDS)
            self._mapper = None

    def _end(self, number: signal.Signals) -> None:
        if self._node is not None:
            with suppress(ProcessLookupError):
                self.send(number)
            self._node.wait(STOP_SECONDS)
            self._node = None

    def _environment(self) -> dict[str, str]:
        folder = self._folder
        home = folder / "home"  # with the cookie
        home.mkdir(exist_ok=True)
        for name, content in (("plugins", "[]."), ("environment", ""), ("rabbitmq.conf", "")):
            (folder / name).write_text(content)
        return {
            "PATH": f"{PROGRAMS}:{os.environ.get('PATH', '')}:/usr/sbin",
            "HOME": str(home),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._mapped),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "tests@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONF_ENV_FILE": str(folder / "environment"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            # One scheduler that doesn't spin: the tests need the processor.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }


def _start(command: list[str], environment: dict[str, str], log: int) -> subprocess.Popen[bytes]:
    program = _program(command[0])
    assert program, why_missing()
    return subprocess.Popen(
        [program, *command[1:]],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _program(name: str) -> str | None:
    return shutil.which(name, path=PROGRAMS) or shutil.which(name)
