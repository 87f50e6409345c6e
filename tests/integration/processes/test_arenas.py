"""A worker's threads share one arena of glibc."""

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, threading
from promptstack.worker.arenas import share_one_arena
share_one_arena()
at_work = threading.Barrier(5)
def work():
    held = bytearray(100_000)
    at_work.wait(30)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
at_work.wait(30)
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="it is not glibc")
@pytest.mark.parametrize(("variables", "is_one"), [({}, True), ({"MALLOC_ARENA_MAX": "4"}, False)])
def test_threads_share_one_arena_unless_told_otherwise(
    variables: dict[str, str], *, is_one: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=variables,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout.count("<heap nr") == 1) == is_one, done.stdout
