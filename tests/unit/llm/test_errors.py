"""What an error means is told by its class."""

import re
from collections.abc import Iterator

from promptstack.services.errors import run_ending_codes
from promptstack.services.llm import errors
from promptstack.services.llm.errors import ProviderError


def tree(kind: type[ProviderError] = ProviderError, depth: int = 0) -> Iterator[str]:
    yield f"{'  ' * depth}* {kind.__name__}"
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from tree(below, depth + 1)


def test_the_module_opens_with_the_tree_of_its_errors() -> None:
    drawn = re.findall(r"^ *\* \w+$", errors.__doc__ or "", re.MULTILINE)
    assert drawn == list(tree())


def test_a_run_ends_by_what_all_its_calls_would_meet() -> None:
    assert run_ending_codes() == {
        "PROVIDER_AUTHENTICATION",
        "PROVIDER_NOT_CONFIGURED",
        "MODEL_NOT_FOUND",
        "QUOTA_EXHAUSTED",
        "BUDGET_REACHED",
        "KEY_BUDGET_REACHED",
        "USER_BUDGET_REACHED",
        "DEPLOYMENT_BUDGET_REACHED",
        "COST_UNKNOWN",
    }
