"""How the prompts of a run are asked: as the run says, or by parameters of their own."""

from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from promptstack.repositories.run_models import Run
from promptstack.services.execution.content_calls import Content
from promptstack.services.llm.parameters import GenerationParameters
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.runs.json_schema.answers import AnswerSchema
from promptstack.services.validation.json_text import dump_json
from promptstack.services.validation.schema_bounds import SchemaBounds

KEPT = 32
"""Of the parameters of items: mostly few differ, and each may have a schema of some 100 KB."""


class HowAsked:
    """One set of parameters."""

    def __init__(self, run: Run, parameters: Mapping[str, Any], bounds: SchemaBounds) -> None:
        checked = GenerationParameters(**parameters)
        self.request = GenerationRequest.of_run(checked, run.provider, run.model)
        self._bounds = bounds

    @cached_property
    def schema(self) -> AnswerSchema | None:
        """What validates its answers. Raises `InvalidInput` if it exceeds today's bounds."""
        schema = self.request.json_schema
        return None if schema is None else AnswerSchema(schema, self._bounds)


class AskedOfRun:
    """The parameters of a run and of its items."""

    def __init__(self, run: Run, bounds: SchemaBounds) -> None:
        """Raise `InvalidInput` if the run's schema exceeds today's bounds."""
        self._run = run
        self._bounds = bounds
        self._of_run = HowAsked(run, run.parameters, bounds)
        _ = self._of_run.schema  # before anything is paid for
        self._own: OrderedDict[bytes, HowAsked] = OrderedDict()

    def of(self, content: Content) -> HowAsked:
        """Return how a content is asked for."""
        if content.parameters is None:
            return self._of_run
        key = dump_json(content.parameters, sort_keys=True)
        how = self._own.pop(key, None) or HowAsked(self._run, content.parameters, self._bounds)
        self._own[key] = how
        if len(self._own) > KEPT:
            self._own.popitem(last=False)
        return how
