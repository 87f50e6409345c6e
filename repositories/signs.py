"""Whether there is anything to look after: one cheap statement for each step of upkeep.

Every worker asks these once a second, and mostly nothing is there. Each sign is one look into an
index that says "none" at once, however many jobs wait or run. The statements that do the work are
run only where a sign is seen. They look again, so a sign may say too much and never too little.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy.pool import PoolProxiedConnection

from promptstack.config.names import RATE_LIMIT_WAIT, Queue
from promptstack.repositories.jobs.celery_messages import UNTOLD_SECONDS
from promptstack.repositories.jobs.outbox import FRESH_SECONDS
from promptstack.repositories.limited_statement import SECONDS, limited
from promptstack.repositories.models import IS_HELD, IS_NOT_HELD


class LivenessSigns(NamedTuple):
    """Jobs that no living worker tends."""

    overdue: bool
    """The deadline of an open job has passed."""
    orphaned: bool
    """A job is running in a worker without a heartbeat."""


class MessageSigns(NamedTuple):
    """Queued jobs that may need a message."""

    sent: bool
    """Some were sent a message."""
    rate_limited: bool
    """Some wait for a rate limit."""
    due: bool
    """Some have no message, or one that was lost with its queue or was passed by a newer one."""
    old: list[str]
    """Queues with a message sent so long ago that it may be lost."""
    held: list[str]
    """Queues for which bulk jobs wait that were not sent yet."""
    untold: bool
    """Some have ended a while ago, and another service's Celery was not told."""


class CleanupSigns(NamedTuple):
    """What nobody needs any more."""

    forgotten: bool
    """Workers that died long ago, or reservations of jobs that run no more."""
    old: bool
    """Jobs, calls and audit entries of long ago, and files that are deleted or expired."""


class RunSigns(NamedTuple):
    """Runs to bring on, to end or to tidy up after."""

    overdue: bool
    abandoned: bool
    half_ended: bool
    failing: bool
    unserved: bool
    """A running run has items that belong to no shard."""
    done: bool
    unfinalized: bool
    old: bool
    """Runs or answers of long ago."""
    unsettled_batches: bool
    """A batch is being cancelled, or its run or job has ended."""
    old_batches: bool


class ContentSigns(NamedTuple):
    """What there is to do for documents."""

    deleted: bool
    """Collections that are being deleted."""
    unused: bool
    """Contents of which a chunk or an item was deleted."""
    wordless: bool
    """Chunks whose words are not filled in."""
    old_queries: bool


class SignsRepository:
    """Looks for what needs to be done, each time by one statement. It changes nothing."""

    def __init__(self, connection: PoolProxiedConnection) -> None:
        self._connection = connection

    def of_liveness(self, lost_seconds: float, *, within: float = SECONDS) -> LivenessSigns:
        """Look for jobs to free, of workers silent for `lost_seconds`, and to end."""
        return LivenessSigns(*self._look(within, _LIVENESS, lost=lost_seconds))

    def of_messages(self, epoch: str, patience: float, *, within: float = SECONDS) -> MessageSigns:
        """Look for what `OutboxRepository.take_unpublished` takes, but for the broker's part."""
        given = {"epoch": epoch, "patience": patience, "fresh": FRESH_SECONDS}
        given["untold"] = UNTOLD_SECONDS
        row = self._look(within, _MESSAGES, **given, limited=RATE_LIMIT_WAIT, queues=_QUEUES)
        return MessageSigns(*row)

    def of_cleanup(
        self,
        workers: float,
        jobs: float,
        attempts: float,
        audit: float = 0.0,
        *,
        keys: float = 0.0,
        deliveries: float = 0.0,
        within: float = SECONDS,
    ) -> CleanupSigns:
        """Look for what is that old, in seconds; 0 is never, but for workers."""
        ages = {"workers": workers, "jobs": jobs, "attempts": attempts, "audit": audit}
        ages |= {"keys": keys, "deliveries": deliveries}
        row = self._look(within, _CLEANUP, **ages)
        return CleanupSigns(*row)

    def of_runs(
        self,
        ending_codes: Sequence[str],
        silence: float = 0.0,
        old: float = 0.0,
        *,
        within: float = SECONDS,
    ) -> RunSigns:
        """Look for runs to tend; `ending_codes` are errors of a shard that end its run.

        Runs are abandoned after `silence` and old after `old` seconds; 0 is never.
        """
        row = self._look(within, _RUNS, codes=list(ending_codes), silence=silence, old=old)
        return RunSigns(*row)

    def of_contents(self, queries: float, *, within: float = SECONDS) -> ContentSigns:
        """Look for what to delete of documents; queries are old after so many seconds."""
        return ContentSigns(*self._look(within, _CONTENTS, queries=queries))

    def of_webhooks(self, *, within: float = SECONDS) -> bool:
        """Whether an event is due to be sent."""
        [is_due] = self._look(within, _WEBHOOKS)
        return bool(is_due)

    def _look(self, within: float, query: str, **given: Any) -> tuple[Any, ...]:
        """Run a query of one row; PostgreSQL ends it after `within` seconds."""
        [row] = limited(self._connection, within, query, given)
        return row


