"""Jobs sent by another service's Celery, by the names of tasks, with real workers on both sides."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from redis import Redis

from promptstack.config.celery import kombu_url
from promptstack.repositories.models import JobState
from promptstack.tasks.worker_services import WorkerServices
from tests.processes import PATIENCE, Process, wait_until

SERVICE = Path(__file__).with_name("another_service.py")
Call = Callable[..., Any]


@pytest.fixture
def shop(environment: dict[str, str], tmp_path: Path) -> Iterator[Call]:
    """Calls of the other service, whose own worker runs."""
    variables = {"PATH": os.environ["PATH"], "SHOP_BROKER": kombu_url(environment["REDIS_URL"])}

    def call(name: str, /, **given: Any) -> Any:
        command = [sys.executable, str(SERVICE), "call", name, json.dumps(given)]
        ran = subprocess.run(
            command, env=variables, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    with (tmp_path / "shop.log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, str(SERVICE), "worker"], env=variables, cwd=tmp_path,
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            yield call
        finally:
            worker.kill()
            worker.wait(PATIENCE)


def test_a_message_with_a_request_is_a_job(
    stack: WorkerServices,
    start_worker: Callable[..., Process],
    shop: Call,
    tmp_path: Path,
) -> None:
    ada = stack.users.create("ada@example.org")
    start_worker(CELERY_USER="Ada@Example.org")
    secret = "The secret of the house"

    done = shop("send", kwargs={"prompt": secret, "provider": "demo", "tags": ["shop"]})
    assert (done["result"]["state"], done["result"]["job"]) == ("succeeded", done["id"])
    job = stack.jobs.get(UUID(done["id"]), owner=ada.id)
    assert secret in job.result["text"]  # type: ignore[index]
    assert job.tags == ["shop"]

    by_place = shop("send", args=[secret], kwargs={"provider": "demo"})
    assert by_place["result"]["state"] == "succeeded"
    embedded = shop(
        "send",
        name="tasks.embeddings.generate_embeddings",
        args=["A text about lamps.", "lamps.txt"],
        kwargs={"provider": "local"},
        queue="embeddings",
    )
    assert embedded["result"]["state"] == "succeeded"

    invalid = {
        "temprature": {"prompt": secret, "temprature": 1},
        "user_id": {"prompt": secret, "user_id": str(ada.id)},
        "either prompt or messages": {"provider": "demo"},
        "nobody": {"prompt": secret, "provider": "nobody"},
    }
    for says, kwargs in invalid.items():
        failed = shop("send", kwargs=kwargs)
        assert failed["raised"] == "JobFailed"
        assert says in failed["says"]
        assert stack.jobs.get(UUID(failed["id"])).state is JobState.FAILED
    odd = shop("send", kwargs={"prompt": secret}, task_id="order-17")
    assert (odd["raised"], "UUID" in odd["says"]) == ("InvalidInput", True)
    crowded = shop("send", args=["a", "b", "c"])
    assert (crowded["raised"], "prompt" in crowded["says"]) == ("InvalidInput", True)
    unknown = shop("send", name="tasks.generation.generate", kwargs={"prompt": secret})
    assert unknown["raised"] == "NotRegistered"

    log = "".join(path.read_text() for path in tmp_path.glob("worker-*.log"))
    assert "Traceback" not in log
    assert secret not in log
    with Redis.from_url(os.environ["REDIS_URL"]) as redis:
        stored = b"".join(redis.get(key) or b"" for key in redis.keys("celery-task-meta-*"))
    assert done["id"].encode() in stored
    assert secret.encode() not in stored


def test_a_message_that_comes_again_makes_nothing_twice(
    stack: WorkerServices, start_worker: Callable[..., Process], shop: Call
) -> None:
    start_worker()
    slow = {"prompt": "Slowly.", "provider": "demo", "options": {"delay_seconds": 1}}
    task_id = shop("send_only", kwargs=slow, times=3)
    assert shop("result_of", task_id=task_id)["result"]["state"] == "succeeded"
    shop("send_only", kwargs=slow, task_id=task_id)
    assert shop("send", kwargs={"prompt": "Next.", "provider": "demo"})["result"]
    assert len(stack.jobs.get_many()) == 2
    assert len(stack.jobs.get_attempts(UUID(task_id))) == 1


def test_chains_chords_and_callbacks_of_another_service(
    stack: WorkerServices, start_worker: Callable[..., Process], shop: Call
) -> None:
    start_worker()
    assert shop("chain_of", name="once")["result"]["state"] == "succeeded"
    # The job is sent anew for each try, by us.
    retried = shop("chain_of", name="late", options={"fail_times": 2})
    assert retried["result"]["state"] == "succeeded"
    assert shop("chain_into")["result"]["state"] == "succeeded"
    assert shop("chain_on")["result"]["state"] == "succeeded"
    assert shop("grouped") == ["succeeded"] * 4

    many = shop("chord_of", name="all", options=[{}, {"options": {"fail_times": 2}}, {}])
    assert [each if each == "ours" else each["state"] for each in many["result"]] == [
        *["succeeded"] * 3,
        "ours",
    ]
    assert shop("linked", name="well")["result"]["state"] == "succeeded"
    broken = shop("chain_of", name="never", provider="nobody")
    assert broken["raised"]
    failed = shop("linked", name="ill", provider="nobody")
    assert failed["raised"] == "JobFailed"
    chord = shop("chord_of", name="none", options=[{}, {"provider": "nobody"}])
    assert chord["raised"] in {"ChordError", "JobFailed"}  # of the body, or of its header
    assert "UNKNOWN_PROVIDER" in chord["says"]

    wait_until(lambda: shop("kept", name="ill") == [failed["id"]], "its errback was called")
    for name, calls in {"once": 1, "late": 1, "all": 1, "well": 1, "on": 1, "never": 0}.items():
        assert len(shop("kept", name=name)) == calls, name
    with stack.ledger.transaction() as unit:
        wait_until(lambda: unit.celery_messages.untold() == [], "all was told")


def test_a_chord_goes_on_when_its_worker_is_killed(
    stack: WorkerServices, start_worker: Callable[..., Process], shop: Call
) -> None:
    first = start_worker()
    slow = [{"options": {"delay_seconds": 3}} for _ in range(3)]
    chord_id, parts = shop("chord_only", name="killed", options=slow)
    wait_until(
        lambda: [job.state for job in stack.jobs.get_many()] == [JobState.RUNNING] * 3,
        "all jobs run",
    )
    first.kill()
    start_worker()
    done = shop("result_of", task_id=chord_id)
    assert sorted(each["job"] for each in done["result"]) == sorted(parts)
    assert len(shop("kept", name="killed")) == 1


def test_what_ends_in_no_workers_hands_is_told(
    stack: WorkerServices, start_worker: Callable[..., Process], shop: Call
) -> None:
    """Here a worker died between the end of the job and its callbacks, or somebody cancelled it."""
    start_worker()
    later = {"prompt": "Later.", "provider": "demo", "options": {"delay_seconds": 60}}
    task_id = shop("send_only", kwargs=later)
    wait_until(lambda: len(stack.jobs.get_many()) == 1, "it is in the ledger")
    stack.jobs.cancel(UUID(task_id))
    assert shop("result_of", task_id=task_id)["raised"] == "TaskRevokedError"
