"""The command `promptstack` as a person or a script runs it, against a real worker."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import typer.main
from sqlalchemy import func, make_url, select, text
from typer.testing import CliRunner

from promptstack.api.cli.main import build
from promptstack.config.names import Queue
from promptstack.repositories.access_models import ApiKey, Role, User
from promptstack.repositories.content_models import Document
from promptstack.repositories.models import Attempt, Job, JobState
from promptstack.services.errors import NotAuthenticated
from promptstack.services.jobs.checks import MAX_SOURCE_BYTES
from promptstack.services.jobs.views import JobView
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute
from tests.processes import PATIENCE, Process, run, wait_until

COMMAND = str(Path(sys.executable).with_name("promptstack"))
NOTHING = {"DATABASE_URL": "", "REDIS_URL": ""}
NOWHERE = {
    "DATABASE_URL": "postgresql://postgres@/none?host=/nonexistent",
    "REDIS_URL": "unix:///nonexistent/valkey.sock",
}
PLAIN: Mapping[str, str] = {}
UNKNOWN = "00000000-0000-7000-8000-000000000000"
PARAGRAPHS = [f"Paragraph {number} of a handbook. " + "More words. " * 140 for number in range(5)]

Done = subprocess.CompletedProcess[str]
Cli = Callable[..., Done]
StartWorker = Callable[..., Process]


@pytest.fixture
def cli(environment: dict[str, str], tmp_path: Path) -> Cli:
    """Runs a command to its end, in a folder of its own and with the settings of the test."""
    folder = tmp_path / "cwd"
    folder.mkdir()

    def run_command(*arguments: str, stdin: bytes = b"", **variables: str) -> Done:
        return run(
            [COMMAND, *arguments],
            command_environment({**environment, **variables}),
            folder=folder,
            stdin=stdin,
        )

    return run_command


def command_environment(variables: dict[str, str]) -> dict[str, str]:
    plain = {"OPENAI_API_KEY": "", "OPENAI_BASE_URL": "", "PYTHONDONTWRITEBYTECODE": ""}
    return {**os.environ, **plain, "PYTHONIOENCODING": "utf-8", **variables}


def together(
    cli: Cli, *commands: Sequence[str], stdin: bytes = b"", variables: Mapping[str, str] = PLAIN
) -> Iterator[Done]:
    """Run commands that do not depend on each other side by side; what came of each, in order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda command: cli(*command, stdin=stdin, **variables), commands)


def refused(done: Done, *reasons: str, code: int = 2) -> bool:
    """Whether a command did nothing and said why in one line."""
    assert (done.returncode, done.stdout) == (code, ""), done
    assert len(done.stderr.splitlines()) == 1, done
    assert done.stderr.startswith("promptstack"), done
    for reason in reasons:
        assert reason in done.stderr, done
    return True


def succeeded(done: Done) -> str:
    """What a command printed that did its work."""
    assert done.returncode == 0, done
    assert "Traceback" not in done.stderr, done
    return done.stdout


def items(done: Done) -> list[Any]:
    """The list that a command printed as JSON."""
    listed: list[Any] = json.loads(succeeded(done))["items"]
    return listed


def count(stack: WorkerServices, model: type[Any]) -> int:
    with stack.ledger.transaction() as unit:
        return unit.session.scalar(select(func.count()).select_from(model)) or 0


