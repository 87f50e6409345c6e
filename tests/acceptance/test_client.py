"""The client's wheel in an environment that has nothing of the server, against a real one."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from promptstack.services.audit.actor import Actor
from promptstack.simulator.process import SimulatorProcess
from promptstack.tasks.worker_services import WorkerServices
from tests.doors import Door
from tests.processes import ROOT, Process

UV = str(ROOT / ".uv" / "bin" / "uv")
CLIENT = ROOT / "client"
ADA = "ada@example.org"
HANGING = "gpt-5-nano"
FOREIGN = ("PYTHONPATH", "VIRTUAL_ENV", "DATABASE_URL", "REDIS_URL")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with the client's wheel, pytest and drivers of PostgreSQL."""
    folder = tmp_path_factory.mktemp("client")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*build, "--directory", str(folder)], cwd=CLIENT, check=True)
    [wheel] = folder.glob("promptstack_client-*.whl")
    environment = folder / "environment"
    # What the lock names, from where `make` put it: no network is needed.
    libraries = "--frozen --offline --quiet --no-default-groups --group test --no-install-workspace"
    subprocess.run(
        [UV, "sync", *libraries.split(), "--python", sys.executable],
        cwd=CLIENT,
        env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(environment)},
        check=True,
    )
    found = environment / "bin" / "python"
    install = [UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", str(found)]
    subprocess.run([*install, str(wheel)], check=True)
    return str(found)


@pytest.fixture
def role(simulator: SimulatorProcess, stack: WorkerServices) -> Iterator[str]:
    """A role of the database that may enqueue for Ada, and do nothing else."""
    name = f"shop_{os.getpid()}"
    ada = stack.users.create(ADA)
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(f"CREATE ROLE {name} LOGIN; CREATE SCHEMA AUTHORIZATION {name}"))
    stack.sql_roles.grant(name, ada.id, by=Actor.command_line())
    yield name
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}"))


def test_the_tests_of_the_client_pass_where_nothing_else_is(
    python: str,
    role: str,
    simulator: SimulatorProcess,
    stack: WorkerServices,
    open_door: Callable[..., Door],
    start_worker: Callable[..., Process],
    tmp_path: Path,
) -> None:
    simulator.set_fault_rates({"kind": "hang", "model": HANGING, "rate": 1})
    door = open_door()
    start_worker()
    variables = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    url = stack.ledger.engine.url
    variables |= {
        "PROMPTSTACK_TEST_DATABASE": f"{url.query['host']} {url.database} {role}",
        "PROMPTSTACK_URL": door.url,
        "PROMPTSTACK_API_KEY": stack.keys.create(ADA, "Ada"),
    }
    ran = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", CLIENT / "tests"],
        cwd=tmp_path,  # Python finds nothing of ours here
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " skipped" not in ran.stdout
