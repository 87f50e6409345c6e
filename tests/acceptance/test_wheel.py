"""The wheel holds one package, which works beside a project that has folders of the same names."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from redis import Redis

from promptstack.config.names import LIMITER_KEY
from promptstack.repositories.models import JobState
from promptstack.tasks.composition import PromptStack
from tests.processes import PATIENCE, ROOT, wait_until
from tests.simulators import ForkedSimulator

UV = str(ROOT / ".uv" / "bin" / "uv")
SOURCE = ROOT / "src"
VERSION = version("prompt-stack")
ROOMS = ("api", "config", "repositories", "services", "tasks", "worker")
OTHER_PROJECT = f"""
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "other-project"
version = "1.0"
[tool.hatch.build.targets.wheel]
packages = {json.dumps(ROOMS)}
"""
OURS = """
import json, os, sys
from sqlalchemy import create_engine
import promptstack
from promptstack import PromptStack
from promptstack.repositories import migrations
print(json.dumps({
    "package": promptstack.__file__,
    "class": PromptStack.__module__,
    "pending": migrations.pending(create_engine(os.environ["DATABASE_URL"])),
    "loaded": sorted(name for name in sys.modules if name in %r),
}))
"""
Run = Callable[..., str]


def build(folder: Path, to: Path, *targets: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(to)]
    for target in targets:
        command += ["--target", target]
    built = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert built.returncode == 0, built.stdout + built.stderr


def files_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


def only(folder: Path, pattern: str) -> Path:
    [found] = folder.glob(pattern)
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our wheel and our source distribution."""
    folder = tmp_path_factory.mktemp("built")
    build(ROOT, folder, "sdist", "wheel")
    return folder


@pytest.fixture(scope="module")
def other_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with folders named as ours, each of which says that it was run."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "pyproject.toml").write_text(OTHER_PROJECT)
    for room in ROOMS:
        (folder / room).mkdir()
        for file in ("__init__", "__main__"):
            says = f"print('the other project: {room}.{file}')\n"
            (folder / room / f"{file}.py").write_text(says)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, other_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with both wheels, which finds libraries in that of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    build(other_project, folder, "wheel")
    environment = folder / "environment"
    subprocess.run(
        [UV, "venv", "--quiet", "--python", sys.executable, environment],
        check=True,
        timeout=PATIENCE,
    )
    wheels = [str(only(built, "*.whl")), str(only(folder, "*.whl"))]
    command = [UV, "pip", "install", "--quiet", "--offline", "--no-deps"]
    subprocess.run(
        [*command, "--python", str(environment / "bin" / "python"), *wheels],
        check=True,
        timeout=PATIENCE,
    )
    # Python reads no .pth of a folder that a .pth names, so this is not our editable install.
    packages = only(environment, "lib/*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return environment / "bin"


@pytest.fixture
def ours(installed: Path, environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs a command of the installed environment; what it printed."""

    def run(command: str, *arguments: str, folder: Path = tmp_path) -> str:
        variables = {**os.environ, **environment}
        variables.pop("PYTHONPATH", None)
        done = subprocess.run(
            [installed / command, *arguments],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


def test_the_wheel_holds_our_one_package_with_all_its_files(built: Path) -> None:
    files = files_in(only(built, "*.whl"))
    information = f"prompt_stack-{VERSION}.dist-info"
    assert {name.split("/")[0] for name in files} == {"promptstack", information}
    kept = {
        path.relative_to(SOURCE).as_posix()
        for room in (SOURCE / "promptstack").iterdir()
        for path in (room.rglob("*") if room.is_dir() else [room])
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in files if name.startswith("promptstack/")} == kept
    assert "promptstack/py.typed" in files


def test_a_wheel_from_the_source_distribution_is_the_same(built: Path, tmp_path: Path) -> None:
    subprocess.run(
        ["tar", "-xzf", only(built, "*.tar.gz"), "-C", tmp_path], check=True, timeout=PATIENCE
    )
    build(only(tmp_path, "prompt_stack-*"), tmp_path, "wheel")
    assert files_in(only(tmp_path, "*.whl")) == files_in(only(built, "*.whl"))


@pytest.mark.parametrize("place", ["elsewhere", "in the other project"])
def test_our_code_is_imported_and_no_folder_of_the_same_name(
    ours: Run, installed: Path, other_project: Path, tmp_path: Path, place: str
) -> None:
    folder = tmp_path if place == "elsewhere" else other_project
    found = json.loads(ours("python", "-c", OURS % (ROOMS,), folder=folder))
    package = only(installed.parent, "lib/*/site-packages/promptstack")
    assert found == {
        "package": str(package / "__init__.py"),
        "class": "promptstack.tasks.composition",
        "pending": False,
        "loaded": [],
    }


def test_commands_run_in_the_folder_of_the_other_project(
    ours: Run, other_project: Path, subtests: pytest.Subtests
) -> None:
    for command, says in {
        ("promptstack", "--version"): VERSION,
        ("promptstack", "--help"): "Durable generation and embedding jobs",
        ("python", "-m", "promptstack.worker", "--help"): "jobs at once in each process",
        ("python", "-m", "promptstack.api.http", "--help"): "--port",
    }.items():
        with subtests.test(command=" ".join(command)):
            said = ours(*command, folder=other_project)
            assert says in said
            assert "the other project" not in said


def test_the_other_project_runs_its_own_code_beside_ours(ours: Run) -> None:
    for room in ROOMS:
        said = ours("python", "-m", room).splitlines()
        assert said == [f"the other project: {room}.{file}" for file in ("__init__", "__main__")]


def test_an_installed_worker_does_jobs_in_the_folder_of_the_other_project(
    installed: Path, other_project: Path, stack: PromptStack, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    with ForkedSimulator() as simulator, log.open("wb") as output:
        provider = {"OPENAI_BASE_URL": simulator.url, "OPENAI_API_KEY": "sk-test"}
        worker = subprocess.Popen(
            [installed / "python", "-m", "promptstack.worker"],
            cwd=other_project,
            env={**os.environ, **provider},
            stdout=output,
            stderr=output,
        )
        try:
            job = stack.jobs.enqueue_generation("Hello.", provider="openai")
            succeeded = JobState.SUCCEEDED
            wait_until(lambda: stack.jobs.get(job.id).state is succeeded, f"the job; see {log}")
        finally:
            worker.terminate()
            worker.wait(60)
    assert "the other project" not in log.read_text()
    # The limiter's script was found: without it there is no bucket in Redis.
    with Redis.from_url(stack.redis_url) as redis:
        assert list(redis.scan_iter(LIMITER_KEY.format(credential="*") + "*"))
