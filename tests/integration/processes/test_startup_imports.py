"""What commands import: who asks for help or a list does not wait for what only workers need."""

import inspect
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.main import get_command

from promptstack.api.cli.lazy import Command
from promptstack.api.cli.main import COMMANDS, FLAGS, JOBS, KEYS, NOTIFICATIONS, RUNS, build
from promptstack.config.settings import Settings
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.worker.start import _import_providers
from tests.processes import PATIENCE, ROOT

PROGRAM = """
import json, sys
names = sys.argv.pop(1)
sys.argv[0] = "promptstack"
from promptstack.api.cli.entry import run
try:
    run()
finally:
    with open(names, "w") as file:
        json.dump(sorted(sys.modules), file)
"""
HELP = {"annotated_doc", "promptstack", "shellingham", "typer"}
"""The packages that `--help` imports, besides Python's own."""
VALUES = {
    "annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection",
}  # fmt: skip
"""What typer reads the values of options with."""
OF_WORKERS = {
    "aiohttp", "aiosmtplib", "alembic", "anthropic", "celery", "fastapi", "genai_prices", "google",
    "jsonschema", "kombu", "numpy", "openai", "pyarrow", "re2", "tiktoken", "uvicorn", "wordllama",
}  # fmt: skip
"""Packages that a list of what is in the ledger has no use for."""
LEAVES = [
    *COMMANDS.values(),
    *JOBS.values(),
    *RUNS.values(),
    *KEYS.values(),
    *FLAGS.values(),
    *NOTIFICATIONS.values(),
]


def run_alone(folder: Path, *arguments: str, **variables: str) -> tuple[str, set[str]]:
    """What a command says in an interpreter of its own, and the modules it has imported then."""
    names = folder / "names.json"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, names, *arguments],
        env={**os.environ, **variables},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.stdout, set(json.loads(names.read_text()))


def packages(modules: set[str]) -> set[str]:
    """Of these modules, without Python's own and what a system loads into every Python."""
    found = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    found -= {"sitecustomize", "usercustomize"}
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("group", ["", "flags", "jobs", "keys", "runs"])
def test_help_imports_the_command_line_alone(group: str, tmp_path: Path) -> None:
    said, modules = run_alone(tmp_path, *group.split(), "--help")

    assert f"Usage: promptstack {group}" in said
    assert packages(modules) == (HELP | VALUES if group else HELP)
    ours = {name for name in modules if name.startswith("promptstack.")}
    assert {name for name in ours if not name.startswith("promptstack.api")} == {
        "promptstack.config",
        "promptstack.config.loading",
    }
    assert "asyncio" not in modules


@pytest.mark.parametrize(
    ("words", "found"), [("promptstack ke", "keys"), ("promptstack jobs wa", "watch")]
)
def test_completion_imports_no_command(words: str, found: str, tmp_path: Path) -> None:
    at = str(len(words.split()) - 1)
    shell = {"_PROMPTSTACK_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": at}
    said, modules = run_alone(tmp_path, **shell)
    assert found in said.split()
    assert packages(modules) == HELP | VALUES


@pytest.mark.parametrize("command", ["jobs list", "keys list"])
def test_a_list_imports_nothing_that_only_workers_and_migrations_need(
    command: str, environment: dict[str, str], tmp_path: Path
) -> None:
    said, modules = run_alone(tmp_path, *command.split(), **environment)

    assert said in {"No jobs.\n", "No keys.\n"}
    assert not packages(modules) & OF_WORKERS


def test_a_worker_starts_without_sdks_and_without_what_other_processes_need() -> None:
    program = "import json, sys, promptstack.worker.start; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    unneeded = OF_WORKERS - {"celery", "kombu", "jsonschema", "re2"} | {"rich", "tornado", "typer"}
    assert not packages(set(json.loads(done.stdout))) & unneeded


def test_a_worker_imports_the_sdks_of_the_providers_that_are_configured(tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text(
        '[[providers]]\nname = "own"\nwire = "openai"\nbase_url = "http://own/v1"\n'
        # It has no key, so this says which model it would be asked for.
        '[[providers]]\nname = "gemini"\nwire = "gemini"\nembedding_model = "embedder"\n'
    )
    settings = Settings(
        _env_file=None,
        models_file=models,
        openai_api_key=None,
        openai_base_url=None,
        anthropic_api_key=SecretStr("sk-x"),
        gemini_api_key=None,
        gemini_base_url=None,
    )
    factory = LLMServiceFactory()
    _import_providers(settings, factory)
    assert set(factory._classes) == {"anthropic", "openai"}


def test_the_table_says_what_the_commands_say() -> None:
    for declared in LEAVES:
        if isinstance(declared, Command):
            module, _, name = declared.function.partition(":")
            function: Any = getattr(import_module(f"promptstack.api.cli.{module}"), name)
            paragraph = (inspect.getdoc(function) or "").split("\n\n")[0]
            assert declared.help == " ".join(paragraph.split()), declared.function


def test_a_command_has_its_own_options() -> None:
    group: Any = get_command(build())
    with group.make_context("promptstack", ["jobs", "list"]) as context:
        _, jobs, rest = group.resolve_command(context, ["jobs", "list"])
        _, command, _ = jobs.resolve_command(context, rest)
        assert {one.name for one in command.load().params} >= {"state", "kind", "limit"}
