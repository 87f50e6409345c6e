"""A worker's stack with a fake provider, in this process."""

from collections.abc import Iterator

import pytest

from promptstack.config.settings import Settings
from promptstack.services.llm.packing import EmbeddingLimits
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, employ
from tests.jobs import PASSAGE


@pytest.fixture
def stack(settings: Settings) -> Iterator[WorkerServices]:
    """As everywhere, with passages that are short."""
    with WorkerServices.open(settings.model_copy(update=PASSAGE)) as opened:
        yield opened


class Pairs(FakeProvider):
    """Takes two passages in one call."""

    limits = EmbeddingLimits(items=2, bytes=10_000)


@pytest.fixture
def provider(stack: WorkerServices) -> FakeProvider:
    """The provider `fake` of this worker."""
    made = Pairs()
    employ(stack, made)
    return made
