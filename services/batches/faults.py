"""What is wrong with the file of a batch, with OpenAI's names."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from promptstack.config.errors import PromptStackError
from promptstack.services.batches.views import BatchError
from promptstack.services.sources.reading import BadInput

CODES: Mapping[str, str] = {
    "BAD_JSON": "invalid_json_line",
    "BAD_ENCODING": "invalid_encoding",
    "DUPLICATE_ID": "duplicate_custom_id",
    "EMPTY_SOURCE": "empty_file",
    "MISSING_FIELD": "missing_required_parameter",
    "TOO_LONG": "request_too_large",
    "UNKNOWN_MODEL": "model_not_found",
    "WRONG_TYPE": "invalid_type",
}
"""OpenAI's names of faults. Else ours in lower case."""


class Checked(Protocol):
    """Inputs that were read and checked."""

    @property
    def bad(self) -> int:
        """How many can't be asked for."""

    @property
    def faults(self) -> Sequence[BadInput]:
        """The first of them."""


def error_of(error: PromptStackError) -> BatchError:
    """What is wrong with the whole file."""
    pointer = getattr(error, "pointer", "")
    return BatchError(_code(error.code), str(error), param=_param(pointer))


def faults_of(found: Checked) -> list[BatchError]:
    """What is wrong with lines, and of how many more."""
    errors = [
        BatchError(_code(one.code), one.reason, one.position, _param(one.pointer))
        for one in found.faults
    ]
    if found.bad > len(errors):
        more = found.bad - len(errors)
        errors.append(BatchError("more_errors", f"{more:,} more lines are not valid."))
    return errors


def _code(code: Any) -> str:
    return CODES.get(code, str(code).lower())


def _param(pointer: str) -> str | None:
    return pointer.removeprefix("/").replace("/", ".") or None
