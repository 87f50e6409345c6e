"""Answers that must be instances of a JSON schema."""

import json
from typing import Any, NoReturn

from jsonschema.exceptions import ValidationError

from config.errors import PromptStackError
from services.llm.base import LLMResponse
from services.runs.schema_rules import SchemaRules
from services.text import make_storable_json

MAX_DEPTH = 100
"""Of an answer: far more than any schema means, and far less than Python's stack holds."""


class AnswerMismatch(PromptStackError):
    """The model's answer isn't what the JSON schema asks for."""

    code = "ANSWER_MISMATCH"


class AnswerSchema:
    """A schema, ready to check answers."""

    def __init__(self, schema: dict[str, Any]) -> None:
        """Raise `InvalidInput` for what is no schema, or can't be judged by."""
        rules = SchemaRules(schema)
        self._names = rules.names
        self._validator = rules.validator()

    def fault(self, answer: LLMResponse) -> AnswerMismatch | None:
        """What is wrong with an answer. It was paid for: the error's detail holds it."""
        fault = self._fault_in(answer)
        return None if fault is None else AnswerMismatch(fault, detail=answer.text)

    def read(self, answer: LLMResponse) -> Any:
        """The value of an answer that has no fault."""
        return make_storable_json(json.loads(answer.text))

    def _fault_in(self, answer: LLMResponse) -> str | None:
        try:
            value = json.loads(answer.text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            cut = ", as it was cut off" if answer.finish_reason == "length" else ""
            return f"The answer is no JSON{cut}; raise max_tokens or change the prompt."
        if _is_deep(value):
            return f"The answer is nested more than {MAX_DEPTH} levels deep; change the prompt."
        try:
            error = next(self._validator.iter_errors(value), None)
        except (RecursionError, ArithmeticError):
            return (
                "The answer can't be judged by the schema: for it, the schema's references nest "
                "too deeply, or a number is too large. Make the schema simpler."
            )
        if error is None:
            return None
        # A part that is `false` breaks no named rule.
        rule = error.validator or "false"
        return f"The answer breaks the schema's rule '{rule}' at {self._place(error)}."

    def _place(self, error: ValidationError) -> str:
        """Where it is, in the schema's words: the answer's own names are content."""
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


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
