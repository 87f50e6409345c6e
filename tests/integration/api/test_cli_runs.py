"""`promptstack runs` and the files it writes; the worker's part is done here, by who watches."""

import json
import math
import os
import sys
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from promptstack.api.cli.main import build
from promptstack.api.cli.runs import end as run_end
from promptstack.api.cli.runs.watch import watch_run
from promptstack.repositories.run_models import RunState
from promptstack.services.errors import InvalidInput
from promptstack.services.export import atomic
from promptstack.services.export.paths import check_output
from promptstack.tasks.worker_services import WorkerServices
from tests.runs import work

LINES = '{"id": "a", "text": "One"}\n{"id": "b", "text": "Two"}\n'
BAD = '{"id": "c", "text": ""}\n'


@pytest.fixture(autouse=True)
def worked(stack: WorkerServices, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who watches a run does it."""

    def watch(_: WorkerServices, run_id: UUID, *, quiet: bool) -> None:
        assert quiet in {True, False}
        work(stack, run_id)

    monkeypatch.setattr(run_end, "watch_run", watch)
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text(LINES)


def runs(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(build(), ["runs", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def embed(*arguments: str, code: int = 0, source: str = "texts.jsonl") -> Result:
    return runs("embed", source, "--provider", "local", *arguments, code=code)


def refused(stack: WorkerServices, *arguments: str, source: str = "texts.jsonl") -> str:
    """What is said where nothing is done."""
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    known = len(stack.runs.get_many())
    said = embed(*arguments, source=source, code=2).stderr
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before
    assert len(stack.runs.get_many()) == known
    assert "Nothing was done." in said
    return said


def only_run(stack: WorkerServices) -> UUID:
    (run,) = stack.runs.get_many()
    return run.id


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("texts.jsonl", "texts.jsonl"),
        ("v.ids.jsonl", "v.npy"),
        ("v.errors.jsonl", "v.parquet"),
        ("texts.jsonl", "soft.jsonl"),
        ("texts.jsonl", "hard.jsonl"),
        ("soft.jsonl", "texts.jsonl"),
    ],
)
def test_the_source_is_never_overwritten(
    source: str, output: str, overwrite: list[str], stack: WorkerServices
) -> None:
    for name in ("v.ids.jsonl", "v.errors.jsonl"):
        Path(name).write_text(LINES)
    Path("soft.jsonl").symlink_to("texts.jsonl")
    os.link("texts.jsonl", "hard.jsonl")
    assert "is the source" in refused(stack, "-o", output, *overwrite, source=source)


def test_neither_is_standard_input(stack: WorkerServices, monkeypatch: pytest.MonkeyPatch) -> None:

    with Path("texts.jsonl").open() as given:
        monkeypatch.setattr(sys, "stdin", given)
        with pytest.raises(InvalidInput, match="is the source"):
            check_output(Path("texts.jsonl"), has_vectors=True, source="-", overwrite=True)


@pytest.mark.parametrize("there", ["out.npy", "out.errors.jsonl", "out.ids.jsonl"])
def test_what_is_there_is_overwritten_only_when_told(there: str, stack: WorkerServices) -> None:
    Path(there).write_text("precious")
    assert f"{there} exists already" in refused(stack, "-o", "out.npy")
    embed("-o", "out.npy", "--overwrite")
    files = {path.name for path in Path().glob("out.*")}
    assert files == {"out.npy", "out.ids.jsonl"}
    run = str(only_run(stack))
    for command in (["export", run, "out.npy"], ["watch", run, "-o", "out.npy"]):
        assert "exists already" in runs(*command, code=2).stderr
        runs(*command, "--overwrite")
    assert "exists already" in runs("retry", run, "-o", "out.npy", code=2).stderr


def test_no_results_leave_an_old_output(stack: WorkerServices) -> None:
    embed("-o", "out.jsonl")
    good = Path("out.jsonl").read_bytes()
    Path("bad.jsonl").write_text(BAD)
    done = embed("--skip-bad", "-o", "out.jsonl", "--overwrite", source="bad.jsonl", code=1)
    assert "no results: out.jsonl was not written" in done.stderr
    assert Path("out.jsonl").read_bytes() == good
    assert "EMPTY_TEXT" in Path("out.errors.jsonl").read_text()


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("out", "tells no format"),
        ("out.xlsx", "tells no format"),
        ("nowhere/out.jsonl", "There is no folder"),
        ("folder.jsonl", "is a folder"),
        ("/proc/out.jsonl", "can't be written"),
        (f"{'x' * 250}.jsonl", "can't be written: File name too long"),
    ],
)
def test_the_output_is_judged_first(output: str, reason: str, stack: WorkerServices) -> None:
    Path("folder.jsonl").mkdir()
    assert reason in refused(stack, "-o", output)
    assert reason in refused(stack, "-o", output, "--overwrite")


def test_no_output_is_promised_where_nobody_waits_for_results(stack: WorkerServices) -> None:
    for output in ("out.jsonl", "-"):
        said = refused(stack, "-o", output, "--detach")
        assert "--detach" in said
        assert "promptstack runs export" in said
    embed()
    run = str(only_run(stack))
    said = runs("retry", run, "-o", "out.jsonl", "--detach", code=2).stderr
    assert f"promptstack runs export {run} -o out.jsonl" in said


@pytest.mark.parametrize("summary", [[], ["--json"]])
def test_standard_output_has_results_only(stack: WorkerServices, summary: list[str]) -> None:
    done = embed("-o", "-", *summary)
    assert [json.loads(line)["custom_id"] for line in done.stdout.splitlines()] == ["a", "b"]
    run = str(only_run(stack))
    again = runs("watch", run, "-o", "-", *summary)
    assert again.stdout == done.stdout
    if summary:
        told = json.loads(again.stderr[again.stderr.index("{") :])
        assert (told["id"], told["succeeded"]) == (run, 2)
    else:
        assert "2 of 2 items done" in again.stderr


def test_answers_are_no_arrays() -> None:
    said = runs("generate", "texts.jsonl", "-o", "out.npy", code=2).stderr
    assert "Answers are no vectors" in said


def test_a_full_disk_loses_no_results(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_sync", full)
        done = embed("-o", "out.jsonl", "--json", code=1)
    run = str(only_run(stack))
    assert "No space left on device" in done.stderr
    assert f"promptstack runs export {run} -o out.jsonl" in done.stderr
    told = json.loads(done.stdout)
    assert (told["id"], told["succeeded"]) == (run, 2)
    runs("export", run, "out.jsonl")
    assert len(Path("out.jsonl").read_text().splitlines()) == 2


def test_an_output_that_appeared_meanwhile_is_left(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watch(_: WorkerServices, run_id: UUID, **__: Any) -> None:
        work(stack, run_id)
        Path("out.jsonl").write_text("of another")

    monkeypatch.setattr(run_end, "watch_run", watch)
    assert "exists already" in embed("-o", "out.jsonl", code=1).stderr
    assert Path("out.jsonl").read_text() == "of another"


def test_ctrl_c_says_how_to_go_on(stack: WorkerServices, monkeypatch: pytest.MonkeyPatch) -> None:
    def watch(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_end, "watch_run", watch)
    done = embed("-o", "out.jsonl", "--json", code=130)
    run = only_run(stack)
    assert done.stdout == ""
    assert done.stderr.count(str(run)) == 4
    assert f"promptstack runs watch {run} -o out.jsonl" in done.stderr
    assert f"promptstack runs cancel {run}" in done.stderr
    assert "jobs" not in done.stderr


def test_bad_lines_are_told_and_counted() -> None:
    Path("texts.jsonl").write_text(LINES + BAD * 30 + LINES)
    done = embed("--dry-run", code=2)
    assert "line 3: EMPTY_TEXT" in done.stderr
    assert "and 12 more" in done.stderr
    embed("--dry-run", "--skip-bad")
    told = json.loads(embed("--dry-run", "--json", code=2).stdout)
    assert (told["bad"], len(told["faults"]), told["faults_untold"]) == (32, 20, 12)


def test_a_limit_below_the_expected_cost_is_told(stack: WorkerServices) -> None:
    asked = ("generate", "texts.jsonl", "--provider", "openai", "--max-tokens", "1000")
    plain = runs(*asked, "--dry-run", "--json")
    told = json.loads(plain.stdout)
    assert (told["max_cost_usd"], told["is_over_limit"]) == (None, False)
    assert "The limit" not in plain.stderr
    cost = Decimal(told["cost_usd"])
    enough = runs(*asked, "--dry-run", "--json", "--max-cost", f"{cost:f}")
    told = json.loads(enough.stdout)
    assert (Decimal(told["max_cost_usd"]), told["is_over_limit"]) == (cost, False)
    assert "The limit" not in enough.stderr
    little = runs(*asked, "--dry-run", "--json", "--max-cost", f"{cost / 2:f}")
    assert json.loads(little.stdout)["is_over_limit"] is True
    assert "The limit of $" in little.stderr
    assert "stops before all is done" in little.stderr
    runs(*asked, "--max-cost", f"{cost / 2:f}", "--detach")
    assert stack.runs.get(only_run(stack)).state == RunState.RUNNING


def test_duplicates_are_told_by_line() -> None:
    Path("texts.jsonl").write_text(LINES + LINES)
    said = embed("--dry-run", code=2).stderr
    assert "line 3: DUPLICATE_ID: Line 1 has the same id" in said
    assert "line 4: DUPLICATE_ID: Line 2 has the same id" in said
    assert "more\n" not in said


def test_a_bad_line_has_its_own_id_in_the_error_file_or_none() -> None:
    Path("in.jsonl").write_bytes(b'{"id": "a", "text": "1", "x": NaN}\nno JSON\n{"text": "3"}')
    embed("--skip-bad", "-o", "out.jsonl", source="in.jsonl", code=1)
    lines = Path("out.errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == ["a", None]


@pytest.mark.parametrize(
    ("name", "source"),
    {
        "an id unread": (
            "in.jsonl",
            b'{"id": "a", "text": "1", "x": NaN}\n{"id": "1", "text": "2"}',
        ),
        "no id": ("in.jsonl", b'{"text": ""}\n{"id": "1", "text": "2"}'),
        "messages": (
            "in.jsonl",
            b'{"messages": [{"role": "user", "content": "a"}]}\n{"id": "1", "text": "2"}',
        ),
        "the same id": ("in.jsonl", b'{"id": "1", "text": ""}\n{"id": "1", "text": "2"}'),
        "a row": ("in.csv", b"id,text\n1,a,b\n2,ok"),
        "another encoding": ("in.csv", b"id,text\n1,gr\xfcn\n2,ok"),
    }.values(),
)
def test_a_bad_line_has_no_id_that_a_good_one_could_take(name: str, source: bytes) -> None:
    Path(name).write_bytes(source)
    plan = json.loads(embed("--dry-run", "--json", source=name, code=2).stdout)
    assert (plan["items"], plan["bad"], plan["duplicates"]) == (2, 1, 0)


def test_a_bad_file_of_a_folder_is_named() -> None:
    Path("docs").mkdir()
    Path("docs/a.md").write_text("Good.")
    Path("docs/b.md").write_bytes(b"\xff")
    said = embed("--dry-run", source="docs", code=2).stderr
    assert "  b.md: BAD_ENCODING" in said


def test_a_file_name_stands_on_one_line_of_the_list() -> None:
    Path("docs").mkdir()
    Path("docs/a.md").write_text("Good.")
    Path("docs/b\n.md").write_text("Good.")
    said = embed("--dry-run", source="docs", code=2).stderr
    assert r"  b\n.md: NOT_STORABLE: The file's name" in said


@pytest.mark.parametrize("amount", ["nan", "-inf", "-1", "1e30"])
def test_a_limit_that_is_no_amount_is_refused(stack: WorkerServices, amount: str) -> None:
    embed("--detach")
    run = only_run(stack)
    stack.runs.cancel(run)
    said = runs("retry", str(run), f"--max-cost={amount}", "--detach", code=2).stderr
    assert "amount" in said
    assert stack.runs.get(run).state == RunState.CANCELLED


def test_programs_get_plain_numbers_and_times(stack: WorkerServices) -> None:
    told = json.loads(embed("--json").stdout)
    assert told["cost_usd"] == "0"
    assert "T" in told["created_at"]
    assert datetime.fromisoformat(told["created_at"]).tzinfo is not None
    assert json.loads(runs("list", "--json").stdout) == {"items": [told]}


def test_what_is_watched_ends_its_line_and_counts_in_words(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watch(_: WorkerServices, run_id: UUID, *, quiet: bool) -> None:
        work(stack, run_id)
        watch_run(stack, run_id, quiet=quiet)

    monkeypatch.setattr(run_end, "watch_run", watch)
    Path("texts.jsonl").write_text('{"text": "Only"}')
    said = embed("-o", "out.jsonl").stderr.splitlines()
    assert "Wrote 1 result and 0 failures: out.jsonl" in said
    assert "1 input for" in said[0]
    assert any("1 call  1 token" in line for line in said), said
    assert [line for line in said if line.startswith("Run ")] == [f"Run {only_run(stack)}"]


def test_a_cancelled_run_says_so(stack: WorkerServices) -> None:
    embed("--detach")
    run = only_run(stack)
    runs("cancel", str(run))
    assert stack.runs.get(run).state is RunState.CANCELLED
    said = runs("watch", str(run), code=1).stderr
    assert "the run was cancelled" in said
    assert "reason" not in said


def test_a_cancelled_run_is_resumed(stack: WorkerServices) -> None:
    embed("--detach")
    run = str(only_run(stack))
    assert "goes on" in runs("resume", run, code=2).stderr
    runs("cancel", run)
    assert runs("resume", run, "--detach").stdout == "2 items are tried again.\n"
    assert stack.runs.get(run).state is RunState.RUNNING
    runs("cancel", run)
    said = runs("resume", run, "-o", "out.jsonl").stderr
    assert "Wrote 2 results and 0 failures: out.jsonl" in said
    assert len(Path("out.jsonl").read_text().splitlines()) == 2
    assert "`retry`" in runs("resume", run, code=2).stderr


def test_a_run_is_deleted_when_it_has_ended(stack: WorkerServices) -> None:
    embed()
    run = str(only_run(stack))
    assert runs("delete", run).stdout == f"Deleted run {run}.\n"
    assert "no run" in runs("delete", run, code=2).stderr
    embed()
    run = str(only_run(stack))
    assert json.loads(runs("delete", run, "--json").stdout) == {"id": run, "deleted": True}
    embed("--detach")
    assert "cancel it" in runs("delete", str(only_run(stack)), code=2).stderr


def test_a_run_is_found_by_its_tags(stack: WorkerServices) -> None:
    embed("--detach", "--tag", "red", "--tag", "blue", "--name", "one")
    embed("--detach", "--tag", "red", "--name", "two")
    for tag, names in (("red", ["two", "one"]), ("blue", ["one"]), ("green", [])):
        found = json.loads(runs("list", "--tag", tag, "--json").stdout)["items"]
        assert [run["name"] for run in found] == names
    assert "tag" in embed("--tag", "", code=2).stderr


def test_done_in_the_list_is_what_succeeded() -> None:
    Path("texts.jsonl").write_text(LINES + BAD)
    embed("--skip-bad", code=1)
    assert "2/3" in runs("list").stdout


def test_a_field_that_is_called_start_may_be_anything(stack: WorkerServices) -> None:
    starts = ['"00:12.5"', "12.5", "1e300", "true", "[1]", "null", "7"]
    Path("texts.jsonl").write_text(
        "".join(f'{{"text": "text {n}", "start": {start}}}\n' for n, start in enumerate(starts))
    )
    embed()
    found = stack.search.search("text", provider="local", limit=20)
    assert sorted(match.start for match in found) == [0] * 6 + [7]


@pytest.mark.parametrize("value", ["1e400", "NaN", "1e-400", "9" * 5_000, '{"a":1,"a":2}'])
def test_a_condition_that_would_be_another_is_refused(value: str) -> None:
    embed()
    search = ["search", "any", "--provider", "local", "--where", f"n={value}"]
    result = CliRunner().invoke(build(), search)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--where n has" in result.stderr


@pytest.mark.parametrize(
    "condition", [{"n": math.inf}, {"n": "\x00"}, {"\ud800": 1}, {"n": 10**400}]
)
def test_a_condition_that_no_item_can_meet_is_refused(
    stack: WorkerServices, condition: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match="The condition has"):
        stack.search.search("any", provider="local", where=condition)


def test_what_a_format_cannot_hold_is_said_and_the_others_are_written(
    stack: WorkerServices,
) -> None:
    run = runs("generate", "texts.jsonl", "--provider", "demo", "--json")
    run_id = json.loads(run.stdout)["id"]
    with stack.ledger.transaction() as unit:
        odd = text(
            "UPDATE answers SET result = result || '{\"input_tokens\": 1e30}' WHERE ctid IN"
            " (SELECT min(ctid) FROM answers)"
        )
        unit.session.execute(odd)
    said = runs("export", run_id, "-o", "out.parquet", code=1).stderr
    assert "Wrote 1 result and 1 failure" in said
    assert "1 result could not be written; out.errors.jsonl says why" in " ".join(said.split())
    [line] = Path("out.errors.jsonl").read_text().splitlines()
    assert json.loads(line)["code"] == "NOT_WRITABLE"
    assert "Wrote 2 results and 0 failures" in runs("export", run_id, "-o", "all.jsonl").stderr
    watched = runs("watch", run_id, "-o", "out.parquet", "--overwrite", code=1).stderr
    assert "1 result could not be written" in watched


def test_nothing_found_is_said() -> None:
    embed()
    search = ["search", "any", "--provider", "local", "--where", "lang=none"]
    result = CliRunner().invoke(build(), search)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "Nothing found." in result.stderr


def test_a_file_name_that_is_not_utf_8_is_told_and_hurts_no_other() -> None:
    folder = Path(os.fsdecode(b"odd\xff"))
    folder.mkdir()
    (folder / "a.txt").write_text("One")
    (folder / os.fsdecode(b"b\xff.txt")).write_bytes(b"\xff")
    result = embed("-o", "out.jsonl", "--skip-bad", source=str(folder), code=1)
    assert r"b\udcff.txt: NOT_STORABLE: The file's name" in result.output
    [line] = Path("out.jsonl").read_text().splitlines()
    assert json.loads(line)["custom_id"] == "a.txt#1"
    [failed] = Path("out.errors.jsonl").read_text().splitlines()
    assert json.loads(failed)["custom_id"] == r"b\udcff.txt"


def test_the_endpoint_of_a_batch_decides_the_kind_of_its_run() -> None:
    def batch(url: str, **body: Any) -> str:
        request = {"custom_id": "r", "method": "POST", "url": url, "body": body}
        Path("batch.jsonl").write_text("no json\n" + json.dumps(request))
        provider = "local" if "input" in body else "demo"
        runs("batch", "batch.jsonl", "--provider", provider, "--skip-bad", "--dry-run")
        runs("batch", "batch.jsonl", "--provider", provider, "-o", "out.jsonl", code=2)
        more = ("--skip-bad", "--overwrite", "-o", "out.jsonl")
        runs("batch", "batch.jsonl", "--provider", provider, *more, code=1)
        return Path("out.jsonl").read_text()

    assert json.loads(batch("/v1/embeddings", input="One"))["custom_id"] == "r"
    turns = [{"role": "user", "content": "Say hello."}]
    assert "Say hello." in batch("/v1/chat/completions", messages=turns)
    assert "is a request" in runs("batch", "texts.jsonl", code=2).stderr
    assert "is read twice, from a file" in runs("batch", "-", code=2).stderr
