"""The simulator as the provider of real worker processes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from promptstack.simulator.process import MODELS, SimulatorProcess
from promptstack.tasks.composition import PromptStack
from tests.doors import Door
from tests.processes import Process
from tests.simulators import ForkedSimulator

LIMITS = '[[limits]]\nprovider = "openai"\nin_flight = 64\n'


@pytest.fixture
def simulator(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SimulatorProcess]:
    limits = tmp_path / "limits.toml"
    limits.write_text(MODELS.read_text() + LIMITS)
    with ForkedSimulator() as running:
        variables = {
            "OPENAI_BASE_URL": running.url,
            "OPENAI_API_KEY": "sk-test",
            "DEFAULT_LLM_PROVIDER": "openai",
            "DEFAULT_EMBEDDING_PROVIDER": "openai",
            "MODELS_FILE": str(limits),
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        environment.update(variables)
        yield running


@pytest.fixture
def runs(simulator: SimulatorProcess, stack: PromptStack) -> PromptStack:
    return stack


@pytest.fixture
def open_door(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Door]]:
    """Starts doors to the test's servers, and ends them with the test."""
    with ExitStack() as doors:
        yield lambda *arguments: doors.enter_context(Door(tmp_path / "door.log", *arguments))


@pytest.fixture
def start_flower(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Process]]:
    with ExitStack() as processes:

        def start(*arguments: str, **variables: str) -> Process:
            settings = {**environment, "FLOWER_PORT": "0", "FLOWER_BASIC_AUTH": "", **variables}
            number = len(list(tmp_path.glob("flower-*.log")))
            log = tmp_path / f"flower-{number}.log"
            return processes.enter_context(
                Process(["-m", "promptstack.api.flower", *arguments], settings, log)
            )

        yield start
