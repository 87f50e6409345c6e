"""Every way in takes every parameter of a generation, under the same name."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer.main
from pydantic import BaseModel

from promptstack.api.cli.main import build
from promptstack.api.cli.options.generation import GenerationOptions
from promptstack.api.http.generations import GenerationBody
from promptstack.api.http.run_bodies import GenerationRunBody
from promptstack.services.errors import InvalidInput
from promptstack.services.jobs.service import JobService
from promptstack.services.llm.parameters import GenerationKeywords, GenerationParameters
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.runs.service import RunService

PARAMETERS = {*GenerationParameters.model_fields}
TOOL = {"name": "look_up", "parameters": {"type": "object"}}
"""A tool as a file has it."""


def keywords_of(method: Any) -> set[str]:
    """The keywords that a method takes, those of an unpacked TypedDict among them."""
    found: set[str] = set()
    for name, hint in get_type_hints(method).items():
        unpacked = [one for one in get_args(hint) if hasattr(one, "__annotations__")]
        found |= {*unpacked[0].__annotations__} if unpacked else {name}
    return found


@pytest.mark.parametrize("body", [GenerationBody, GenerationRunBody, GenerationRequest])
def test_every_body_has_them(body: type[BaseModel]) -> None:
    assert set(body.model_fields) >= PARAMETERS


@pytest.mark.parametrize(
    "method",
    [JobService.enqueue_generation, RunService.generate, RunService.prepare_generation],
)
def test_every_python_call_takes_them(method: Any) -> None:
    assert keywords_of(method) >= PARAMETERS
    assert set(GenerationKeywords.__annotations__) == PARAMETERS


@pytest.mark.parametrize("command", [("generate",), ("runs", "generate")])
def test_every_command_has_an_option_for_each(command: tuple[str, ...]) -> None:
    found: Any = typer.main.get_command(build())
    for name in command:
        found = found.commands[name]
    options = {one.name: one for one in found.load().params if one.param_type_name == "option"}
    assert set(options) >= PARAMETERS
    assert options["tools"].opts == ["--tools"]
    assert options["stop"].opts == ["--stop"]
    assert {field.name for field in fields(GenerationOptions)} == PARAMETERS


def test_the_options_of_a_command_become_the_parameters(tmp_path: Path) -> None:
    tools, schema = tmp_path / "tools.json", tmp_path / "schema.json"
    tools.write_text(json.dumps([{"type": "function", "function": TOOL}]), encoding="utf-8")
    schema.write_text('{"type": "object"}', encoding="utf-8")
    options = GenerationOptions(
        system="Be brief.",
        temperature=0.5,
        max_tokens=9,
        stop=["END"],
        seed=7,
        json_schema=schema,
        tools=tools,
        tool_choice="look_up",
        options=["top_k=3"],
    )
    made = GenerationParameters(**options.keywords())
    assert made == GenerationParameters.model_validate(
        {
            "system": "Be brief.",
            "temperature": 0.5,
            "max_tokens": 9,
            "stop": ("END",),
            "seed": 7,
            "json_schema": {"type": "object"},
            "tools": (TOOL,),
            "tool_choice": "look_up",
            "options": {"top_k": 3},
        }
    )
    assert GenerationParameters(**GenerationOptions().keywords()) == GenerationParameters()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"name": "a"}', "[NaN]"])
def test_a_file_that_holds_no_tools_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tools.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"tools\.json"):
        GenerationOptions(tools=path).keywords()
    with pytest.raises(InvalidInput, match=r"none\.json"):
        GenerationOptions(tools=tmp_path / "none.json").keywords()
