"""Answers that must be instances of a JSON schema."""

import json
from typing import Any

import jsonschema
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for

from config.errors import PromptStackError
from services.errors import InvalidInput
from services.llm.base import LLMResponse
from services.text import make_storable_json


class AnswerMismatch(PromptStackError):
    """The model's answer isn't what the JSON schema asks for."""

    code = "ANSWER_MISMATCH"


class AnswerSchema:
    """A schema, ready to check answers."""

    def __init__(self, schema: dict[str, Any]) -> None:
        """Raise `InvalidInput` for what is no schema."""
        kind = validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except SchemaError as error:
            raise InvalidInput(f"This is no JSON schema: {error.message[:200]}.") from error
        self._validator = kind(schema)

    def fault(self, answer: LLMResponse) -> AnswerMismatch | None:
        """What is wrong with an answer. It was paid for: the error's detail holds it."""
        try:
            value = json.loads(answer.text)
        except (ValueError, RecursionError):
            cut = ", as it was cut off" if answer.finish_reason == "length" else ""
            return AnswerMismatch(
                f"The answer is no JSON{cut}; raise max_tokens or change the prompt.",
                detail=answer.text,
            )
        error = next(self._validator.iter_errors(value), None)
        if error is None:
            return None
        # Its own message quotes the answer.
        where = "/".join(map(str, error.absolute_path)) or "the whole"
        return AnswerMismatch(
            f"The answer breaks the schema's rule '{error.validator}' at {where[:200]}.",
            detail=answer.text,
        )

    def read(self, answer: LLMResponse) -> Any:
        """The value of an answer that has no fault."""
        return make_storable_json(json.loads(answer.text))
