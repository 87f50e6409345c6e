"""The Celery app. It is made by a function: importing this module opens and configures nothing."""

from typing import Any

from celery import Celery

from promptstack.config.celery import celery_settings
from promptstack.config.names import TaskName
from promptstack.config.settings import Settings
from promptstack.services.execution.executor import Executor
from promptstack.services.execution.sent_jobs import SentJobs
from promptstack.services.llm.event_loop import EventLoop
from promptstack.tasks.batches import take_batch_in
from promptstack.tasks.embeddings import generate_embeddings
from promptstack.tasks.generation import generate_text
from promptstack.tasks.job_task import JobTask
from promptstack.tasks.notifications import send_notification
from promptstack.tasks.operations import run_operation
from promptstack.tasks.runs import finalize_run, run_shard
from promptstack.tasks.views.monitors import BufferedEvents, Monitors


class App(Celery):
    """Uses our settings, which have checked the URLs.

    Celery's own class prefers CELERY_BROKER_URL, CELERY_RESULT_BACKEND and similar variables of
    the environment to what it is configured with.
    """

    def __init__(self, configuration: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conf.update(configuration)
        self._broker_url = configuration["broker_url"]
        self.backend_cls = configuration["result_backend"]

    def _connection(self, url: object, **kwargs: Any) -> Any:
        celery: Any = super()  # more than its types tell
        return celery._connection(self._broker_url, **kwargs)


def create_app(settings: Settings, redis_url: str, *, results: bool = True) -> Celery:
    """Make the app. Without `results` it only sends messages.

    With them, each message would subscribe to its result and stay subscribed for ever.
    """
    configuration = celery_settings(settings, redis_url)
    if not results:
        configuration["result_backend"] = "disabled://"
    return App(configuration, main="promptstack", set_as_current=False, events=BufferedEvents)


def register_tasks(
    app: Celery, executor: Executor, sent_jobs: SentJobs, monitors: Monitors, loop: EventLoop
) -> None:
    """Give the app its tasks, which run jobs by the executor, on the loop. For workers only."""
    tasks: dict[str, Any] = {
        TaskName.GENERATE_TEXT: generate_text,
        TaskName.GENERATE_EMBEDDINGS: generate_embeddings,
        TaskName.RUN_SHARD: run_shard,
        TaskName.FINALIZE_RUN: finalize_run,
        TaskName.SEND_NOTIFICATION: send_notification,
        TaskName.RUN_OPERATION: run_operation,
        TaskName.TAKE_BATCH_IN: take_batch_in,
    }
    for name, function in tasks.items():
        register = app.task(
            name=str(name),
            bind=True,
            base=JobTask,
            executor=executor,
            sent_jobs=sent_jobs,
            monitors=monitors,
            loop=loop,
        )
        register(function)
