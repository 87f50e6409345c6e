"""What each failure of a job is on OpenAI's wire."""

import importlib
import pkgutil

import pytest

from promptstack import services
from promptstack.config.errors import PromptStackError
from promptstack.services.openai.errors import FAILURES, error_body, failure_of


def _codes(kind: type[PromptStackError] = PromptStackError) -> set[str]:
    return {kind.code}.union(*map(_codes, kind.__subclasses__()))


def test_every_failure_has_the_code_of_an_error() -> None:
    """A code that is spelled wrong here would make an error of the caller one of the server."""
    for module in pkgutil.walk_packages(services.__path__, f"{services.__name__}."):
        if module.name.endswith(".errors"):
            importlib.import_module(module.name)
    assert set(FAILURES) <= _codes()


@pytest.mark.parametrize(
    ("error_code", "status", "code"),
    [
        ("INVALID_PROVIDER_REQUEST", 400, "invalid_request"),
        ("MODEL_NOT_FOUND", 404, "model_not_found"),
        ("KEY_BUDGET_REACHED", 429, "insufficient_quota"),
        ("QUOTA_EXHAUSTED", 429, "insufficient_quota"),
        ("PROVIDER_TIMEOUT", 504, "provider_timeout"),
        ("WORKER_LOST", 500, "worker_lost"),
        (None, 500, "server_error"),
    ],
)
def test_a_failure_has_a_status_and_a_code(error_code: str | None, status: int, code: str) -> None:
    failure = failure_of(error_code)
    assert (failure.wire_status, failure.code) == (status, code)


def test_an_error_has_all_four_fields() -> None:
    assert error_body(402, "It is spent.", code="insufficient_quota") == {
        "error": {
            "message": "It is spent.",
            "type": "insufficient_quota",
            "param": None,
            "code": "insufficient_quota",
        }
    }
