"""Children of tests hear every signal, however the tests themselves were started."""

import os
import subprocess
import sys
from pathlib import Path

from tests.processes import PATIENCE, ROOT, run

CHILD = """
import signal
ways = {signal.SIG_DFL: "default", signal.SIG_IGN: "ignored", signal.default_int_handler: "raises"}
for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM"):
    print(name, ways[signal.getsignal(signal.Signals[name])])
"""


def test_children_start_with_default_signals(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    forked = run([str(script)], os.environ)
    of_its_own = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert forked.stdout == of_its_own.stdout, forked.stderr
    assert forked.stdout.splitlines() == [
        "SIGHUP default",
        "SIGINT raises",
        "SIGQUIT default",
        "SIGTERM default",
    ]


def test_children_take_signals_when_a_shell_or_nohup_ignores_them() -> None:
    test = f"{__file__}::{test_children_start_with_default_signals.__name__}"
    traps = "trap '' HUP INT QUIT TERM; exec \"$@\""
    pytest = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", test]
    done = subprocess.run(
        ["/bin/sh", "-c", traps, "sh", *pytest],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
