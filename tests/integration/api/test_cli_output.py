"""What commands print and take: at any width, for programs, by the beginnings of ids, in time."""

import json
import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from promptstack.api.cli import terminal
from promptstack.api.cli.main import build
from promptstack.api.cli.serve import commands as serve
from promptstack.config.settings import load_settings
from promptstack.repositories.models import JobState
from promptstack.services.errors import AmbiguousId, InvalidInput, NotFound
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute
from tests.processes import PATIENCE, ROOT, join
from tests.runs import ended, in_ledger, work

WIDE = (
    "A reason that is told in many words, so that no table of 120 characters has room for it. 北京"
)


def cli(*arguments: str, code: int = 0, **environment: str) -> Result:
    result = CliRunner().invoke(build(), arguments, env=environment, prog_name="promptstack")
    assert result.exit_code == code, (result.output, result.exception)
    return result


def told(*arguments: str, code: int = 0) -> Any:
    return json.loads(cli(*arguments, "--json", code=code).stdout)


def refusal(*arguments: str) -> str:
    result = cli(*arguments, code=2)
    assert result.stdout == ""
    return result.stderr


@pytest.fixture
def busy(stack: WorkerServices) -> WorkerServices:
    """A ledger with something in each table."""
    done = stack.jobs.enqueue_generation("Say hello.")
    execute(stack, done.id)
    failing = stack.jobs.enqueue_generation("x", options={"fail_times": 1, "fail_with": "invalid"})
    execute(stack, failing.id)
    with stack.ledger.transaction() as unit:
        job = unit.jobs.get(failing.id)
        assert job is not None
        job.error = WIDE
    run = stack.runs.embed(["One", "Two"], provider="local", name="A long name " * 10)
    work(stack, run.id)
    ended(stack, run)
    stack.keys.create("somebody.with.a.long.name@example.org", "a key for the tests of widths")
    return stack


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_fit_the_width_and_keep_ids_whole(
    busy: WorkerServices, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for console in (terminal.out, terminal.err):
        monkeypatch.setattr(console, "width", width)
    ids = {
        ("jobs", "list"): {str(job.id) for job in busy.jobs.get_many()},
        ("runs", "list"): {str(run.id) for run in busy.runs.get_many()},
        ("keys", "list"): {str(key.id) for key in busy.keys.get_all()},
        ("attempts",): {str(job.id) for job in busy.jobs.get_many()},
        ("usage",): set(),
        ("doctor",): set(),
    }
    for command, whole in ids.items():
        said = cli(*command)
        assert max(map(cell_len, said.stdout.splitlines())) <= width, (command, said.stdout)
        assert all(any(id_ in line for line in said.stdout.splitlines()) for id_ in whole), command
        lines = said.stdout.splitlines()
        assert all(len(line) <= width for line in said.stderr.splitlines())
        if width == 60 and command[-1] == "list":
            assert len(lines) == 1 + len(whole)
            assert "Left out for want of room (--json has all)" in said.stderr


@pytest.mark.usefixtures("busy")
def test_a_pipe_gets_all_columns_uncut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.out, "width", terminal._width())
    said = cli("jobs", "list")
    assert said.stdout.splitlines()[0].split() == (
        ["job", "kind", "model", "state", "done", "tries", "age", "why"]
    )
    assert WIDE in said.stdout
    assert said.stderr == ""


