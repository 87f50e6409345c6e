"""A process that can't work as it is set up ends at once, with one line that names the variable."""

import sys
from pathlib import Path

import pytest

from tests.processes import run

CLI = str(Path(sys.executable).with_name("promptstack"))
COMMANDS = {
    "worker": ["-m", "promptstack.worker"],
    "keeper": ["-m", "promptstack.worker", "--processes", "1"],
    "api": ["-m", "promptstack.api.http", "--port", "0"],
    "flower": ["-m", "promptstack.api.flower", "--port", "0"],
    "up": [CLI, "up", "--port", "0"],
}
LINES = {
    "ALL_PROXY": "ALL_PROXY names a socks5:// proxy; only http:// and https:// can be used.",
    "OPENAI_BASE_URL": "Wrong setting: OPENAI_BASE_URL: is not an address such as "
    "http://gpu1:8000/v1. Set it in the environment, in .env or in its secret's file.",
    "REDIS_URL": "REDIS_URL: the server refuses this user or password, or what the user may do is "
    "too little.",
}


def broken(variable: str, environment: dict[str, str]) -> dict[str, str]:
    redis = environment["REDIS_URL"].replace("unix://", "unix://nobody:hunter2@")
    wrong = {"ALL_PROXY": "socks5://h:1", "OPENAI_BASE_URL": "gpu1:8000/v1", "REDIS_URL": redis}
    return {**environment, "OPENAI_API_KEY": "sk-test", variable: wrong[variable]}


@pytest.mark.parametrize(
    ("command", "variable"),
    [
        *((command, "ALL_PROXY") for command in COMMANDS),
        *(("up", each) for each in ("OPENAI_BASE_URL", "REDIS_URL")),
    ],
)
def test_every_process_says_the_same_line(
    command: str, variable: str, environment: dict[str, str]
) -> None:
    done = run(COMMANDS[command], broken(variable, environment))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.removeprefix(f"promptstack {command}: ").endswith(LINES[variable])
    assert "hunter2" not in line


@pytest.mark.parametrize("variable", ["ALL_PROXY", "REDIS_URL"])
def test_doctor_finds_it_too(variable: str, environment: dict[str, str]) -> None:
    done = run([CLI, "doctor", "--json"], broken(variable, environment))
    assert done.returncode in {1, 2}
    assert LINES[variable] in (done.stdout + done.stderr)
    assert "hunter2" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
