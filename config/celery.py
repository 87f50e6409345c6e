"""Celery's settings, each with its reason."""

import ssl
from typing import Any

from kombu import Exchange
from kombu import Queue as KombuQueue

from promptstack.config.names import Queue, TaskName
from promptstack.config.redis_url import RedisUrl
from promptstack.config.setting_types import RABBITMQ_BROKERS
from promptstack.config.settings import Settings

ROUTES = {
    TaskName.GENERATE_TEXT: Queue.GENERATION,
    TaskName.GENERATE_EMBEDDINGS: Queue.EMBEDDINGS,
    TaskName.RUN_SHARD: Queue.GENERATION_BULK,
    TaskName.FINALIZE_RUN: Queue.MAINTENANCE,
    TaskName.SEND_NOTIFICATION: Queue.MAINTENANCE,
    TaskName.RUN_OPERATION: Queue.MAINTENANCE,
    TaskName.TAKE_BATCH_IN: Queue.MAINTENANCE,
}

REDIS_OPTIONS: dict[str, Any] = {
    # The reconciler publishes again what is lost long before this; a lower value would deliver
    # every job longer than it a second time (celery #5935).
    "visibility_timeout": 6 * 3600,
    "socket_connect_timeout": 2,
    "socket_timeout": 10,
    "socket_keepalive": True,
}
RABBITMQ_OPTIONS: dict[str, Any] = {
    # How long a question to RabbitMQ waits for its answer. By default it would be for ever, and a
    # worker or a caller would hang as long as a RabbitMQ that does.
    "read_timeout": 3,
    "write_timeout": 3,
}


def kombu_url(redis_url: str) -> str:
    """Spell a Redis URL as Celery wants it."""
    return RedisUrl.parse(redis_url).for_celery()


def celery_settings(settings: Settings, redis_url: str) -> dict[str, Any]:
    """Return the configuration of the Celery app."""
    broker_url = settings.celery_broker_url or kombu_url(redis_url)
    is_rabbitmq = broker_url.partition(":")[0] in RABBITMQ_BROKERS
    backend_url = kombu_url(redis_url).removeprefix("redis+")
    return {
        "broker_url": broker_url,
        # A Redis URL says it itself.
        "broker_use_ssl": _tls(settings) if broker_url.startswith("amqps:") else False,
        # Celery's own for Redis, which may fail without harm: tasks/views/results.py.
        "result_backend": f"promptstack.tasks.views.results:ResultView+{backend_url}",
        # One for all threads, so that they know of an outage from each other.
        "result_backend_thread_safe": True,
        # Redis that hangs must not hold a job up: the view is let go instead.
        "result_backend_transport_options": {"retry_policy": {"max_retries": 0}},
        # JSON only: a pickle from the broker would run code.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "timezone": "UTC",
        # A job's queue follows from its task's name, so that send_task by name needs no options.
        "task_routes": {str(task): {"queue": str(queue)} for task, queue in ROUTES.items()},
        # Taken from Redis for good: a record of what was taken, written and deleted again, would
        # cost two more exchanges a message, and it is made after the message was taken. Another
        # broker sends a worker as many messages as it may hold unacknowledged: without
        # acknowledgements it would send all.
        "task_queues": [
            KombuQueue(
                str(queue),
                Exchange(str(queue)),
                routing_key=str(queue),
                no_ack=not settings.celery_broker_url,
            )
            for queue in Queue
        ],
        # Of tasks that aren't ours and follow a job. Ours have their routes.
        "task_default_queue": settings.celery_default_queue,
        # From RabbitMQ a worker holds one message for each slot until its job ends: acknowledged
        # as the job starts, another one would lie behind it while other workers are idle. With
        # Redis, acknowledging late buys nothing, since the reconciler publishes a lost message
        # again, and in kombu 5.7 an ack on a connection that broke while the job ran ends the
        # whole worker. RabbitMQ's bound on how long that may take: worker/consumer.py.
        "task_acks_late": is_rabbitmq,
        "worker_consumer": "promptstack.worker.consumer:JobConsumer",
        # One message a free thread: work must not sit reserved behind a long call.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": not settings.celery_broker_url,
        "broker_transport_options": RABBITMQ_OPTIONS if is_rabbitmq else REDIS_OPTIONS,
        # RabbitMQ that says nothing for two of these is taken for gone.
        "broker_heartbeat": 10,
        # RabbitMQ closes a channel for what it minds: then the worker connects again.
        "broker_channel_error_retry": True,
        # A job is accepted when the ledger has it. A broker that is away must cost the caller
        # little; the reconciler publishes later.
        "task_publish_retry": False,
        "broker_connection_timeout": 2,
        "broker_connection_retry_on_startup": True,
        # Workers wait for a broker that is away as long as it takes.
        "broker_connection_max_retries": None,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # Its limit would be raised again by the threads of tasks, on a channel that another thread
        # reads: RabbitMQ's answer is lost between them, and the worker waits for it.
        "worker_enable_prefetch_count_reduction": False,
        # Results are summaries for AsyncResult; the ledger has the real ones for ever.
        "result_expires": settings.progress_ttl_seconds,
        "result_extended": True,
        "result_backend_always_retry": False,
        "redis_socket_connect_timeout": 2,
        "redis_socket_timeout": 2,
        # For Flower: what happens, as it happens.
        "worker_send_task_events": True,
        "task_send_sent_event": True,
        # Logging is set up once, in config.logging.
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


def _tls(settings: Settings) -> dict[str, Any]:
    """What py-amqp needs to check the host name too: kombu puts the URL's in the place of None."""
    return {
        "cert_reqs": ssl.CERT_REQUIRED,
        "ca_certs": settings.tls_ca_file,
        "server_hostname": None,
    }
