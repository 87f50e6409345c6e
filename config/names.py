"""Names that other services rely on: queues, tasks, keys in Redis. They never change meaning."""

from enum import StrEnum


class Queue(StrEnum):
    """The queue of a job's message. Bulk jobs have queues of their own, to delay nobody."""

    GENERATION = "generation"
    EMBEDDINGS = "embeddings"
    GENERATION_BULK = "generation-bulk"
    EMBEDDINGS_BULK = "embeddings-bulk"
    MAINTENANCE = "maintenance"
    """The ends of runs, such as building an index, mails, operations, and files of batches."""
    RESUMED = "resumed"
    """Interactive jobs that a worker had begun and lost or gave back: they have waited before."""

    @property
    def is_bulk(self) -> bool:
        """Whether interactive jobs go first."""
        return self in {Queue.GENERATION_BULK, Queue.EMBEDDINGS_BULK}


class VectorType(StrEnum):
    """How pgvector stores a vector's numbers: in 4 bytes each, or in 2."""

    VECTOR = "vector"
    HALFVEC = "halfvec"


class TaskName(StrEnum):
    """The name under which a task is sent."""

    GENERATE_TEXT = "tasks.generation.generate_text"
    GENERATE_EMBEDDINGS = "tasks.embeddings.generate_embeddings"
    RUN_SHARD = "tasks.runs.run_shard"
    FINALIZE_RUN = "tasks.runs.finalize_run"
    SEND_NOTIFICATION = "tasks.notifications.send_notification"
    RUN_OPERATION = "tasks.operations.run_operation"
    TAKE_BATCH_IN = "tasks.batches.take_batch_in"


NEW_JOBS_CHANNEL = "promptstack_jobs"
"""PostgreSQL's NOTIFY channel: jobs were enqueued in SQL, or events are to be sent.
A notification says no more."""

PROGRESS_KEY = "promptstack:progress:{id}"
"""Redis hash: where a job stands now."""

RUN_KEY = "promptstack:run:{id}"
"""Redis hash: where a run stands now. Its changes are in a stream with `:events` after it."""

TEXT_KEY = "promptstack:text:{id}"
"""Redis stream: the text of a job that asked for a stream, as it is produced."""

EPOCH_KEY = "promptstack:broker-epoch"
"""Lives in the broker's Redis and dies with its data: tells a flushed broker from a slow one."""

LIMITER_KEY = "promptstack:limiter:{credential}"
"""Redis hash: the rate limits of a credential; those of a model have its name after it."""

LEARNED_KEY = "promptstack:learned:{server}:{model}"
"""Redis hash: what refusals taught of a server's model. Expires a day after the last one."""

SIGN_IN_KEY = "promptstack:sign-in:{bucket}"
"""Redis string: when an account or an address may try a password as often again as at first."""

KEY_REQUESTS_KEY = "promptstack:key-requests:{id}"
"""Redis string: when an API key may send as many requests at once as it may after a rest."""

RATE_LIMIT_WAIT = "RATE_LIMIT_WAIT"
"""The error code of a job that waits in the ledger for its turn."""

CACHE_KEY = "promptstack:cache:{key}"
"""Redis string: a cached answer, as JSON."""

CACHE_LOCK_KEY = "promptstack:cache-lock:{key}"
"""Redis string: who computes that answer now."""