_QUEUES = [str(queue) for queue in Queue]

# What is asked for is the first of an index each time: without an order, PostgreSQL may think that
# it comes across one soon in the whole table, and read all of it.

# One look for each worker that runs jobs, and not for each job.
_LIVENESS = """
    WITH RECURSIVE holders AS (
        (SELECT worker_id FROM jobs WHERE state = 'running' ORDER BY worker_id LIMIT 1)
        UNION ALL
        SELECT (
            SELECT worker_id FROM jobs
            WHERE state = 'running' AND worker_id > holders.worker_id ORDER BY worker_id LIMIT 1
        )
        FROM holders WHERE holders.worker_id IS NOT NULL
    )
    SELECT
        coalesce(
            (SELECT min(expires_at) FROM jobs WHERE finished_at IS NULL) <= now(), false
        ),
        EXISTS (
            SELECT FROM holders WHERE worker_id IS NOT NULL AND NOT EXISTS (
                SELECT FROM workers
                WHERE id = worker_id AND heartbeat_at > now() - make_interval(secs => %(lost)s)
            )
        )
        OR EXISTS (SELECT FROM jobs WHERE state = 'running' AND worker_id IS NULL)
"""

_MESSAGES = """
    WITH sent AS (
        SELECT
            queue,
            oldest < now() - make_interval(secs => %(patience)s) AS is_old,
            oldest < (
                SELECT max(rung_at) FROM jobs
                WHERE state <> 'queued' AND rung_at IS NOT NULL AND jobs.queue = queues.queue
            ) - make_interval(secs => %(patience)s) AS is_passed
        FROM unnest(CAST(%(queues)s AS text[])) AS queues (queue), LATERAL (
            SELECT min(rung_at) AS oldest FROM jobs
            WHERE state = 'queued' AND rung_epoch = %(epoch)s AND jobs.queue = queues.queue
        ) AS first
        WHERE oldest IS NOT NULL
    ),
    epochs AS (
        SELECT min(rung_epoch) AS first, max(rung_epoch) AS last FROM jobs WHERE state = 'queued'
    )
    SELECT
        first IS NOT NULL,
        (SELECT min(provider) FROM jobs WHERE state = 'queued' AND error_code = %(limited)s)
            IS NOT NULL,
        coalesce(first <> %(epoch)s OR last <> %(epoch)s, false)
        OR EXISTS (SELECT FROM sent WHERE is_passed)
        OR (
            SELECT id FROM jobs WHERE state = 'queued' AND rung_at IS NULL AND not_before IS NULL
            AND {not_held}
            AND (created_at < now() - make_interval(secs => %(fresh)s) OR attempt > 0)
            ORDER BY not_before LIMIT 1
        ) IS NOT NULL
        OR coalesce(
            (
                SELECT min(not_before) FROM jobs
                WHERE state = 'queued' AND rung_at IS NULL AND {not_held}
            ) <= now(),
            false
        ),
        ARRAY(SELECT queue FROM sent WHERE is_old),
        ARRAY(
            SELECT queue FROM unnest(CAST(%(queues)s AS text[])) AS queues (queue)
            WHERE (
                SELECT id FROM jobs WHERE {held} AND jobs.queue = queues.queue
                ORDER BY queue, coalesce(user_id, '00000000-0000-0000-0000-000000000000'::uuid), id
                LIMIT 1
            ) IS NOT NULL
        ),
        coalesce(
            (SELECT min(finished_at) FROM jobs WHERE is_followed AND finished_at IS NOT NULL)
                < now() - make_interval(secs => %(untold)s),
            false
        )
    FROM epochs
""".replace("{not_held}", IS_NOT_HELD).replace("{held}", IS_HELD)

