"""Deliveries that are due: who takes them, and what came of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from promptstack.repositories.base import change_rows
from promptstack.repositories.wire_values import BatchStatement, array_literal

LOGGED_ATTEMPTS = 20
"""Of one delivery, the newest: somebody may replay it again and again."""
LOOKED_AT = 300
"""Deliveries of an endpoint that are due: one user's may go to any number of hosts."""


class Target(NamedTuple):
    """Where deliveries go that must not hold up others."""

    endpoint_id: UUID
    host: str


@dataclass(frozen=True)
class Room:
    """How many deliveries a worker can take now."""

    deliveries: int
    """All together."""
    of_endpoint: int
    """To one endpoint; or of one user, to addresses that jobs and runs have named."""
    of_target: int
    """To one endpoint, or to one host that jobs and runs have named."""
    busy: Mapping[Target, int]
    """What the worker has in hand already."""


@dataclass(frozen=True)
class DueDelivery:
    """A delivery as one worker took it. `claims` is the fence of what comes of it."""

    id: UUID
    endpoint_id: UUID
    user_id: UUID | None
    host: str
    event_id: UUID
    type: str
    object_id: UUID
    is_response: bool
    """Whether its user knows the object as a response of OpenAI's API."""
    url: str
    secret: str
    previous_secret: str | None
    """Where it signs still."""
    claims: int
    failures: int
    created_at: datetime
    claimed_at: datetime
    """By the ledger's clock, as all times are."""

    @property
    def claim(self) -> tuple[UUID, int]:
        """Which attempt it is."""
        return (self.id, self.claims)

    @property
    def target(self) -> Target:
        """Where it goes."""
        return Target(self.endpoint_id, self.host)


class SettledDelivery(NamedTuple):
    """What came of an attempt."""

    id: UUID
    claims: int
    is_delivered: bool
    is_failure: bool
    """Of the receiver."""
    wait_seconds: float | None
    """Until the next attempt; None: there is none."""
    entry: str
    """Of the log, as JSON."""


class SendingRepository:
    """What those who send events take and note."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def claim(self, room: Room, lease_seconds: float) -> list[DueDelivery]:
        """Take deliveries that are due, the oldest first.

        Nobody else takes one before the lease is over: then its worker counts as dead.
        """
        busy = list(room.busy.items())
        rows = self._session.execute(
            _CLAIM,
            {
                "busy_endpoints": array_literal([target.endpoint_id for target, _ in busy]),
                "busy_hosts": array_literal([target.host for target, _ in busy]),
                "busy_counts": array_literal([count for _, count in busy]),
                "room": room.deliveries,
                "of_endpoint": room.of_endpoint,
                "of_target": room.of_target,
                "looked_at": LOOKED_AT,
                "lease": lease_seconds,
            },
        )
        return [DueDelivery(**row._mapping) for row in rows]

    def hold_disabled(self) -> None:
        """Let some deliveries to disabled endpoints wait until these are enabled."""
        self._session.execute(_HOLD_DISABLED)

    def settle(self, settled: Sequence[SettledDelivery]) -> None:
        """Note what came of attempts. A failure counts only while nobody else has taken it."""
        _SETTLE.run(self._session, [one._asdict() for one in settled], most=LOGGED_ATTEMPTS)

    def release(self, claims: Mapping[UUID, int]) -> None:
        """Give back what was taken, and nothing has come of yet."""
        _RELEASE.run(self._session, [{"id": key, "claims": n} for key, n in claims.items()])

    def prune(self, retention: float, limit: int = 1_000) -> int:
        """Delete up to `limit` deliveries of events so many seconds ago, or of no endpoint."""
        given = {"retention": retention, "limit": limit}
        return change_rows(self._session, _PRUNE.bindparams(**given))


# One look for each endpoint with something to send, and not for each delivery or host.
_TARGETS = """
WITH RECURSIVE targets AS (
    (
        SELECT endpoint_id FROM webhook_deliveries WHERE due_at IS NOT NULL
        ORDER BY endpoint_id LIMIT 1
    )
    UNION ALL
    SELECT next.endpoint_id FROM targets, LATERAL (
        SELECT endpoint_id FROM webhook_deliveries
        WHERE due_at IS NOT NULL AND endpoint_id > targets.endpoint_id
        ORDER BY endpoint_id LIMIT 1
    ) AS next
)
"""

# An endpoint that has just failed gets one event at a time: one that hangs holds up nobody. Of an
# endpoint the oldest are looked at, but those to a host that has no room now. Only those that are
# chosen are locked.
_CLAIM = text(
    f"""{_TARGETS}
