"""Options of every command that generates: one for each generation parameter."""

from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import JsonValue, TypeAdapter, ValidationError

from promptstack.api.cli.options.values import named_value
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.parameters import GenerationKeywords, GenerationParameters
from promptstack.services.validation.json_text import load_json

MAX_FILE_BYTES = 10_000_000
"""Of a file with a JSON schema or tools. Its content has bounds of its own."""
Json = TypeVar("Json")


def _option(parameter: str, *names: str, more: str = "", metavar: str | None = None) -> Any:
    """The option of a parameter, with the sentence that describes it at every door."""
    described = GenerationParameters.model_fields[parameter].description or ""
    return typer.Option(*names, metavar=metavar, help=described + more)


@dataclass(frozen=True)
class GenerationOptions:
    """An option for each field of `GenerationParameters`."""

    system: Annotated[str | None, _option("system")] = None
    temperature: Annotated[float | None, _option("temperature")] = None
    max_tokens: Annotated[int | None, _option("max_tokens")] = None
    stop: Annotated[
        list[str] | None, _option("stop", "--stop", metavar="TEXT", more=" May repeat.")
    ] = None
    seed: Annotated[int | None, _option("seed")] = None
    json_schema: Annotated[Path | None, _option("json_schema", metavar="FILE")] = None
    tools: Annotated[
        Path | None, _option("tools", metavar="FILE", more=" A JSON file with a list of them.")
    ] = None
    tool_choice: Annotated[str | None, _option("tool_choice", metavar="CHOICE")] = None
    options: Annotated[
        list[str] | None,
        _option("options", "--option", metavar="NAME=VALUE", more=" VALUE is JSON; may repeat."),
    ] = None

    def keywords(self) -> GenerationKeywords:
        """The parameters, with the files read. Raises `InvalidInput`."""
        schema = _read_json(self.json_schema, "JSON schema", "an object", dict[str, JsonValue])
        tools = _read_json(self.tools, "list of tools", "a list of objects", list[dict[str, Any]])
        return {
            "system": self.system,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stop": self.stop or [],
            "seed": self.seed,
            "json_schema": schema,
            "tools": tools or [],
            "tool_choice": self.tool_choice,
            "options": dict(named_value(one, "--option") for one in self.options or []),
        }


def _read_json(path: Path | None, what: str, form: str, kind: type[Json]) -> Json | None:
    """Read a JSON file, where one is named. Raises `InvalidInput`."""
    if path is None:
        return None
    try:
        # It may be a pipe, which has no size and need not end.
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise InvalidInput(
                f"{path} has more than {MAX_FILE_BYTES:,} bytes, which no {what} needs."
            )
        return TypeAdapter(kind).validate_python(load_json(content, f"The {what} in {path}"))
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}.") from error
    except (JSONDecodeError, ValidationError) as error:
        raise InvalidInput(f"{path} cannot be read as a {what}: {form} is needed.") from error
