"""How much JSON a request may have beside its texts."""

import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.parameters import GenerationParameters
from promptstack.services.text import check_storable_json
from promptstack.services.validation.bounds import refused_in_words
from promptstack.services.validation.schema_bounds import SchemaBounds

Parameters = TypeVar("Parameters", bound=GenerationParameters)


@dataclass(frozen=True)
class JsonBounds:
    """Bounds of a request's options, of its tools' parameters and of the arguments of their calls.

    Its JSON schema has bounds of its own.
    """

    values: int = 10_000
    """Of all values together."""
    depth: int = 50
    option_bytes: int = 1_000_000
    """Of the options, with those of fallbacks."""

    def check(self, parameters: GenerationParameters) -> None:
        """Raise `InvalidInput` for parameters, or a whole request, beyond these bounds."""
        options = parameters.all_options()
        carried: list[Any] = [*options, *parameters.structured()]
        if not any(carried):
            return
        values, depth = _measured(carried, self.values)
        if values > self.values:
            raise InvalidInput(
                f"The options and tools have more than {self.values:,} values (MAX_JSON_VALUES); "
                "leave some out."
            )
        if depth > self.depth:
            raise InvalidInput(
                f"The options or tools are nested more than {self.depth} levels deep "
                "(MAX_JSON_DEPTH); flatten them."
            )
        if len(json.dumps(options, ensure_ascii=False).encode()) > self.option_bytes:
            raise InvalidInput(
                f"The options have more than {self.option_bytes:,} bytes (MAX_OPTION_BYTES); "
                "shorten them."
            )


@dataclass(frozen=True)
class RequestBounds:
    """The one check of how to generate, for single jobs and runs."""

    json: JsonBounds = field(default_factory=JsonBounds)
    schemas: SchemaBounds = field(default_factory=SchemaBounds)

    def checked(self, kind: type[Parameters], **given: Any) -> Parameters:
        """Make checked `GenerationParameters`, or a checked request. Raises `InvalidInput`."""
        schema = given.get("json_schema")
        if schema is not None:
            # First, as every other check of a schema may take long for a large one.
            self.schemas.check(schema)
            check_storable_json(schema, "json_schema")
        with refused_in_words():
            made = kind(**given)
        if made.tools:
            self.schemas.check_tools([tool.parameters for tool in made.tools])
        self.json.check(made)
        return made


def _measured(values: list[Any], most: int) -> tuple[int, int]:
    """How many values these have, and how deep. The count stops one level after `most`."""
    found, depth, level = 0, 0, values
    while level and found <= most:
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value.values())
            elif isinstance(value, list | tuple):
                below.extend(value)
        found += len(below)
        depth += bool(below)
        level = below
    return found, depth