def wait_for(stack: WorkerServices, job_id: UUID, state: JobState) -> JobView:
    wait_until(lambda: stack.jobs.get(job_id).state is state, f"job {job_id} to be {state}")
    return stack.jobs.get(job_id)


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_generate(cli: Cli, stack: WorkerServices, start_worker: StartWorker) -> None:
    start_worker()
    refuse = ("--option", "fail_times=1", "--option", "fail_with=invalid")
    plain, as_json, stdin, failing, failing_json, accepted, accepted_json, doctor = together(
        cli,
        ("generate", "Say [bold]hello[/bold] to Köln."),
        ("generate", "Say hello.", "--json", "--idempotency-key", "a"),
        ("generate", "-"),
        ("generate", "x", *refuse),
        ("generate", "x", *refuse, "--json"),
        ("generate", "x", "--no-wait"),
        ("generate", "x", "--no-wait", "--json"),
        ("doctor", "--json"),
        stdin=b"  from\nstandard input\n",
    )

    said = "[demonstration, no model was asked] You wrote"
    assert succeeded(plain) == f"{said} 4 words: Say [bold]hello[/bold] to Köln.\n"
    assert succeeded(stdin) == f"{said} 3 words: from standard input\n"

    job = json.loads(succeeded(as_json))
    assert as_json.stderr == ""
    assert job == stack.jobs.get(UUID(job["id"])).model_dump(mode="json")
    assert (job["state"], job["result"]["text"]) == ("succeeded", f"{said} 2 words: Say hello.")

    reason = "The demo provider was told to refuse this request."
    assert (failing.returncode, failing.stdout) == (1, "")
    assert failing.stderr.splitlines()[-1].endswith(f"failed: {reason}")
    assert failing_json.returncode == 1
    failed = json.loads(failing_json.stdout)
    assert (failed["state"], failed["error"], failed["attempt"]) == ("failed", reason, 1)
    assert failing_json.stderr == f"promptstack: job {failed['id']} failed: {reason}\n"

    later = UUID(succeeded(accepted).removeprefix("Accepted as job ").strip().rstrip("."))
    assert wait_for(stack, later, JobState.SUCCEEDED).result
    assert json.loads(succeeded(accepted_json))["state"] == "queued"

    found = {each["name"]: each["status"] for each in items(doctor)}
    # Without keys.
    assert {found.pop(name) for name in ("openai", "anthropic", "gemini")} == {"warning"}
    assert set(found) > {"settings", "PostgreSQL", "schema", "Redis", "broker", "workers", "demo"}
    assert set(found.values()) == {"ok"}

    again, conflict = together(
        cli,
        ("generate", "Say hello.", "--json", "--idempotency-key", "a"),
        ("generate", "Say goodbye.", "--idempotency-key", "a"),
    )
    assert json.loads(succeeded(again))["id"] == job["id"]
    assert refused(conflict, "idempotency key", job["id"])


def test_embed_and_search(
    cli: Cli, stack: WorkerServices, start_worker: StartWorker, tmp_path: Path
) -> None:
    start_worker()
    folder = tmp_path / "docs"
    long = write(folder / "deep" / "long.txt", "\n\n".join(PARAGRAPHS))
    owl = write(folder / "owl.md", "# Owls\n\nAn owl hunts mice at night. Größe: 40 cm.")
    bread = write(folder / "bread.rst", "Bread is baked of flour, water and salt.")
    write(folder / ".hidden.md", "Nobody embeds this.")
    write(folder / "code.py", "nobody_embeds = this")
    bad = write(folder / "bad.html", "").resolve()

    one = cli("embed", str(owl))
    assert "1 document, 1 chunk in" in succeeded(one)
    assert ": 1 embedded in 1 provider call, 0 reused." in one.stdout
    first = json.loads(succeeded(cli("embed", str(folder), "--json")))
    assert first.pop("seconds") > 0
    assert first.pop("tokens_used") > 0
    assert first == {
        "documents": 3,
        "chunks": 7,
        "embedded": 6,
        "reused": 1,
        "provider_calls": 2,
        "failed": 0,
        "failures": [],
    }

    paid = count(stack, Attempt)
    second, second_json = together(
        cli, ("embed", str(folder)), ("embed", str(folder), str(owl), "--json")
    )
    assert "3 documents, 7 chunks" in succeeded(second)
    assert second.stdout.endswith("all were embedded before; no provider call was made.\n")
    assert len(second.stdout.splitlines()) == 1
    assert second_json.stderr == ""
    summary = json.loads(succeeded(second_json))
    assert (summary["documents"], summary["chunks"], summary["reused"]) == (3, 7, 7)
    assert (summary["embedded"], summary["provider_calls"], summary["tokens_used"]) == (0, 0, 0)
    assert count(stack, Attempt) == paid

    long.write_text(long.read_text().replace("Paragraph 2", "Passage 2"))
    changed = succeeded(cli("embed", str(folder)))
    assert ": 1 embedded in 1 provider call, 6 reused." in changed
    assert count(stack, Attempt) == paid + 1
    assert count(stack, Document) == 3

    skipping, not_waiting, failing = together(
        cli,
        ("embed", str(bad), str(bread), "--skip-bad"),
        ("embed", str(bread), "--no-wait", "--json"),
        ("embed", str(bread), "--provider", "openai"),
    )
    assert "1 document, 1 chunk" in succeeded(skipping)
    assert f"{bad} is empty" in skipping.stderr
    (accepted,) = items(not_waiting)
    assert accepted["source"] == str(bread)
    wait_for(stack, UUID(accepted["id"]), JobState.SUCCEEDED)
    assert failing.returncode == 2
    assert "openai needs an API key, and no worker has one" in " ".join(failing.stderr.split())

    question = "Which bird eats small animals?"
    found, as_json = together(
        cli, ("search", question, "--limit", "2"), ("search", question, "--json")
    )
    lines = succeeded(found).splitlines()
    assert lines[0].split()[1] == str(owl)
    assert "An owl hunts mice" in lines[1]
    assert len(lines) == 4
    best = items(as_json)
    scores = [match["score"] for match in best]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert best[0]["text"] == owl.read_text()
    assert (best[0]["source"], best[0]["position"], best[0]["start"]) == (str(owl), 0, 0)
    assert "Größe" in as_json.stdout
    assert "hidden" not in as_json.stdout


