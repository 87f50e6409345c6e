"""The Python API answers wrong ids, users and limits by our errors, not by the database's."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from promptstack.repositories.jobs.records import JobFilter
from promptstack.services.errors import InvalidInput, NotFound
from promptstack.tasks.composition import PromptStack
from tests.jobs import as_accepted

Ask = Callable[[PromptStack, Any], object]

CALLS: dict[str, Ask] = {
    "jobs.get": lambda stack, id_: stack.jobs.get(id_),
    "jobs.get_all": lambda stack, id_: stack.jobs.get_all([id_]),
    "jobs.wait": lambda stack, id_: stack.jobs.wait([id_]),
    "jobs.get_attempts": lambda stack, id_: stack.jobs.get_attempts(id_),
    "jobs.cancel": lambda stack, id_: stack.jobs.cancel(id_),
    "jobs.retry": lambda stack, id_: stack.jobs.retry(id_),
    "runs.get": lambda stack, id_: stack.runs.get(id_),
    "runs.start": lambda stack, id_: stack.runs.start(id_),
    "runs.cancel": lambda stack, id_: stack.runs.cancel(id_),
    "runs.retry": lambda stack, id_: stack.runs.retry(id_),
    "runs.wait": lambda stack, id_: stack.runs.wait(id_),
    "run_results.produced": lambda stack, id_: list(stack.run_results.produced(id_)),
    "run_results.failed": lambda stack, id_: list(stack.run_results.failed(id_)),
    "keys.revoke": lambda stack, id_: stack.keys.revoke(id_),
    "enqueue_generation": lambda stack, id_: stack.jobs.enqueue_generation("x", user_id=id_),
    "enqueue_embedding": lambda stack, id_: stack.jobs.enqueue_embedding(
        "x", source="x", user_id=id_
    ),
    "runs.embed": lambda stack, id_: stack.runs.embed(["x"], user_id=id_),
    "runs.generate": lambda stack, id_: stack.runs.generate(["x"], user_id=id_),
}
"""Each takes an id that must name something."""
FILTERS: dict[str, Ask] = {
    "runs.discard": lambda stack, id_: stack.runs.discard(id_),
    "progress.read": lambda stack, id_: stack.progress.read([id_]),
    "run_progress.read": lambda stack, id_: stack.run_progress.read(id_),
    "jobs.get_many after": lambda stack, id_: stack.jobs.get_many(after=id_),
    "jobs.get_many owner": lambda stack, id_: stack.jobs.get_many(owner=id_),
    "operations.start": lambda stack, id_: stack.operations.start("retry", JobFilter(user_id=id_)),
    "operations.get_page": lambda stack, id_: stack.operations.get_page(id_),
    "runs.get_many": lambda stack, id_: stack.runs.get_many(id_),
    "usage.calls": lambda stack, id_: stack.usage.calls(only_unsettled=True, owner=id_, limit=1),
}
"""Each takes an id that may name nothing."""


def test_an_id_that_is_none_is_refused_in_a_sentence(
    stack: PromptStack, subtests: pytest.Subtests
) -> None:
    for name, call in {**CALLS, **FILTERS}.items():
        for wrong in ("zzz", 5, "", "'; DROP TABLE jobs"):
            with subtests.test(f"{name}({wrong!r})"):
                with pytest.raises(InvalidInput) as caught:
                    call(stack, wrong)
                assert str(caught.value).endswith(".")


def test_a_whole_id_as_text_is_an_id(stack: PromptStack, subtests: pytest.Subtests) -> None:
    for name, call in CALLS.items():
        for unknown in (uuid4(), str(uuid4())):
            with subtests.test(name), pytest.raises(NotFound):
                call(stack, unknown)
    job = stack.jobs.enqueue_generation("x")
    assert as_accepted(stack.jobs.get(str(job.id))) == job
    assert stack.jobs.wait([str(stack.jobs.cancel(str(job.id)).id)])[0].id == job.id
    for name, call in FILTERS.items():
        with subtests.test(name):
            call(stack, str(uuid4()))


@pytest.mark.parametrize("limit", [-1, "many", True, 2**80])
def test_a_limit_that_is_none_is_refused_in_a_sentence(stack: PromptStack, limit: Any) -> None:
    for ask in (
        lambda: stack.jobs.get_many(limit=limit),
        lambda: stack.runs.get_many(limit=limit),
        lambda: stack.usage.calls(only_unsettled=True, limit=limit),
    ):
        with pytest.raises(InvalidInput, match="limit"):
            ask()


@pytest.mark.parametrize("options", [5, "x", ["x"]])
def test_options_that_are_no_object_are_refused_in_a_sentence(
    stack: PromptStack, options: Any
) -> None:
    with pytest.raises(InvalidInput, match="options"):
        stack.runs.generate(["x"], options=options)
    with pytest.raises(InvalidInput, match="options"):
        stack.jobs.enqueue_generation("x", options=options)
