"""What `up` does with processes that end."""

import signal
from pathlib import Path

import pytest
import typer

from promptstack.api.cli.serve.processes import MAX_DEATHS, Children, interrupt_on_signals
from promptstack.tasks.composition import PromptStack


def test_a_process_that_ends_again_and_again_is_given_up(
    stack: PromptStack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    children = Children(stack, log=tmp_path / "log")
    children.start("worker 1", "no_such_module")
    with pytest.raises(typer.Exit) as ended:
        children.watch()
    children.stop()
    assert ended.value.exit_code == 1
    said = capsys.readouterr().err.splitlines()
    assert said[:-1] == ["worker 1 ended (exit code 1); it is started again."] * MAX_DEATHS
    assert "Stopping everything" in said[-1]


def test_what_nohup_lets_a_command_ignore_stays_ignored() -> None:
    """Closing the terminal must not end `nohup promptstack up &`."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        interrupt_on_signals()
        signal.raise_signal(signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        interrupt_on_signals()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