def test_files_that_cannot_be_embedded_leave_nothing_behind(
    cli: Cli, stack: WorkerServices, tmp_path: Path
) -> None:
    good = write(tmp_path / "good.txt", "This could be embedded.")
    empty = write(tmp_path / "empty.txt", "")
    blank = write(tmp_path / "blank.txt", " \n\t ")
    binary = write(tmp_path / "binary.txt", "a\x00b")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Grüße".encode("latin-1"))
    big = write(tmp_path / "big.txt", "")
    os.truncate(big, 50_000_000)
    fifo = tmp_path / "fifo.txt"
    os.mkfifo(fifo)
    code = write(tmp_path / "code" / "a.py", "pass").parent
    missing = tmp_path / "missing.txt"
    problems = {
        empty: "is empty; there is nothing to embed.",
        blank: "is empty; there is nothing to embed.",
        binary: "is a binary file (it holds a NUL byte); only text is embedded.",
        latin: "is not UTF-8 text (byte 0xfc at 2); convert it first.",
        big: "has 50,000,000 bytes; at most 10,000,000 are accepted (MAX_TEXT_BYTES). Split it.",
        fifo: "is not a regular file.",
    }
    many, skipped, no_text, nothing = together(
        cli,
        ("embed", str(good), "--json", *map(str, problems)),
        ("embed", str(binary), "--skip-bad"),
        ("embed", str(good), str(code)),
        ("embed", str(good), str(missing)),
    )
    assert (many.returncode, many.stdout) == (2, "")
    *each, last = many.stderr.splitlines()
    assert each == [f"{path.resolve()} {problem}" for path, problem in problems.items()]
    assert last.startswith("promptstack: 6 of 7 files can't be embedded; nothing was enqueued.")
    assert (skipped.returncode, skipped.stdout) == (2, "")
    assert "No file is left to embed." in skipped.stderr
    assert refused(no_text, f"{code} holds no text files", ".md")
    assert refused(nothing, f"{missing} does not exist")
    assert (count(stack, Job), count(stack, Document)) == (0, 0)


