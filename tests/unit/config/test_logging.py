"""Logs: one record a line, as JSON or text, on standard error, and libraries kept quiet."""

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pytest

from promptstack.config.logging import JsonFormatter, TextFormatter, log_unexpected
from tests.processes import PATIENCE, ROOT

PROGRAM = """
import logging, sys
from promptstack.config.logging import configure_logging
from promptstack.config.settings import load_settings
form, level, loudness = sys.argv[1:]
settings = load_settings(_env_file=None, log_format=form, debug=level == "debug")
configure_logging(settings, quiet=loudness == "quiet")
ours = logging.getLogger("promptstack.services.jobs.service")
ours.debug("a detail")
ours.info("job %s\\nis \\u2028 done \\ud800", 7)
ours.warning("mind \\"this\\"")
try:
    raise ValueError("broken")
except ValueError:
    ours.exception("it failed")
for name in ("openai", "openai._client", "httpx2", "kombu.transport", "amqp", "alembic.runtime"):
    logging.getLogger(name).debug("PROMPT")
    logging.getLogger(name).info("PROMPT")
    logging.getLogger(name).warning("trouble")
"""
Entry = dict[str, Any]


@cache
def run(log_format: str, *, level: str = "info", loudness: str = "loud") -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, log_format, level, loudness],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=PATIENCE,
    )
    assert done.stdout == ""
    return done.stderr


REDIRECTED = """
import contextlib, io, logging
from promptstack.config.logging import configure_logging
from promptstack.config.settings import load_settings
with contextlib.redirect_stderr(io.StringIO()) as theirs:
    configure_logging(load_settings(_env_file=None))
    logging.getLogger("promptstack.services.jobs.service").warning("to them")
    assert "to them" in theirs.getvalue()
theirs.close()
logging.getLogger("promptstack.services.jobs.service").warning("to us")
"""


def test_a_standard_error_that_was_closed_is_not_written_to() -> None:
    """As a test has one, or a program that calls ours and keeps what it says."""
    done = subprocess.run(
        [sys.executable, "-c", REDIRECTED],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=PATIENCE,
    )
    (line,) = done.stderr.splitlines()
    assert line.endswith("WARNING promptstack.services.jobs.service: to us")


def entries(output: str) -> list[Entry]:
    return [json.loads(line) for line in output.splitlines()]


def formatted(record: logging.LogRecord) -> Entry:
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    entry: Entry = json.loads(line)
    return entry


def test_json_is_one_object_a_line() -> None:
    said = entries(run("json", level="info"))
    ours = [entry for entry in said if entry["logger"] == "promptstack.services.jobs.service"]
    assert [entry["level"] for entry in ours] == ["INFO", "WARNING", "ERROR"]
    assert ours[0]["message"] == "job 7\nis \u2028 done \ud800"
    assert ours[1]["message"] == 'mind "this"'
    assert ours[2]["traceback"].splitlines()[0] == "Traceback (most recent call last):"
    assert ours[2]["traceback"].splitlines()[-1] == "ValueError: broken"
    assert [set(entry) for entry in ours[:2]] == [{"time", "level", "logger", "message"}] * 2
    for entry in said:
        assert datetime.fromisoformat(entry["time"]).tzinfo is not None


@pytest.mark.parametrize("level", ["info", "debug"])
def test_libraries_never_log_what_they_send(level: str) -> None:
    said = entries(run("json", level=level))
    assert "PROMPT" not in {entry["message"] for entry in said}
    assert sum(entry["message"] == "trouble" for entry in said) == 6
    assert ("a detail" in {entry["message"] for entry in said}) == (level == "debug")


def test_text_names_level_and_logger() -> None:
    lines = run("text").splitlines()
    assert any(
        line.endswith('WARNING promptstack.services.jobs.service: mind "this"') for line in lines
    )
    assert lines[-1].endswith("WARNING alembic.runtime: trouble")


def test_no_text_begins_a_line_of_its_own_or_commands_a_terminal() -> None:
    formatter = TextFormatter("%(levelname)s %(message)s")
    evil = "x\r\nERROR forged \x1b[31m\x9b\x85\u2028\u202e\x00"
    record = logging.LogRecord("a", logging.INFO, __file__, 1, "model %s", (evil,), None)
    said = formatter.format(record)
    assert said == r"INFO model x\r\nERROR forged \x1b[31m\x9b\x85\u2028\u202e\x00"
    record.exc_info = (ValueError, ValueError(evil), None)
    first, *others = formatter.format(record).splitlines()
    assert first.startswith("INFO")
    assert others
    assert all(line.startswith("    ") and line.isprintable() for line in others)


def test_an_unexpected_error_is_logged_with_its_traceback_and_without_its_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    prompt = "A PROMPT"
    try:
        int(prompt)
    except ValueError as error:
        log_unexpected(logging.getLogger("a"), "a job failed", error)
    (record,) = caplog.records
    for said in (TextFormatter().format(record), JsonFormatter().format(record)):
        assert "a job failed: ValueError" in said
        assert "test_logging.py" in said
        assert "PROMPT" not in said


def test_a_quiet_command_shows_warnings_only() -> None:
    levels = {entry["level"] for entry in entries(run("json", loudness="quiet"))}
    assert levels == {"WARNING", "ERROR"}


def test_a_time_is_in_utc_with_its_fraction() -> None:
    record = logging.LogRecord("a.b", logging.INFO, __file__, 1, "n=%d", (5,), None)
    record.created = 1_700_000_000.25
    entry = formatted(record)
    assert entry == {
        "time": datetime(2023, 11, 14, 22, 13, 20, 250_000, UTC).isoformat(),
        "level": "INFO",
        "logger": "a.b",
        "message": "n=5",
    }
