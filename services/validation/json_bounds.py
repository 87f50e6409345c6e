"""How much JSON a request may carry beside its texts."""

import json
from dataclasses import dataclass
from typing import Any

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.requests import GenerationRequest


@dataclass(frozen=True)
class JsonBounds:
    """How much JSON a request may carry: options, tools' parameters and arguments of their calls.

    Its JSON schema has bounds of its own.
    """

    values: int = 10_000
    """Together, whatever they are nested in."""
    depth: int = 50
    option_bytes: int = 1_000_000
    """Of options, those of fallbacks included."""

    def check(self, request: GenerationRequest) -> None:
        """Raise `InvalidInput` for a request that carries more."""
        options = [request.options, *(one.options for one in request.fallbacks)]
        calls = [call for turn in request.messages for call in turn.tool_calls]
        carried: list[Any] = [*options, *(tool.parameters for tool in request.tools)]
        carried += [call.arguments for call in calls]
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


def _measured(values: list[Any], most: int) -> tuple[int, int]:
    """How many values are in these, and how deep; no more are counted than `most` and a level."""
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