def test_a_file_with_too_long_a_path_is_found_before_anything_is_enqueued(
    cli: Cli, stack: WorkerServices, tmp_path: Path
) -> None:
    folder = tmp_path / "docs"
    write(folder / "a.txt", "This could be embedded.")
    write(
        folder.joinpath(*["x" * 200] * (MAX_SOURCE_BYTES // 200)) / "b.txt",
        "Its path is too long for a source.",
    )
    done = cli("embed", str(folder), "--no-wait")
    assert done.returncode == 2
    assert "b.txt" in done.stderr
    assert (count(stack, Job), count(stack, Document)) == (0, 0)


def test_jobs(
    cli: Cli,
    environment: dict[str, str],
    stack: WorkerServices,
    start_worker: StartWorker,
    tmp_path: Path,
) -> None:
    good = stack.jobs.enqueue_generation("Say hello.")
    arguments = [COMMAND, "jobs", "watch"]
    with Process(arguments, command_environment(environment), tmp_path / "watch.log") as watching:
        wait_until(lambda: "No worker is alive" in watching.output(), "the warning")
        start_worker()
        assert watching.wait() == 0
    assert watching.output().endswith("1 succeeded, 0 did not.\n")

    failing = stack.jobs.enqueue_generation("x", options={"fail_times": 1, "fail_with": "invalid"})
    slow = stack.jobs.enqueue_generation("x", options={"delay_seconds": 300})
    wait_for(stack, failing.id, JobState.FAILED)
    wait_for(stack, slow.id, JobState.RUNNING)
    table, rows, chosen, shown, shown_json, shown_failed, watched = together(
        cli,
        ("jobs", "list"),
        ("jobs", "list", "--limit", "2", "--json"),
        ("jobs", "list", "--state", "failed", "--kind", "generation"),
        ("jobs", "show", str(good.id)),
        ("jobs", "show", str(good.id), "--json"),
        ("jobs", "show", str(failing.id)),
        ("jobs", "watch", str(good.id), str(failing.id)),
    )
    head, *body = succeeded(table).splitlines()
    assert head.split() == ["job", "kind", "model", "state", "done", "tries", "age", "why"]
    assert [line.split()[0] for line in body] == [str(job.id) for job in (slow, failing, good)]
    listed = items(rows)
    assert [row["id"] for row in listed] == [str(slow.id), str(failing.id)]
    assert "result" not in listed[0]
    (line,) = succeeded(chosen).splitlines()[1:]
    assert line.split()[0] == str(failing.id)
    assert "told to refuse" in line

    for words in (
        str(good.id),
        "state  succeeded",
        "1.0 demo/demo-1 succeeded: ",
        "2 words: Say hello.",
    ):
        assert words in succeeded(shown)
    detail = json.loads(succeeded(shown_json))
    assert detail["result"]["text"].endswith("Say hello.")
    assert [attempt["state"] for attempt in detail["attempts"]] == ["succeeded"]
    reason = "The demo provider was told to refuse this request."
    assert "INVALID_PROVIDER_REQUEST" in succeeded(shown_failed)
    assert f"1.0 demo/demo-1 failed: {reason}" in shown_failed.stdout
    assert watched.returncode == 1
    assert watched.stdout == "1 succeeded, 1 did not.\n"
    assert f"{failing.id} failed: {reason}" in watched.stderr

    cancelled = cli("jobs", "cancel", str(slow.id), UNKNOWN)
    assert cancelled.returncode == 2
    assert cancelled.stdout == f"Job {slow.id} is cancelled.\n"
    assert UNKNOWN in cancelled.stderr
    assert stack.jobs.get(slow.id).state is JobState.CANCELLED
    again, too_late, retried = together(
        cli,
        ("jobs", "cancel", str(slow.id)),
        ("jobs", "retry", str(good.id)),
        ("jobs", "retry", str(failing.id), "--json"),
    )
    assert refused(again, "has ended already (cancelled)")
    assert refused(too_late, "is succeeded; only a failed, cancelled or expired job")
    assert [row["id"] for row in items(retried)] == [str(failing.id)]
    wait_until(lambda: len(stack.jobs.get_attempts(failing.id)) == 2, "the retried attempt")
    wait_for(stack, failing.id, JobState.FAILED)


def test_an_empty_ledger_is_shown_as_such(cli: Cli) -> None:
    listed, listed_json, watched = together(
        cli, ("jobs", "list"), ("jobs", "list", "--json"), ("jobs", "watch")
    )
    assert succeeded(listed) == "No jobs.\n"
    assert items(listed_json) == []
    assert succeeded(watched) == "No open jobs.\n"


def test_wrong_requests_say_why_in_one_line_and_enqueue_nothing(
    cli: Cli, stack: WorkerServices, tmp_path: Path
) -> None:
    file = str(write(tmp_path / "a.txt", "text"))
    wrong: dict[tuple[str, ...], str] = {
        ("generate", "x", "--provider", "nope"): "no provider 'nope'. Known: anthropic, demo",
        ("generate", "x", "--model", "nope"): "no generation model 'nope'. Known: demo-1.",
        ("generate", ""): "prompt",
        ("generate", "-"): "prompt",
        ("generate", "a\udcffb"): "cannot be stored",
        ("generate", "x", "--temperature", "9"): "temperature",
        ("generate", "x", "--option", "delay_seconds"): "NAME=VALUE",
        ("generate", "x", "--option", "nope=1"): "no option nope. Known: delay_seconds",
        ("embed", file, "--provider", "nope"): "no provider 'nope'",
        ("search", "x"): "Nothing has been embedded with local/wordllama-256 yet.",
        ("search", " "): "The query is empty.",
        ("jobs", "show", UNKNOWN): f"There is no job {UNKNOWN}.",
        ("keys", "create", "--email", "nobody"): "'nobody' is not an e-mail address.",
    }
    for (_, reason), done in zip(wrong.items(), together(cli, *wrong), strict=True):
        assert refused(done, reason)
    assert (count(stack, Job), count(stack, Document), count(stack, User)) == (0, 0, 0)


def test_wrong_usage_points_to_help(cli: Cli) -> None:
    wrong = {
        (): "Usage: promptstack",
        ("nope",): "No such command",
        ("jobs", "show"): "ID",
        ("jobs", "list", "--state", "nope"): "--state",
        ("worker", "--concurrency", "many"): "--concurrency",
    }
    for (_, reason), done in zip(wrong.items(), together(cli, *wrong), strict=True):
        assert done.returncode == 2, done
        assert reason in done.stdout + done.stderr, done
        assert "Traceback" not in done.stderr, done


def test_standard_input_that_is_not_utf_8_is_refused(cli: Cli, stack: WorkerServices) -> None:
    # What Python does where the locale is a UTF-8 one other than C.
    done = cli("generate", "-", stdin=b"Gr\xfc\xdfe", PYTHONIOENCODING="utf-8:strict")
    assert refused(done, "UTF-8")
    assert count(stack, Job) == 0


def test_a_wrong_setting_is_named_in_one_line(cli: Cli) -> None:
    assert refused(cli("doctor", "--json", API_PORT="abc"), "API_PORT: ")
    assert refused(cli("worker", API_PORT="abc"), "API_PORT: ")
    assert refused(cli("demo", ENVIRONMENT="x", LOG_FORMAT="x"), "ENVIRONMENT: ", "LOG_FORMAT: ")
    assert refused(cli("jobs", "list", DATABASE_URL="mysql://localhost/x"), "DATABASE_URL: ")
    assert refused(cli("up", ENVIRONMENT="production"), "SECRET_KEY must be set")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("REDIS_URL", "redis://localhost:abc/0"), ("CELERY_BROKER_URL", "nope://localhost")],
)
def test_a_wrong_broker_is_named_before_a_job_is_accepted(
    cli: Cli, stack: WorkerServices, variable: str, value: str
) -> None:
    assert refused(cli("generate", "x", "--no-wait", **{variable: value}), f"{variable}: ")
    assert count(stack, Job) == 0


