"""A worker's stack with a fake provider, in this process."""

from collections.abc import Iterator

import pytest

from promptstack.config.settings import Settings
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, employ
from tests.jobs import PASSAGE


@pytest.fixture
def stack(settings: Settings) -> Iterator[WorkerServices]:
    """As everywhere, with passages that are short."""
    with WorkerServices.open(settings.model_copy(update=PASSAGE)) as opened:
        yield opened


@pytest.fixture
def provider(stack: WorkerServices) -> FakeProvider:
    """The provider `fake` of this worker."""
    made = FakeProvider()
    employ(stack, made)
    return made