# One look for each job that has reservations. Those of its former attempts go when it ends.
_CLEANUP = """
    WITH RECURSIVE holders AS (
        (SELECT job_id FROM reservations ORDER BY job_id LIMIT 1)
        UNION ALL
        SELECT (
            SELECT job_id FROM reservations
            WHERE job_id > holders.job_id ORDER BY job_id LIMIT 1
        )
        FROM holders WHERE holders.job_id IS NOT NULL
    )
    SELECT
        EXISTS (
            SELECT FROM workers WHERE heartbeat_at <= now() - make_interval(secs => %(workers)s)
        )
        OR coalesce(
            (SELECT min(started_at) FROM attempts WHERE job_id IS NULL AND state = 'started')
                < now() - make_interval(secs => %(workers)s),
            false
        )
        OR EXISTS (
            SELECT FROM holders WHERE job_id IS NOT NULL
            AND NOT EXISTS (SELECT FROM jobs WHERE id = job_id AND state = 'running')
        ),
        coalesce(
            %(jobs)s > 0 AND (SELECT min(finished_at) FROM jobs WHERE finished_at IS NOT NULL)
                < now() - make_interval(secs => %(jobs)s),
            false
        )
        OR coalesce(
            %(attempts)s > 0 AND (SELECT min(started_at) FROM attempts WHERE job_id IS NULL)
                < now() - make_interval(secs => %(attempts)s),
            false
        )
        OR coalesce(
            %(audit)s > 0 AND (SELECT min(at) FROM audit_log)
                < now() - make_interval(secs => %(audit)s),
            false
        )
        OR coalesce(
            %(keys)s > 0 AND (SELECT min(created_at) FROM idempotency_keys)
                < now() - make_interval(secs => %(keys)s),
            false
        )
        OR coalesce(
            %(deliveries)s > 0 AND (SELECT min(created_at) FROM webhook_deliveries)
                < now() - make_interval(secs => %(deliveries)s),
            false
        )
        OR %(deliveries)s > 0 AND EXISTS (
            WITH RECURSIVE endpoints AS (
                (
                    SELECT endpoint_id FROM webhook_deliveries WHERE due_at IS NOT NULL
                    ORDER BY endpoint_id LIMIT 1
                )
                UNION ALL
                SELECT next.endpoint_id FROM endpoints, LATERAL (
                    SELECT endpoint_id FROM webhook_deliveries
                    WHERE due_at IS NOT NULL AND endpoint_id > endpoints.endpoint_id
                    ORDER BY endpoint_id LIMIT 1
                ) AS next
            )
            SELECT FROM endpoints WHERE NOT EXISTS (
                SELECT FROM webhook_endpoints WHERE id = endpoints.endpoint_id
            )
        )
        OR (SELECT min(deleted_at) FROM files WHERE deleted_at IS NOT NULL) IS NOT NULL
        OR coalesce(
            (SELECT min(expires_at) FROM files WHERE expires_at IS NOT NULL) <= now(), false
        )
"""