def test_where_nothing_runs_it_says_what_to_start(cli: Cli, tmp_path: Path) -> None:
    file = str(write(tmp_path / "a.txt", "text"))
    commands = (["generate", "x"], ["embed", file], ["worker"])
    for done in together(cli, *commands, variables=NOTHING):
        assert refused(done, "Nothing is running here", "promptstack up")
    assert not (tmp_path / "state").exists()


def test_a_state_folder_that_is_a_file_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    assert refused(cli("doctor", **NOTHING), str(tmp_path / "state"))


def test_a_database_that_is_away_is_named(cli: Cli, tmp_path: Path) -> None:
    file = str(write(tmp_path / "a.txt", "text"))
    commands = (["generate", "x"], ["embed", file], ["search", "x"], ["worker"])
    for done in together(cli, *commands, variables=NOWHERE):
        assert refused(done, "The database could not be reached", "DATABASE_URL")


@pytest.mark.parametrize("command", [["migrate"], ["up", "--port", "0"]])
def test_a_database_that_is_away_is_named_before_it_is_migrated(
    cli: Cli, command: list[str]
) -> None:
    assert refused(cli(*command, **NOWHERE), "The database could not be reached", "DATABASE_URL")


def test_the_doctor_without_a_worker_and_without_servers(cli: Cli) -> None:
    without_worker = cli("doctor")
    assert "none alive; start `promptstack up` or `worker`" in succeeded(without_worker)
    text_, as_json = together(cli, ("doctor",), ("doctor", "--json"), variables=NOWHERE)
    assert text_.returncode == as_json.returncode == 1
    findings = json.loads(as_json.stdout)["items"]
    missing = {each["name"] for each in findings if each["status"] == "missing"}
    assert missing == {"PostgreSQL", "schema", "Redis", "broker", "workers"}
    lines = text_.stdout.splitlines()
    assert [line[:2] for line in lines if line[:2] not in {"ok", "--"}] == ["no"] * 5
    assert all(len(each["detail"].splitlines()) == 1 for each in findings)
    told = {each["name"]: each["detail"] for each in findings}
    for name, variable in {
        "PostgreSQL": "check DATABASE_URL",
        "schema": "check DATABASE_URL",
        "Redis": "check REDIS_URL",
        "broker": "check REDIS_URL",
        "workers": "check DATABASE_URL",
    }.items():
        assert variable in told[name]
        assert "Error" not in told[name].partition(" said: ")[0].partition("(")[0]
        assert "sqlalche.me" not in told[name]