@pytest.mark.usefixtures("stack")
def test_jobs_are_found_by_their_tags(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some text.")
    one = told("generate", "x", "--no-wait", "--tag", "red", "--tag", "blue")
    assert one["tags"] == ["red", "blue"]
    told("embed", str(tmp_path / "a.txt"), "--no-wait", "--tag", "red")
    for tag, found in (("red", 2), ("blue", 1), ("green", 0)):
        assert len(told("jobs", "list", "--tag", tag)["items"]) == found


@pytest.mark.usefixtures("busy")
def test_every_list_has_one_shape(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some text.")
    job = told("generate", "x", "--no-wait")["id"]
    for command in (
        ["jobs", "list"],
        ["jobs", "cancel", job],
        ["jobs", "retry", job],
        ["runs", "list"],
        ["keys", "list"],
        ["attempts"],
        ["usage"],
        ["doctor"],
        ["search", "One", "--provider", "local"],
        ["embed", str(tmp_path / "a.txt"), "--no-wait"],
    ):
        listed = told(*command)
        assert isinstance(listed, dict), command
        assert len(listed["items"]) >= 1, command


def test_who_waits_is_shown_with_the_reason_and_the_time(busy: WorkerServices) -> None:
    slow = "openai asks us to slow down (status 429)."
    run = busy.runs.embed(["Three"], provider="local")
    busy.run_lifecycle.run_once()
    waiting = [busy.jobs.enqueue_generation("Wait").id, busy.jobs.enqueue_generation("Wait").id]
    waiting.append(in_ledger(busy, f"SELECT id FROM jobs WHERE run_id = '{run.id}'"))
    with busy.ledger.transaction() as unit:
        for job_id in waiting:
            claim = unit.steps.claim(job_id, busy.worker_id)
            assert claim is not None
            unit.steps.retry_later(claim, 599.9, "RATE_LIMITED", slow, counts=False)
    reason = f"in 9 m, RATE_LIMITED: {slow}"
    shown = [one for one in told("doctor")["items"] if one["name"] == "waiting"]
    assert [one["detail"] for one in shown] == [
        f"2 jobs of demo/demo-1 {reason}",
        f"1 job of {run.provider}/{run.model} {reason}",
    ]
    assert {one["status"] for one in shown} == {"warning"}
    listed = cli("jobs", "list").stdout
    assert listed.count("no_worker: No worker is alive. Start one: `promptstack worker`.") == 2
    with busy.ledger.transaction() as unit:
        unit.heartbeats.beat(busy.worker_id, "host", 1)
    assert cli("jobs", "list").stdout.count(f"limit, until in 9 m: {slow}") == 2
    assert f"limit, until in 9 m: {slow}" in cli("jobs", "show", str(waiting[0])).stdout
    assert f"waiting  1 job of {run.provider}/{run.model} {reason}" in " ".join(
        cli("runs", "show", str(run.id)).stdout.split("\n")
    )
    [waits] = told("runs", "show", str(run.id))["waits"]
    assert (waits["jobs"], waits["error_code"]) == (1, "RATE_LIMITED")


def test_what_prints_also_prints_json(busy: WorkerServices, tmp_path: Path) -> None:
    (run,) = busy.runs.get_many()
    (key,) = busy.keys.get_all()
    assert told("migrate")["before"] == told("migrate")["after"]
    assert told("keys", "revoke", str(key.id)) == {"id": str(key.id), "revoked": True}
    summary = told("runs", "export", str(run.id), "-o", str(tmp_path / "out.jsonl"))
    assert (summary["items"], summary["errors"]) == (2, 0)
    done = [str(job.id) for job in busy.jobs.get_many(state=JobState.SUCCEEDED)]
    for command in ("wait", "watch"):
        assert [job["id"] for job in told("jobs", command, *done)["items"]] == done


def test_export_takes_its_file_as_all_do(busy: WorkerServices, tmp_path: Path) -> None:
    (run,) = busy.runs.get_many()
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    cli("runs", "export", str(run.id), "-o", str(one))
    cli("runs", "export", str(run.id), str(other))
    assert one.read_bytes() == other.read_bytes()
    assert "Name one file" in refusal("runs", "export", str(run.id))
    assert "Name one file" in refusal("runs", "export", str(run.id), str(one), "-o", str(other))
    lines = cli("runs", "export", str(run.id), "-o", "-").stdout.splitlines()
    assert len(lines) == 2


def test_the_beginning_of_an_id_is_enough(stack: WorkerServices) -> None:
    first = stack.jobs.enqueue_generation("x").id
    run = stack.runs.embed(["One"], provider="local").id
    stack.keys.create("a@example.org", "a")
    (key,) = stack.keys.get_all()

    other = UUID(int=first.int ^ 1)  # differs in the last digit
    with stack.ledger.transaction() as unit:
        row = unit.jobs.get(first)
        assert row is not None
        unit.jobs.add(
            lifetime=60,
            kind=row.kind,
            queue=row.queue,
            provider=row.provider,
            model=row.model,
            request=row.request,
            request_hash=row.request_hash,
            max_retries=0,
            user_id=None,
            run_id=None,
            api_key_id=None,
        )
        newest = unit.jobs.get_many(limit=1, newest_first=True)[0].id
    with stack.ledger.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE jobs SET id = %(other)s WHERE id = %(newest)s",
            {"other": str(other), "newest": str(newest)},
        )

    begins = str(first)[:-1]
    assert stack.jobs.find(str(first).upper()) == first
    for command in ("show", "cancel", "wait", "watch"):
        said = refusal("jobs", command, begins)
        assert str(first) in said, command
        assert str(other) in said, command
    assert "begin with" in refusal("jobs", "retry", begins)
    with pytest.raises(AmbiguousId, match="several jobs"):
        stack.jobs.find(begins)
    stack.jobs.cancel(other)
    with stack.ledger.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM jobs WHERE id = %(id)s", {"id": str(other)})
    assert told("jobs", "show", begins)["id"] == str(first)
    cli("jobs", "cancel", begins)
    cli("jobs", "retry", str(first).replace("-", "")[:30])

    assert told("runs", "show", str(run)[:35])["id"] == str(run)
    cli("runs", "cancel", str(run)[:35])
    assert told("keys", "revoke", str(key.id)[:35])["id"] == str(key.id)
    for given, error in (("nope!", InvalidInput), ("", InvalidInput), ("f" * 33, InvalidInput)):
        with pytest.raises(error, match="no id of a job"):
            stack.jobs.find(given)
    with pytest.raises(NotFound, match="begins with ffff"):
        stack.jobs.find("ffff")


def test_jobs_are_waited_for_in_python_and_in_time(stack: WorkerServices) -> None:
    jobs = [stack.jobs.enqueue_generation(f"Number {number}").id for number in range(3)]
    with pytest.raises(TimeoutError, match="3 of 3 jobs have not ended after 0"):
        stack.jobs.wait(jobs, timeout=0)
    with pytest.raises(NotFound):
        stack.jobs.wait([UUID(int=0)])
    with pytest.raises(InvalidInput, match="timeout"):
        stack.jobs.wait(jobs, timeout=math.nan)
    assert stack.jobs.wait([]) == []

    def do_them() -> None:
        for job_id in reversed(jobs):
            execute(stack, job_id)

    thread = threading.Thread(target=do_them)
    thread.start()
    waited = stack.jobs.wait(jobs, timeout=60)
    join(thread)
    assert [job.id for job in waited] == jobs
    assert {job.state for job in waited} == {JobState.SUCCEEDED}


def test_jobs_wait_says_how_they_ended(busy: WorkerServices) -> None:
    good = busy.jobs.get_many(state=JobState.SUCCEEDED)[0]
    bad = busy.jobs.get_many(state=JobState.FAILED)[0]
    later = busy.jobs.enqueue_generation("x")
    assert cli("jobs", "wait", str(good.id)).stdout == "1 succeeded, 0 did not.\n"
    mixed = cli("jobs", "wait", str(good.id), str(bad.id), code=1)
    assert mixed.stdout == "1 succeeded, 1 did not.\n"
    assert f"{bad.id} failed: " in mixed.stderr
    late = cli("jobs", "wait", str(good.id), str(later.id), "--timeout", "0.1s", code=124)
    assert "1 of 2 jobs have not ended after 0.1 s; they go on" in late.stderr
    assert "no time span" in refusal("jobs", "wait", str(good.id), "--timeout", "soon")


def test_a_generation_takes_all_that_the_service_takes(stack: WorkerServices) -> None:
    common = ("--no-wait", "--expires-in", "10m", "--provider", "openai")
    job = told(
        *("generate", "--message", "system:Be brief.", "--message", "user: Hi: there"),
        *("--message", "assistant:Hello.", "--message", "USER:Bye."),
        *("--stop", "END", "--stop", "###", "--seed", "7", *common),
    )
    with stack.ledger.transaction() as unit:
        row = unit.jobs.get(UUID(job["id"]))
        assert row is not None
        asked, lifetime = row.request, (row.expires_at - row.created_at).total_seconds()
    assert lifetime == pytest.approx(600, abs=1)
    assert (asked["seed"], asked["stop"]) == (7, ["END", "###"])
    turns = [(turn["role"], turn["content"]) for turn in asked["messages"]]
    assert turns == [
        ("system", "Be brief."),
        ("user", "Hi: there"),
        ("assistant", "Hello."),
        ("user", "Bye."),
    ]
    for wrong in ("nobody:x", "user", "user: ", "x"):
        assert "user:TEXT" in refusal("generate", "--message", wrong)
    assert "prompt or messages" in refusal("generate", "x", "--message", "user:x")
    assert "prompt or messages" in refusal("generate")
    for span in ("nan", "-1", "0", "1e400", "9999w"):
        assert "expires_in" in refusal("generate", "x", f"--expires-in={span}")
    assert "no time span" in refusal("generate", "x", "--expires-in", "soon")


def test_runs_and_documents_take_the_same(stack: WorkerServices, tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text('{"prompt": "One"}\n')
    run = told(
        *("runs", "generate", str(source), "--provider", "openai", "--detach"),
        *("--seed", "7", "--stop", "END", "--expires-in", "2h", "--max-retries", "5"),
        *("--option", "top_p=0.5"),
    )
    with stack.ledger.transaction() as unit:
        row = unit.runs.get(UUID(run["id"]))
        assert row is not None
        assert row.parameters == {"seed": 7, "stop": ["END"], "options": {"top_p": 0.5}}
        assert row.max_retries == 5
        assert (row.expires_at - row.created_at).total_seconds() == pytest.approx(7_200, abs=5)
    (tmp_path / "a.txt").write_text("Some text.")
    (item,) = told("embed", str(tmp_path / "a.txt"), "--no-wait", "--expires-in", "90")["items"]
    job = stack.jobs.get(UUID(item["id"]))
    assert (job.expires_at - job.created_at).total_seconds() == pytest.approx(90, abs=1)


def test_help_names_no_flag_by_its_type() -> None:
    for command in (
        [],
        ["jobs"],
        ["runs"],
        ["keys"],
        ["users"],
        ["jobs", "retry"],
        ["runs", "generate"],
    ):
        for width in (60, 80, 120):
            said = CliRunner().invoke(build(), [*command, "--help"], terminal_width=width).stdout
            assert "<bool>" not in said
            assert max(map(len, said.splitlines())) <= width
            assert "..." not in said.partition("Commands:")[2] or width == 60


def test_the_version_is_told() -> None:
    said = cli("--version").stdout
    assert said == f"promptstack {load_settings(_env_file=None).version}\n"


def test_a_second_up_takes_a_free_port_for_its_api(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = stack.settings
    monkeypatch.setattr(serve, "_is_taken", lambda host, port: True)
    assert serve._port(settings, None, joins=True) == 0
    assert serve._port(settings, 8080, joins=True) == 8080
    assert serve._port(settings, None, joins=False) == settings.api_port


LOST = """
import signal, time
from promptstack.api.cli import entry
class Dying:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
signal.signal(signal.SIGINT, entry._leave)
entry.raise_on_ctrl_c()
try:
    Dying()
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_is_not_lost_where_python_cannot_raise_it() -> None:
    """An object that is deleted just then, as rows of the database are, would swallow it."""
    command = [sys.executable, "-c", LOST]
    ran = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=PATIENCE
    )
    assert (ran.stdout, ran.stderr) == ("interrupted\n", "")
