"""What goes wrong when: drawn from a seed, so that a run can be had again."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """What can go wrong."""

    KILL = "kill"  # a worker ends by SIGKILL
    STOP = "stop"  # a worker freezes by SIGSTOP, is taken for dead, and comes back
    TERM = "term"  # a worker is restarted by SIGTERM
    FLUSH = "flush"  # FLUSHALL
    REDIS_KILL = "redis-kill"  # Redis ends by SIGKILL and comes back with its data
    REDIS_REPLACE = "redis-replace"  # ... and comes back empty
    REDIS_FULL = "redis-full"  # Redis takes no writes: out of memory
    POSTGRES_KILL = "postgres-kill"  # PostgreSQL ends by SIGKILL and comes back
    POSTGRES_RESTART = "postgres-restart"  # ... in order, which ends all connections
    POSTGRES_FULL = "postgres-full"  # PostgreSQL takes no writes, as with a full disk
    CUT = "cut"  # all connections to both servers are closed by them
    PARTITION = "partition"  # one worker's lines to both servers are dead
    DELAY = "delay"  # one worker's lines are slow
    PROVIDER = "provider"  # the provider refuses, breaks and hangs
    API_KILL = "api-kill"  # the server of the HTTP API ends by SIGKILL and comes back


SECONDS: Mapping[Fault, tuple[float, float]] = {
    # Longer than the heartbeat timeout.
    Fault.STOP: (14.0, 18.0),
    Fault.REDIS_KILL: (0.5, 2.0),
    Fault.REDIS_REPLACE: (0.5, 2.0),
    Fault.REDIS_FULL: (2.0, 4.0),
    Fault.POSTGRES_KILL: (0.5, 2.0),
    Fault.POSTGRES_RESTART: (0.5, 2.0),
    Fault.POSTGRES_FULL: (2.0, 4.0),
    # Some are noticed by the reconciler, and some are not.
    Fault.PARTITION: (3.0, 20.0),
    Fault.DELAY: (3.0, 6.0),
    Fault.PROVIDER: (3.0, 5.0),
}
"""How long a fault lasts, from and to; the others are over at once.

For workers that count as dead after `LOST_SECONDS`; a faster pace shortens all.
"""
LOST_SECONDS = 12.0
WITHOUT_API = tuple(fault for fault in Fault if fault is not Fault.API_KILL)
"""Of a run whose load does not come by HTTP."""


@dataclass(frozen=True)
class Planned:
    """One fault to come."""

    at: float
    """Seconds after the beginning."""
    fault: Fault
    seconds: float
    """How long it lasts."""
    choice: float
    """Which worker, as a share of those that there are: 0 to 1."""


def draw(
    seed: int,
    seconds: float,
    *,
    kills: int,
    times: int,
    faults: Sequence[Fault] = WITHOUT_API,
    lost_seconds: float = LOST_SECONDS,
) -> list[Planned]:
    """Plan `kills` kills and each other of `faults` so many `times`, in the order of time.

    Each kind is spread evenly, and the first and the last have time to show what they do.
    """
    random_ = random.Random(seed)
    planned = [
        Planned(at, Fault.KILL, 0.0, random_.random())
        for at in _spread(random_, kills if Fault.KILL in faults else 0, seconds)
    ]
    others = [fault for fault in faults if fault is not Fault.KILL] * times
    random_.shuffle(others)
    for at, fault in zip(_spread(random_, len(others), seconds), others, strict=True):
        lasts = random_.uniform(*SECONDS.get(fault, (0.0, 0.0))) * lost_seconds / LOST_SECONDS
        planned.append(Planned(at, fault, lasts, random_.random()))
    return sorted(planned, key=lambda one: one.at)


def _spread(random_: random.Random, count: int, seconds: float) -> list[float]:
    """Draw one moment in each of so many equal parts."""
    part = seconds / max(1, count)
    return [part * (number + random_.random()) for number in range(count)]
