"""Unchanged foreign clients of OpenAI's wire and Anthropic's, against a server and a worker.

Each is driven by a small program in `openai_clients/` that prints what it saw. `make test` drives
the official Python clients of our own lock. FOREIGN_CLIENTS=all drives every one, at the newest
version that its registry has and in an environment of its own; FOREIGN_CLIENTS=ai-sdk,litellm
drives these two.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from promptstack.simulator.process import SimulatorProcess
from promptstack.tasks.worker_services import WorkerServices
from tests.acceptance.client_environments import install_node, install_python, run
from tests.doors import Door
from tests.processes import ROOT, Process

PROGRAMS = ROOT / "tests" / "acceptance" / "openai_clients"
GPT = "gpt-5-mini"
SECONDS = 240.0


OPENAI = {
    "models": {"listed": True, "one": GPT},
    "files": {
        "statuses": ["processed"] * 3,
        "bytes": [4, 154, 7],
        "newest_first": True,
        "of_purpose": True,
        "content": "three\r\n",
        "streamed": True,
        "lives": 3_600,
        "raw": "c.txt",
        "deleted": True,
        "gone": 404,
    },
}


@dataclass(frozen=True)
class Client:
    """A foreign client: the program that drives it, what it needs, and what it is to see."""

    program: str
    sees: Mapping[str, Any]
    packages: tuple[str, ...] = ()
    """None: the version of our own lock, in our own environment."""

    def command(self, folder: Path) -> list[str]:
        """Install it, and name its program."""
        program = str(PROGRAMS / self.program)
        if not self.packages:
            return [sys.executable, program]
        install = install_node if program.endswith(".mjs") else install_python
        return [str(install(folder, *self.packages)), program]


OURS = {"openai-of-our-lock": Client("openai_sdk.py", OPENAI)}
FOREIGN = {
    "openai-3": Client("openai_sdk.py", OPENAI, ("openai>=3,<4",)),
    "openai-2": Client("openai_sdk.py", OPENAI, ("openai>=2,<3",)),
}
ASKED = os.environ.get("FOREIGN_CLIENTS", "")
CHOSEN = {"": OURS, "all": FOREIGN}.get(ASKED) or {name: FOREIGN[name] for name in ASKED.split(",")}


@pytest.fixture
def variables(
    simulator: SimulatorProcess,
    environment: dict[str, str],
    stack: WorkerServices,
    open_door: Callable[..., Door],
    start_worker: Callable[..., Process],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, str]:
    """What a client is told of a server and its worker: nothing but an address and a key."""
    provider = {"ANTHROPIC_BASE_URL": simulator.origin, "ANTHROPIC_API_KEY": "sk-test"}
    for name, value in provider.items():
        monkeypatch.setenv(name, value)
    environment.update(provider)
    simulator.set_latency(0.05)
    start_worker()
    url, key = open_door().url, stack.keys.create("ada@example.org", "Ada")
    return {
        "OPENAI_BASE_URL": f"{url}/openai/v1",
        "OPENAI_API_KEY": key,
        "ANTHROPIC_BASE_URL": f"{url}/anthropic",
        "ANTHROPIC_API_KEY": key,
    }


@pytest.mark.parametrize("client", CHOSEN.values(), ids=CHOSEN)
def test_a_foreign_client_works_unchanged(
    client: Client, variables: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "client"
    folder.mkdir()
    command = client.command(folder)

    seen = json.loads(run([*command, *client.sees], folder, SECONDS, **variables))

    wrong = {name: seen.get(name) for name, right in client.sees.items() if seen.get(name) != right}
    assert not wrong, json.dumps(wrong, indent=1)