def test_a_database_without_our_tables_is_noticed_and_migrated(
    cli: Cli, stack: WorkerServices, environment: dict[str, str]
) -> None:
    url = make_url(environment["DATABASE_URL"])
    name = f"{url.database}_bare"
    with stack.ledger.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text(f"CREATE DATABASE {name}"))
    bare = {"DATABASE_URL": url.set(database=name).render_as_string(hide_password=False)}
    generate, doctor = together(cli, ("generate", "x"), ("doctor", "--json"), variables=bare)
    assert refused(generate, "schema is missing", "promptstack migrate")
    assert doctor.returncode == 1
    found = {each["name"]: each for each in json.loads(doctor.stdout)["items"]}
    assert found["schema"]["status"] == "missing"
    assert "promptstack migrate" in found["schema"]["detail"]
    assert found["PostgreSQL"]["status"] == "ok"
    assert succeeded(cli("migrate", **bare)).startswith("Migrated ")
    assert succeeded(cli("migrate", **bare)).startswith("The schema is at ")


def test_a_key_is_shown_once_and_kept_as_a_hash(cli: Cli, stack: WorkerServices) -> None:
    done = cli("keys", "create", "--email", "Ada@example.org", "--name", "laptop")
    key = succeeded(done).strip()
    assert len(done.stdout.splitlines()) == 1
    assert key.startswith("ps_")
    assert len(key) > 40
    assert key not in done.stderr
    assert "not shown again" in done.stderr
    raised_key = ("keys", "create", "--email", "ada@example.org", "--admin", "--json")
    assert refused(cli(*raised_key), "is no administrator", "set-role")
    with stack.ledger.transaction() as unit:
        [user] = unit.users.get_many()
        unit.users.update(user, role=Role.ADMIN)
    admin = json.loads(succeeded(cli(*raised_key)))
    assert "admin" in admin["scopes"]
    with stack.ledger.transaction() as unit:
        kept = unit.session.scalars(select(ApiKey.key_hash)).all()
        assert set(kept) == {hashlib.sha256(k.encode()).hexdigest() for k in (key, admin["key"])}
        for table in ("api_keys", "users"):
            rows = unit.session.execute(text(f"SELECT t::text FROM {table} t")).scalars().all()
            assert rows
            assert not [row for row in rows if key in row or admin["key"] in row]
    assert count(stack, User) == 1
    plain, raised = stack.keys.authenticate(key), stack.keys.authenticate(admin["key"])
    assert plain.user_id == raised.user_id
    assert (plain.is_admin, raised.is_admin) == (False, True)


