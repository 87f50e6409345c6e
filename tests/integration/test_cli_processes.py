"""What `up` does with processes that end."""

from pathlib import Path

import pytest
import typer

from api.cli.processes import MAX_DEATHS, Children
from tasks.composition import PromptStack


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
