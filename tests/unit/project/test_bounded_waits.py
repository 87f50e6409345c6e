"""No test waits for ever: one that hangs would stop the whole run, and not say where."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
PROGRAMS = {"run", "call", "check_call", "check_output"}
"""Of `subprocess`; each takes a `timeout`."""
WAITS = {"join", "result", "communicate"}
"""Of threads, futures and processes; each takes how long, for which `PATIENCE` is there."""


def unbounded(source: str) -> Iterator[int]:
    """The lines that wait for ever when what they wait for doesn't come."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(ast.Attribute(ast.Name("subprocess"), name)) if name in PROGRAMS:
                is_bounded = any(given.arg in {"timeout", None} for given in node.keywords)
            case ast.Call(ast.Attribute(_, "Barrier") | ast.Name("Barrier")):
                is_bounded = any(given.arg == "timeout" for given in node.keywords)
            case ast.Call(ast.Attribute(_, name), [], []):
                is_bounded = name not in WAITS
            case _:
                continue
        if not is_bounded:
            yield node.lineno


def test_tests_wait_within_bounds() -> None:
    found = [
        f"{file.relative_to(TESTS)}:{line}"
        for file in sorted(TESTS.rglob("*.py"))
        for line in unbounded(file.read_text())
    ]
    assert not found, "these wait for ever; tests.processes has PATIENCE, and `join` for threads"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        pytest.param("subprocess.run(['true'], check=True)", [1], id="a program"),
        pytest.param("subprocess.run(['true'], timeout=1)", [], id="a program with a bound"),
        pytest.param("thread.join()", [1], id="a thread"),
        pytest.param("','.join(names)", [], id="a text"),
        pytest.param("future.result()", [1], id="a future"),
        pytest.param("future.result(1)", [], id="a future with a bound"),
        pytest.param("threading.Barrier(2)", [1], id="a barrier"),
        pytest.param("threading.Barrier(2, timeout=1)", [], id="a barrier with a bound"),
    ],
)
def test_what_waits_for_ever_is_seen(source: str, lines: list[int]) -> None:
    assert list(unbounded(source)) == lines