_CONTENTS = """
    SELECT
        (SELECT min(deleted_at) FROM collections WHERE deleted_at IS NOT NULL) IS NOT NULL,
        coalesce((SELECT min(due_at) FROM unused_contents) <= now(), false),
        (SELECT id FROM chunks WHERE words IS NULL ORDER BY id LIMIT 1) IS NOT NULL,
        coalesce(
            (SELECT min(created_at) FROM query_vectors)
                < now() - make_interval(secs => %(queries)s),
            false
        )
"""

_WEBHOOKS = """
    SELECT coalesce(
        (SELECT min(due_at) FROM webhook_deliveries WHERE due_at IS NOT NULL) <= now(), false
    )
"""

_RUNS = """
    WITH open AS (SELECT * FROM runs WHERE finished_at IS NULL),
    running AS (SELECT * FROM open WHERE state = 'running')
    SELECT
        EXISTS (
            SELECT FROM open WHERE expires_at <= now()
            AND (state = 'preparing' OR (state = 'running' AND succeeded + failed < total))
        ),
        %(silence)s > 0 AND EXISTS (
            SELECT FROM open
            WHERE state = 'preparing' AND touched_at < now() - make_interval(secs => %(silence)s)
        ),
        EXISTS (
            SELECT FROM jobs JOIN runs ON runs.id = run_id
            WHERE run_id IS NOT NULL AND jobs.finished_at IS NULL AND jobs.kind = 'shard'
            AND jobs.state = 'queued' AND jobs.created_at <= runs.finished_at
        ),
        EXISTS (
            SELECT FROM running JOIN jobs ON jobs.run_id = running.id
            WHERE jobs.kind = 'shard' AND jobs.state = 'failed'
            AND jobs.created_at >= running.started_at
            AND jobs.error_code = ANY(CAST(%(codes)s AS text[]))
        ),
        EXISTS (SELECT FROM running WHERE next_position <= last_position),
        EXISTS (
            SELECT FROM running WHERE next_position > last_position AND NOT EXISTS (
                SELECT FROM jobs WHERE jobs.run_id = running.id AND jobs.run_id IS NOT NULL
                AND jobs.finished_at IS NULL AND jobs.kind = 'shard'
            )
        ),
        EXISTS (
            SELECT FROM open WHERE state = 'finalizing' AND NOT EXISTS (
                SELECT FROM jobs WHERE jobs.run_id = open.id AND jobs.run_id IS NOT NULL
                AND jobs.finished_at IS NULL AND jobs.kind = 'finalization'
            )
        ),
        EXISTS (SELECT FROM pruned_runs) OR %(old)s > 0 AND (
            coalesce(
                (SELECT min(finished_at) FROM runs WHERE finished_at IS NOT NULL)
                    < now() - make_interval(secs => %(old)s),
                false
            )
            OR coalesce(
                (SELECT min(used_at) FROM answers) + interval '1 day' < least(
                    now() - make_interval(secs => %(old)s),
                    (SELECT created_at FROM runs ORDER BY id LIMIT 1)
                ),
                false
            )
        ),
        EXISTS (
            SELECT FROM batches
            LEFT JOIN runs ON runs.id = batches.run_id
            LEFT JOIN jobs ON jobs.id = batches.job_id
            WHERE ended_at IS NULL AND (
                cancelling_at IS NOT NULL
                OR runs.finished_at IS NOT NULL
                OR CASE batches.state
                    WHEN 'validating' THEN jobs.id IS NULL OR jobs.finished_at IS NOT NULL
                    ELSE runs.id IS NULL
                END
            )
        ),
        %(old)s > 0 AND coalesce(
            (SELECT min(ended_at) FROM batches WHERE ended_at IS NOT NULL)
                < now() - make_interval(secs => %(old)s),
            false
        )
"""
