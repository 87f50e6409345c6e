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

from promptstack.simulator.answers import text_for
from promptstack.simulator.process import SimulatorProcess
from promptstack.tasks.worker_services import WorkerServices
from tests.acceptance.client_environments import install_node, install_python, run
from tests.doors import Door
from tests.processes import ROOT, Process

PROGRAMS = ROOT / "tests" / "acceptance" / "openai_clients"
GPT = "gpt-5-mini"
HANGING = "gpt-5-nano"
CLAUDE = "claude-haiku-4-5"
SIZE = 1_536
SECONDS = 240.0
THREE = ["c0", "c1", "c2"]


def said(*prompts: str, model: str = GPT) -> str:
    """What the simulator answers."""
    return text_for(model, prompts)


def of_three(model: str = GPT) -> list[str]:
    return [said(f"Say {number}.", model=model) for number in range(3)]


COUNTS = {"total": 3, "completed": 3, "failed": 0}
OPENAI: dict[str, Any] = {
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
    "batches": {
        "begun": "validating",
        "counted_from_the_start": True,
        "status": "completed",
        "counts": COUNTS,
        "metadata": {"night": "3"},
        "ids": THREE,
        "texts": of_three(),
        "error_file": None,
        "times": 0,
        "newest_first": True,
    },
    "failed_batches": {
        "refused": [400, 400],
        "statuses": ["failed"] * 3,
        "lines": [2, 1, 1],
        "output_files": [None] * 3,
        "counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": {},
    },
    "other_batches": {"vector": "str", "response": said("Hi")},
    "cancelled_batches": {
        "stopping": "cancelling",
        "cancelling_at": True,
        "status": "cancelled",
        "rows": 200,
        "lines": 200,
        "counts_add_up": True,
        "codes": ["batch_cancelled"],
    },
    "embeddings": {
        "count": 2,
        "same": True,
        "dimensions": [SIZE, 8],
        "tokens": 1,
        "of_tokens": 2,
    },
    "chat": {
        "text": said("Say 1."),
        "finish": "stop",
        "tokens": 11,
        "streamed": True,
        "usage_last": True,
        "flex": True,
    },
    "chat_errors": {
        "model": [404, "model_not_found"],
        "messages": [400, "invalid_request_error", "messages"],
        "key": [401, "invalid_api_key"],
    },
    "responses": {
        "text": said("Be brief.", "Say 1."),
        "status": "completed",
        "tokens": 14,
        "of_items": said("Say 2."),
        "events": ["response.created", "response.completed"],
        "ordered": True,
        "streamed": True,
        "again": True,
        "input_items": ["message"],
        "gone": 404,
    },
    "background": {
        "begun": "queued",
        "status": "completed",
        "text": said("Say 1."),
        "rest": True,
        "ends": ["response.completed"] * 3,
        "resumed": True,
        "stopped": "cancelled",
        "final": "cancelled",
    },
}
ANTHROPIC: dict[str, Any] = {
    "messages": {
        "text": said("Be brief.", "Say 1.", model=CLAUDE),
        "stop": "end_turn",
        "tokens": True,
        "streamed": True,
    },
    "batches": {
        "begun": "in_progress",
        "status": "ended",
        "counts": {"processing": 0, "succeeded": 3, "errored": 0, "canceled": 0, "expired": 0},
        "ids": THREE,
        "texts": sorted(of_three(CLAUDE)),
        "newest_first": True,
    },
    "cancelled_batches": {
        "stopping": "canceling",
        "status": "ended",
        "lines": 200,
        "counted": 200,
        "types": ["canceled"],
        "gone": "not_found_error",
    },
}
NODE: dict[str, Any] = {
    "files": {"newest_first": True, "content": "two", "deleted": True, "gone": 404},
    "batches": {
        "status": "completed",
        "counts": COUNTS,
        "metadata": {"from": "node"},
        "ids": THREE,
        "newest_first": True,
    },
    "embeddings": {"count": 2, "dimensions": SIZE, "same": True},
    "chat": {"text": said("Say 1."), "streamed": True},
    "responses": {"text": said("Say 1."), "status": "completed", "streamed": True},
    "background": {
        "status": "completed",
        "text": said("Say 1."),
        "after": True,
        "last": "response.completed",
    },
}
AI_SDK: dict[str, Any] = {
    "texts": {"text": said("Say 1."), "streamed": True, "chat": said("Say 1.")},
    "vectors": {"dimensions": [SIZE, SIZE]},
    "batches": {
        "status": "completed",
        "ids": THREE,
        "statuses": ["succeeded"],
        "texts": sorted(of_three()),
        "second_page": True,
    },
    # As it reads OpenAI's `cancelled`.
    "cancelled_batches": {"status": "failed", "lines": 200, "statuses": ["cancelled"]},
}
AUTOBATCHER: dict[str, Any] = {
    "flex": {"texts": of_three(), "response": said("Say 4.")},
    "batches": {
        "texts": of_three(),
        "dimensions": [SIZE, SIZE],
        "events": ["batch_completed", "batch_progress", "batch_submitted", "client_closing"],
    },
}
INSTRUCTOR = {
    "batches": {
        "state": {"status": "completed", "request_counts": COUNTS},
        "ids": ["request-0", "request-1", "request-2"],
        "kinds": ["BatchSuccess"],
        "names": ["Colour"],
        "listed": True,
    }
}
OPENAI_BATCH = {"batches": {"ids": THREE, "statuses": [200], "errors": False}}
LITELLM = {
    "batches": {
        "status": "completed",
        "metadata": {"a": "b"},
        "ids": THREE,
        "error_file": None,
        "listed": True,
    },
    "calls": {"text": said("Say 1."), "streamed": True, "dimensions": [SIZE, SIZE]},
}
LANGCHAIN: dict[str, Any] = {
    "chat": {
        "text": said("Say 1."),
        "streamed": True,
        "batched": [said("Say 1."), said("Say 2.")],
        "form": "Colour",
    },
    "responses": {"text": said("Say 1.")},
    "embeddings": {"dimensions": [SIZE, SIZE]},
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


OURS = {
    "openai-of-our-lock": Client("openai_sdk.py", OPENAI),
    "anthropic-of-our-lock": Client("anthropic_sdk.py", ANTHROPIC),
}
FOREIGN = {
    "openai-3": Client("openai_sdk.py", OPENAI, ("openai>=3,<4",)),
    "openai-2": Client("openai_sdk.py", OPENAI, ("openai>=2,<3",)),
    "openai-node": Client("openai_node.mjs", NODE, ("openai",)),
    "ai-sdk": Client("ai_sdk.mjs", AI_SDK, ("ai", "@ai-sdk/openai")),
    "autobatcher": Client("autobatcher_client.py", AUTOBATCHER, ("autobatcher",)),
    "instructor": Client("instructor_batches.py", INSTRUCTOR, ("instructor",)),
    # It needs httpx without saying so, which the newest openai no longer brings.
    "openai-batch": Client("openai_batch_cli.py", OPENAI_BATCH, ("openai-batch", "openai<3")),
    "litellm": Client("litellm_client.py", LITELLM, ("litellm",)),
    "langchain-openai": Client("langchain_client.py", LANGCHAIN, ("langchain-openai",)),
    "anthropic": Client("anthropic_sdk.py", ANTHROPIC, ("anthropic",)),
}
ASKED = os.environ.get("FOREIGN_CLIENTS", "")
CHOSEN = {
    "": OURS,
    "all": FOREIGN,
}.get(ASKED) or {name: FOREIGN[name] for name in ASKED.split(",")}


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
    simulator.set_fault_rates({"kind": "hang", "model": HANGING, "rate": 1})
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
