"""Processes record the settings that they start with, and no secret."""

from collections.abc import Callable
from typing import Any

from pydantic import SecretStr

from promptstack.config.settings import Settings, load_settings
from promptstack.tasks.settings_seen import changed_settings, record_settings
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import another
from tests.processes import Process, wait_until

MARK = "hunter2"


def secrets_everywhere() -> dict[str, Any]:
    """Each setting that can hold a secret, with a marked one."""
    given: dict[str, Any] = {
        name: MARK for name, field in Settings.model_fields.items() if "Secret" in str(field)
    }
    return given | {
        "flower_basic_auth": f"user:{MARK}",
        "secret_key": MARK * 6,
        "previous_secret_key": MARK * 7,
        "smtp_url": f"smtp://stack:{MARK}@mail.example.org",
        "mail_from": "stack@example.org",
        "database_url": f"postgresql://stack:{MARK}@db:5433/prompts?password={MARK}",
        "redis_url": f"rediss://stack:{MARK}@cache:6380/1",
        "celery_broker_url": f"amqp://u:{MARK}@one:5672/v;amqp://u:{MARK}@two:5672/v",
        "openai_base_url": "https://proxy.example.org/v1",
        "job_max_retries": 7,
    }


def test_what_differs_from_its_default_is_shown_and_no_secret() -> None:
    shown = changed_settings(load_settings(_env_file=None, **secrets_everywhere()))
    assert MARK not in str(shown)
    assert shown["OPENAI_API_KEY"] == shown["SMTP_URL"] == shown["SECRET_KEY"] == "set"
    assert shown["DATABASE_URL"] == "postgresql+psycopg2://db:5433"
    assert shown["REDIS_URL"] == "rediss://cache:6380"
    assert shown["CELERY_BROKER_URL"] == "amqp://one:5672;amqp://two:5672"
    assert shown["JOB_MAX_RETRIES"] == 7
    assert "WORKER_CONCURRENCY" not in shown


def test_settings_are_recorded_when_they_change(stack: WorkerServices) -> None:
    for _ in range(2):
        record_settings(stack, "api")
    record_settings(stack, "worker")
    with another(stack, job_max_retries=9, openai_api_key=SecretStr(MARK)) as changed:
        record_settings(changed, "api")
    entries = stack.audit.get_many(action="settings")
    assert [entry.object_id for entry in entries] == ["api", "worker", "api"]
    assert entries[0].actor_kind == "system"
    assert entries[0].detail["settings"]["JOB_MAX_RETRIES"] == 9
    assert MARK not in str(entries)


def test_a_ledger_that_is_away_stops_no_start(stack: WorkerServices) -> None:
    nowhere = "postgresql+psycopg2://postgres@/none?host=/nonexistent"
    with WorkerServices(stack.settings, nowhere, stack.redis_url) as away:
        record_settings(away, "api")


def test_a_worker_records_them_as_it_starts(
    stack: WorkerServices, start_worker: Callable[..., Process]
) -> None:
    start_worker(JOB_MAX_RETRIES="8")
    wait_until(lambda: stack.audit.get_many(action="settings"), "the entry")
    [entry] = stack.audit.get_many(action="settings")
    assert (entry.object_id, entry.detail["settings"]["JOB_MAX_RETRIES"]) == ("worker", 8)
