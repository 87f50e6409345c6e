"""When a run can be done is said before it is started."""

from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from promptstack.config.settings import Settings
from promptstack.services.errors import NotFound
from promptstack.services.runs.feasibility import Finish, in_words
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.integration.runs.test_turns_of_users import add_user, hold_back
from tests.runs import work

DAY = 86_400.0
LIMITS = """
[[limits]]
provider = "local"
model = "*"
requests_per_minute = 1

[[limits]]
provider = "demo"
model = "demo-1"
requests_per_minute = 60
"""


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    path = tmp_path / "models.toml"
    path.write_text(LIMITS)
    return settings.model_copy(update={"models_file": path})


def prompts(number: int, name: str = "") -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {n}"} for n in range(number)]


def prepared(stack: WorkerServices, number: int, **how: Any) -> UUID:
    source = prompts(number, str(uuid4()))
    return stack.runs.prepare_generation(source, provider="demo", **how).run_id


def of(stack: WorkerServices, run_id: UUID) -> Finish:
    found = stack.feasibility.of(run_id)
    assert found is not None
    return found


def test_a_run_alone_takes_as_long_as_its_limits_say(stack: WorkerServices) -> None:
    finish = of(stack, prepared(stack, 120, expires_in=DAY))
    assert (finish.seconds, finish.is_late) == (120, False)
    with stack.ledger.transaction() as unit:
        assert finish.at - unit.now() <= timedelta(seconds=120)
    late = of(stack, prepared(stack, 120, expires_in=100))
    assert (late.seconds, late.is_late) == (120, True)
    assert in_words(late).endswith("UTC, in 0 h 2 min")
    with pytest.raises(NotFound):
        stack.feasibility.of(uuid4())


def test_what_was_paid_for_takes_no_time(stack: WorkerServices) -> None:
    work(stack, stack.runs.generate(prompts(3), provider="demo").id)
    ready = stack.runs.prepare_generation(prompts(50), provider="demo")
    assert of(stack, ready.run_id).seconds == 47


def test_runs_of_the_same_user_share_by_the_time_they_have_left(stack: WorkerServices) -> None:
    hold_back(stack)
    user = add_user(stack, "ada")
    stack.runs.generate(prompts(600), provider="demo", user_id=user, expires_in=DAY)
    alike = prepared(stack, 60, user_id=user, expires_in=DAY)
    assert of(stack, alike).seconds == pytest.approx(120, rel=0.01)
    sooner = prepared(stack, 60, user_id=user, expires_in=DAY / 10)
    assert of(stack, sooner).seconds == pytest.approx(66, rel=0.01)
    later = prepared(stack, 60, user_id=user, expires_in=10 * DAY)
    assert of(stack, later).seconds == pytest.approx(660, rel=0.01)


def test_users_share_by_their_tiers_and_jobs_count(stack: WorkerServices) -> None:
    hold_back(stack)
    ada, pro = add_user(stack, "ada"), add_user(stack, "pro", "pro")
    stack.runs.generate(prompts(600), provider="demo", user_id=ada)
    assert of(stack, prepared(stack, 60, user_id=pro)).seconds == pytest.approx(90, rel=0.01)
    assert of(stack, prepared(stack, 60)).seconds == pytest.approx(120, rel=0.01)
    for number in range(10):
        stack.jobs.enqueue_generation(f"Say {number}.", provider="demo", user_id=pro)
    assert of(stack, prepared(stack, 60)).seconds == pytest.approx(130, rel=0.01)
    assert of(stack, prepared(stack, 60, user_id=pro)).seconds == pytest.approx(100 + 5, rel=0.01)


def test_texts_are_packed_into_calls(stack: WorkerServices) -> None:
    packed = stack.factory.service_class("local").embedding_limits.items
    source = [f"Text {n}." for n in range(2 * packed + 1)]
    ready = stack.runs.prepare_embedding(source, provider="local")
    assert of(stack, ready.run_id).seconds == 3 * 60


def test_without_a_limit_nobody_knows(stack: WorkerServices) -> None:
    FakeProvider().serve(stack)
    ready = stack.runs.prepare_generation(prompts(5), provider="fake")
    assert stack.feasibility.of(ready.run_id) is None
