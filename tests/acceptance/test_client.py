"""The client's wheel in an environment that has nothing of the server, against a real one."""

import os
import re
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
from tests.processes import PATIENCE, ROOT, Process

UV = str(ROOT / ".uv" / "bin" / "uv")
CLIENT = ROOT / "client"
ADA = "ada@example.org"
HANGING = "gpt-5-nano"
MOST_LIBRARIES = 12
"""The client, httpx2, pydantic, and what these two need."""
INSTALLED = "from importlib.metadata import distributions as all; print(*(d.name for d in all()))"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOREIGN = ("PYTHONPATH", "VIRTUAL_ENV", "DATABASE_URL", "REDIS_URL")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*build, "--directory", str(folder)], cwd=CLIENT, check=True, timeout=PATIENCE)
    [found] = folder.glob("promptstack_client-*.whl")
    return found


def install(wheel: Path, environment: Path, *options: str) -> str:
    """The Python of a new environment that has the wheel and what it needs, and nothing else."""
    # What the lock names, from where `make` has put it already.
    sync = [UV, "sync", "--frozen", "--quiet", "--no-default-groups", "--no-install-workspace"]
    subprocess.run(
        [*sync, *options, "--python", sys.executable],
        cwd=CLIENT,
        env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(environment)},
        check=True,
        timeout=PATIENCE,
    )
    python = str(environment / "bin" / "python")
    add = [UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python]
    subprocess.run([*add, str(wheel)], check=True, timeout=PATIENCE)
    return python


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


@pytest.fixture
def variables(
    role: str,
    simulator: SimulatorProcess,
    stack: WorkerServices,
    open_door: Callable[..., Door],
    start_worker: Callable[..., Process],
) -> dict[str, str]:
    """What the client's tests are told of a server and its worker."""
    simulator.set_fault_rates({"kind": "hang", "model": HANGING, "rate": 1})
    door = open_door()
    start_worker()
    url = stack.ledger.engine.url
    return {
        **{name: value for name, value in os.environ.items() if name not in FOREIGN},
        "PROMPTSTACK_TEST_DATABASE": f"{url.query['host']} {url.database} {role}",
        "PROMPTSTACK_URL": door.url,
        "PROMPTSTACK_API_KEY": stack.keys.create(ADA, "Ada"),
    }


def run(python: str, *arguments: str, variables: dict[str, str], folder: Path) -> str:
    """What a Python prints in a folder where it finds nothing of ours."""
    ran = subprocess.run(
        [python, *arguments],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_client_works_where_nothing_else_is(
    wheel: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    """With pytest and drivers of PostgreSQL its own tests pass; without, so do its examples."""
    python = install(wheel, tmp_path / "tests", "--group", "test")
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(CLIENT / "tests")]
    assert " skipped" not in run(python, *tests, variables=variables, folder=tmp_path)

    python = install(wheel, tmp_path / "bare")
    listed = run(python, "-c", INSTALLED, variables=variables, folder=tmp_path).split()
    assert {"promptstack-client", "httpx2", "pydantic"} <= set(listed)
    assert len(listed) <= MOST_LIBRARIES, listed
    example = "\n".join(
        re.findall(r"(?ms)^```python\n(.*?)^```$", (CLIENT / "README.md").read_text())
    )
    assert "Say hello." in run(python, "-c", example, variables=variables, folder=tmp_path)
