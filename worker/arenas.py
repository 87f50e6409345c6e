"""How the C library keeps the memory that a worker has freed."""

import ctypes
import os

M_ARENA_MAX = -8
"""Of mallopt, in glibc's malloc.h."""


def share_one_arena() -> None:
    """Let all threads take memory from one arena of glibc, unless MALLOC_ARENA_MAX says otherwise.

    By default each thread gets its own, up to eight a processor, and each keeps some of the
    megabytes of answers that were freed: 20 MB in a run of embeddings. Threads that hold Python's
    lock don't wait for each other at an arena. Other C libraries have no arenas.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(M_ARENA_MAX, 1)
