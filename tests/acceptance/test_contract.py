"""A stranger's judge, schemathesis, of a server and a worker: two users who sign in.

CONTRACT_EXAMPLES and CONTRACT_PHASES make it look closer than `make test` has time for.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from promptstack.repositories.access_models import Role
from promptstack.tasks.worker_services import WorkerServices
from tests.doors import Door
from tests.http import sign_in
from tests.processes import PATIENCE, Process

EXAMPLES = os.environ.get("CONTRACT_EXAMPLES", "2")
PHASES = os.environ.get("CONTRACT_PHASES", "examples,fuzzing,stateful")
WHAT_NO_SCHEMA_SAYS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429", "503"]
"""
"""A provider that isn't there, or two fields that don't go together, are refused with 422."""
SIGN_OUT = ("logout", "logout_everywhere", "change_password")
USERS = {"ada": Role.USER, "bob": Role.USER}


def judge(folder: Path, url: str, users: dict[str, str], *arguments: str) -> str:
    """Let it run all its checks as these users; what it says where it has found something."""
    entries = [
        {"name": name, "fixedHeaders": [{"name": "Authorization", "value": value}]}
        for name, value in users.items()
    ]
    (folder / "users.json").write_text(json.dumps({"auth": entries}))
    peers = f"\npeers = {json.dumps(list(users))}" if len(users) > 1 else ""
    (folder / "schemathesis.toml").write_text(
        f'[auth.wfc]\npath = "users.json"{peers}\n{WHAT_NO_SCHEMA_SAYS}'
    )
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
            *("--checks", "all", "--max-examples", EXAMPLES, "--phases", PHASES),
            *("--request-timeout", "60", "--no-color", *arguments),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": str(folder)},
        timeout=PATIENCE,
    )
    return "" if ran.returncode == 0 else ran.stdout[-20_000:] + ran.stderr[-5_000:]


def test_nothing_is_outside_of_its_description(
    stack: WorkerServices,
    open_door: Callable[..., Door],
    start_worker: Callable[..., Process],
    tmp_path: Path,
) -> None:
    start_worker()
    door = open_door()
    users = {
        name: sign_in(stack, f"{name}@example.org", role)["Authorization"]
        for name, role in USERS.items()
    }
    left = [f"--exclude-operation-id={name}" for name in SIGN_OUT]
    found = judge(tmp_path, door.url, users, *left)
    assert not found, found
    # What signs a user out comes last.
    found = judge(
        tmp_path, door.url, users, *[f"--include-operation-id={name}" for name in SIGN_OUT]
    )
    assert not found, found
