"""Validates answers by a JSON schema, and reads them."""

import json
from typing import Any

from jsonschema.exceptions import ValidationError

from promptstack.config.errors import PromptStackError
from promptstack.services.llm.answers import LLMResponse
from promptstack.services.runs.json_schema.meter import OverBudget
from promptstack.services.runs.json_schema.rules import SchemaRules
from promptstack.services.text import make_storable_json
from promptstack.services.validation.json_text import NotExact, load_exactly
from promptstack.services.validation.schema_bounds import SchemaBounds

MAX_DEPTH = 100
"""Levels of an answer: far more than any schema means, far fewer than Python's stack holds."""


class AnswerMismatch(PromptStackError):
    """The model's answer isn't what the JSON schema asks for."""

    code = "ANSWER_MISMATCH"


class AnswerNotJudged(PromptStackError):
    """The model's answer can't be judged by the schema within the bounds."""

    code = "ANSWER_NOT_JUDGED"


class AnswerSchema:
    """A schema, ready to check answers."""

    def __init__(self, schema: dict[str, Any], bounds: SchemaBounds) -> None:
        """Raise `InvalidInput` if it is no schema, or answers can't be validated by it."""
        rules = SchemaRules(schema, bounds)
        self._bounds = bounds
        self._names = rules.names
        self._validator = rules.validator()
        self._meter = rules.meter

    @property
    def steps(self) -> int:
        """How many steps the last answer took."""
        return self._meter.taken

    def validate(self, answer: LLMResponse) -> PromptStackError | None:
        """Return what is wrong with an answer. It was paid for: the error's detail holds it.

        Judging ends when the bounds' steps or seconds are used up. One thread at a time.
        """
        try:
            fault = self._fault_in(answer)
        except (OverBudget, RecursionError):
            bounds = self._bounds
            return AnswerNotJudged(
                "The answer can't be judged by the schema, as that takes more than "
                f"{bounds.judging_steps:,} steps or {bounds.judging_seconds:g} s "
                "(MAX_JUDGING_STEPS, MAX_JUDGING_SECONDS), or nests too deeply. Make the schema "
                "simpler, or ask for shorter answers.",
                detail=answer.text,
            )
        return None if fault is None else AnswerMismatch(fault, detail=answer.text)

    @staticmethod
    def read(answer: LLMResponse) -> Any:
        """Return the value of an answer that has no fault."""
        return make_storable_json(json.loads(answer.text))

    def _fault_in(self, answer: LLMResponse) -> str | None:
        try:
            value = load_exactly(answer.text, "The answer", last_name_wins=True)
        except NotExact as lossy:
            return f"{lossy} Change the prompt."
        except ValueError:
            cut = ", as it was cut off" if answer.finish_reason == "length" else ""
            return f"The answer is no JSON{cut}; raise max_tokens or change the prompt."
        if _is_deep(value):
            return f"The answer is nested more than {MAX_DEPTH} levels deep; change the prompt."
        self._meter.begin(value)
        try:
            error = next(self._validator.iter_errors(value), None)
        except ArithmeticError:
            return "The answer has a number that is too large to be judged; change the prompt."
        if error is None:
            return None
        # A part that is `false` breaks no named rule.
        rule = error.validator or "false"
        return f"The answer breaks the schema's rule '{rule}' at {self._place(error)}."

    def _place(self, error: ValidationError) -> str:
        """Name the place in the schema's words only: the answer's own names are content."""
        steps = [
            str(step) if isinstance(step, int) or step in self._names else "*"
            for step in error.absolute_path
        ]
        return "/".join(steps)[:200] or "the whole"


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, list | dict)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True