def test_ctrl_c_leaves_an_accepted_job_to_the_next_worker(
    environment: dict[str, str], stack: WorkerServices, tmp_path: Path
) -> None:
    arguments = [COMMAND, "generate", "Say hello."]
    with Process(arguments, command_environment(environment), tmp_path / "log") as generating:
        wait_until(stack.jobs.get_many, "the job")
        wait_until(lambda: "No worker is alive" in generating.output(), "the warning")
        generating.send(signal.SIGINT)
        assert generating.wait() == 130
    assert "Jobs that were accepted go on" in generating.output()
    assert "Traceback" not in generating.output()
    (job,) = stack.jobs.get_many()
    assert job.state is JobState.QUEUED


def every_command(command: Any, *name: str) -> Iterator[tuple[str, ...]]:
    yield name
    for word, inner in getattr(command, "commands", {}).items():
        yield from every_command(inner, *name, word)


def test_every_command_explains_itself(cli: Cli) -> None:
    app = build()
    every = set(every_command(typer.main.get_command(app)))
    assert ("jobs", "retry") in every
    as_processes = [("worker",), ("api",), ("flower",), ("simulator",), ()]
    for name in every - set(as_processes):
        helped = CliRunner().invoke(app, [*name, "--help"], prog_name="promptstack")
        assert helped.exit_code == 0
        assert f"Usage: promptstack {' '.join(name)}" in helped.output
    for name, done in zip(
        as_processes, together(cli, *([*name, "--help"] for name in as_processes)), strict=True
    ):
        assert f"usage: promptstack {' '.join(name)}" in succeeded(done).lower()
        assert done.stderr == ""


def test_keys_are_listed_and_revoked(cli: Cli, stack: WorkerServices) -> None:
    refused(cli("keys", "create", "--name", "to\x1b[2Jday"), "U+001B")
    key = succeeded(cli("keys", "create", "--name", "today")).strip()
    with stack.ledger.transaction() as unit:
        [row] = unit.api_keys.get_all()
        unit.api_keys.update(row, name="to\x1b[2Jday")  # as one may be from before
    assert not stack.keys.authenticate(key).is_admin
    [listed] = items(cli("keys", "list", "--json"))
    assert (listed["name"], listed["revoked_at"]) == ("to\x1b[2Jday", None)
    shown, revoked = together(cli, ("keys", "list"), ("keys", "revoke", listed["id"]))
    assert listed["id"] in succeeded(shown)
    assert "\x1b" not in shown.stdout
    assert key not in shown.stdout
    assert succeeded(revoked) == f"Key {listed['id']} is revoked.\n"
    with pytest.raises(NotAuthenticated):
        stack.keys.authenticate(key)
    assert refused(cli("keys", "revoke", listed["id"]), listed["id"])


def test_what_a_terminal_cannot_show_or_would_obey_is_escaped(
    cli: Cli, stack: WorkerServices, start_worker: StartWorker
) -> None:
    """The answer was paid for when it is printed; and it comes from outside."""
    start_worker()
    plain, as_json = together(
        cli,
        ("generate", "Zürich \x1b]0;title\x07 done"),
        ("generate", "Zürich \x1b]0;title\x07 done", "--json"),
        variables={"PYTHONIOENCODING": "ascii"},
    )
    assert succeeded(plain).endswith("Z\\xfcrich \\x1b]0;title\\x07 done\n")
    assert json.loads(succeeded(as_json))["result"]["text"].startswith("[demonstration")