, busy AS (
    SELECT * FROM unnest(
        CAST(:busy_endpoints AS uuid[]), CAST(:busy_hosts AS text[]), CAST(:busy_counts AS int[])
    ) AS t (endpoint_id, host, count)
), open AS (
    SELECT
        endpoints.id AS endpoint_id,
        CASE
            WHEN endpoints.failures > 0 AND endpoints.url IS NOT NULL THEN 1 ELSE :of_target
        END AS of_host,
        :of_endpoint - coalesce((
            SELECT sum(count) FROM busy WHERE busy.endpoint_id = endpoints.id
        ), 0) AS room
    FROM targets
    JOIN webhook_endpoints AS endpoints ON endpoints.id = targets.endpoint_id
    LEFT JOIN users ON users.id = endpoints.user_id
    WHERE endpoints.disabled_at IS NULL AND users.disabled_at IS NULL
    AND (endpoints.rests_until IS NULL OR endpoints.rests_until <= now())
), oldest AS (
    SELECT
        open.endpoint_id, open.room, open.of_host, first.id, first.due_at,
        coalesce(busy.count, 0) + row_number() OVER (
            PARTITION BY open.endpoint_id, first.host ORDER BY first.due_at
        ) AS number_of_host
    FROM open CROSS JOIN LATERAL (
        SELECT id, host, due_at FROM webhook_deliveries AS deliveries
        WHERE deliveries.endpoint_id = open.endpoint_id AND due_at <= now()
        AND host <> ALL (ARRAY(
            SELECT busy.host FROM busy
            WHERE busy.endpoint_id = open.endpoint_id AND busy.count >= open.of_host
        ))
        ORDER BY due_at LIMIT :looked_at
    ) AS first
    LEFT JOIN busy ON busy.endpoint_id = open.endpoint_id AND busy.host = first.host
    WHERE open.room > 0
), due AS (
    SELECT id, due_at, room, row_number() OVER (PARTITION BY endpoint_id ORDER BY due_at) AS number
    FROM oldest WHERE number_of_host <= of_host
), chosen AS MATERIALIZED (
    SELECT id FROM due WHERE number <= room ORDER BY due_at LIMIT :room
), locked AS MATERIALIZED (
    SELECT id FROM webhook_deliveries
    WHERE id IN (SELECT id FROM chosen) AND due_at <= now() FOR UPDATE SKIP LOCKED
)
UPDATE webhook_deliveries AS deliveries SET
    claims = deliveries.claims + 1,
    due_at = now() + make_interval(secs => :lease)
FROM locked, webhook_endpoints AS endpoints
WHERE deliveries.id = locked.id AND endpoints.id = deliveries.endpoint_id
RETURNING deliveries.id, deliveries.endpoint_id, endpoints.user_id, deliveries.host,
    deliveries.event_id, deliveries.type, deliveries.object_id,
    EXISTS (SELECT FROM responses WHERE id = deliveries.object_id) AS is_response,
    coalesce(deliveries.url, endpoints.url) AS url,
    endpoints.secret,
    CASE WHEN endpoints.previous_until > now() THEN endpoints.previous_secret END
        AS previous_secret,
    deliveries.claims, deliveries.failures, deliveries.created_at, now() AS claimed_at
"""  # noqa: S608 - our own text
)

_HOLD_DISABLED = text("""
UPDATE webhook_deliveries SET due_at = NULL WHERE id IN (
    SELECT deliveries.id FROM webhook_endpoints AS endpoints
    JOIN webhook_deliveries AS deliveries ON deliveries.endpoint_id = endpoints.id
    WHERE endpoints.disabled_at IS NOT NULL AND deliveries.due_at <= now()
    LIMIT 1000 FOR UPDATE OF deliveries SKIP LOCKED
)
""")

_SETTLE = BatchStatement(
    "id uuid, claims integer, is_delivered boolean, is_failure boolean, wait_seconds float8, "
    "entry text",
    """
UPDATE webhook_deliveries AS deliveries SET
    state = CASE
        WHEN given.is_delivered THEN 'delivered' WHEN given.wait_seconds IS NULL THEN 'failed'
        ELSE 'pending'
    END,
    due_at = CASE
        WHEN NOT given.is_delivered THEN now() + make_interval(secs => given.wait_seconds)
    END,
    failures = deliveries.failures + CAST(given.is_failure AS integer),
    attempts = CASE
        WHEN jsonb_array_length(deliveries.attempts) < :most THEN deliveries.attempts
        ELSE deliveries.attempts - 0
    END || CAST(given.entry AS jsonb),
    finished_at = CASE
        WHEN given.is_delivered OR given.wait_seconds IS NULL THEN clock_timestamp()
    END
FROM given
WHERE deliveries.id = given.id AND deliveries.state = 'pending'
AND (given.is_delivered OR deliveries.claims = given.claims)
RETURNING deliveries.id
""",
)

_RELEASE = BatchStatement(
    "id uuid, claims integer",
    """
UPDATE webhook_deliveries AS deliveries SET due_at = now() FROM given
WHERE deliveries.id = given.id AND deliveries.claims = given.claims
AND deliveries.state = 'pending'
RETURNING deliveries.id
""",
)

_PRUNE = text(
    f"""{_TARGETS}
, gone AS (
    SELECT endpoint_id FROM targets
    WHERE NOT EXISTS (SELECT FROM webhook_endpoints WHERE id = targets.endpoint_id)
)
DELETE FROM webhook_deliveries WHERE id IN (
    (
        SELECT id FROM webhook_deliveries
        WHERE created_at < now() - make_interval(secs => :retention)
        ORDER BY created_at LIMIT :limit
    )
    UNION ALL
    (
        SELECT id FROM webhook_deliveries
        WHERE due_at IS NOT NULL AND endpoint_id IN (SELECT endpoint_id FROM gone)
        LIMIT :limit
    )
)
"""  # noqa: S608 - our own text
)
