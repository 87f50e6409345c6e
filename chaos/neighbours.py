"""A slow machine on purpose: fewer processors, and neighbours that keep them busy."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BUSY = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    sum(range(100_000))
"""
"""Ends with whoever started it, however that ends."""


@contextmanager
def slow_machine(*, processors: int | None, busy_loops: int) -> Iterator[None]:
    """Use only so many processors, with so many busy loops on them, for this process's children.

    Whatever is started within has both; None leaves the processors as they are. Linux only, as
    far as processors are limited.
    """
    before = None if processors is None else os.sched_getaffinity(0)
    loops: list[subprocess.Popen[bytes]] = []
    try:
        if before is not None:
            os.sched_setaffinity(0, sorted(before)[:processors])
        busy = [sys.executable, "-c", BUSY, str(os.getpid())]
        loops += [subprocess.Popen(busy) for _ in range(busy_loops)]
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()
        if before is not None:
            os.sched_setaffinity(0, before)