def test_what_is_empty_or_below_one_is_refused(cli: Cli, stack: WorkerServices) -> None:
    nothing, none, unknown = together(
        cli, ("embed", ""), ("worker", "--concurrency", "0"), ("jobs", "list")
    )
    assert refused(nothing, "path is empty")
    assert refused(none, "WORKER_CONCURRENCY")
    assert succeeded(unknown) == "No jobs.\n"
    assert count(stack, Job) == 0


def test_the_doctor_knows_a_default_that_is_no_provider(cli: Cli) -> None:
    done = cli("doctor", "--json", DEFAULT_EMBEDDING_PROVIDER="nobody")
    assert done.returncode == 1
    found = json.loads(done.stdout)["items"]
    [finding] = [each for each in found if each["name"] == "default"]
    assert (finding["status"], "DEFAULT_EMBEDDING_PROVIDER" in finding["detail"]) == (
        "missing",
        True,
    )


def test_many_files_are_enqueued_some_at_a_time(
    cli: Cli, stack: WorkerServices, tmp_path: Path
) -> None:
    for number in range(250):
        write(tmp_path / "many" / f"{number}.txt", f"Text {number}.")
    done = cli("embed", str(tmp_path / "many"), "--no-wait")
    assert succeeded(done) == "Accepted 250 jobs; follow them with `promptstack jobs watch`.\n"
    assert count(stack, Job) == 250
    assert stack.publisher.waiting(Queue.EMBEDDINGS) == 250


def test_usage_is_shown_and_what_is_wrong_is_said(cli: Cli, stack: WorkerServices) -> None:
    empty = cli("usage")
    assert (empty.returncode, empty.stdout.strip()) == (
        0,
        "Nothing was asked of any provider in that time.",
    )
    job = stack.jobs.enqueue_generation("x")
    execute(stack, job.id)
    shown = cli("usage", "--by", "provider,model")
    assert shown.returncode == 0
    assert "demo-1" in shown.stdout
    [row] = items(cli("usage", "--since", "1h", "--json"))
    assert (row["model"], row["calls"], row["cost_usd"]) == ("demo-1", 1, "0")
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("UPDATE attempts SET cost_usd = 0.0001"))
    [row] = items(cli("usage", "--json"))
    assert row["cost_usd"] == "0.0001"
    for wrong in (["--by", "hour"], ["--since", "soon"], ["--user", "nobody@example.org"]):
        refused = cli("usage", *wrong)
        assert refused.returncode == 2
        assert refused.stderr.startswith("promptstack: ")
        assert "Traceback" not in refused.stderr


INTERRUPTED_IMPORT = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Interrupt())
"""
"""What Python runs at its start: Ctrl-C as soon as some module is looked for."""


def test_ctrl_c_during_the_imports_leaves_no_traceback(
    environment: dict[str, str], tmp_path: Path
) -> None:
    moments = [
        (("jobs", "list"), "typer"),
        (("jobs", "list"), "promptstack.tasks.composition"),
        (("worker",), "celery"),
        (("api",), "fastapi"),
        (("flower",), "tornado"),
        (("simulator",), "aiohttp"),
    ]

    def interrupted(moment: tuple[tuple[str, ...], str]) -> Done:
        command, name = moment
        hook = write(tmp_path / name / "sitecustomize.py", INTERRUPTED_IMPORT.format(name=name))
        # An interpreter of its own: what it imports, and when, is what is looked at.
        return subprocess.run(
            [COMMAND, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=command_environment({**environment, "PYTHONPATH": str(hook.parent)}),
            check=False,
            timeout=PATIENCE,
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(interrupted, moments):
            assert (done.returncode, done.stdout, done.stderr) == (130, "", ""), done


def test_a_reader_that_goes_away_is_no_failure(
    environment: dict[str, str], stack: WorkerServices
) -> None:
    stack.jobs.enqueue_generation("x")
    for command in (("jobs", "list", "--json"), ("jobs", "list"), ("--help",)):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [COMMAND, *command],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.PIPE,
            env=command_environment(environment),
            check=False,
            timeout=PATIENCE,
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, b""), command


def test_a_closed_standard_output_is_no_failure(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" --version >&-', COMMAND],
        capture_output=True,
        env=command_environment(environment),
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, b"")
