"""What nobody knows the price of has not cost nothing: it is unknown, wherever it is shown."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from promptstack.api.cli.main import build
from promptstack.api.cli.runs.end import print_run
from promptstack.api.cli.runs.watch import _picture
from promptstack.api.cli.terminal import out
from promptstack.config.names import RUN_KEY
from promptstack.services.jobs.redis_view import RedisView
from promptstack.services.runs.progress import RunSnapshot
from promptstack.services.runs.rate import Rate
from promptstack.services.runs.views import RunView
from promptstack.tasks.worker_services import WorkerServices
from tests.http import serve
from tests.runs import work
from tests.small_server import Answer, Asked, chat, small_server

PRICE = """
[[prices]]
provider = "small"
model = "dear"
input_per_million = 1
output_per_million = 2
"""


@pytest.fixture
def answers() -> list[Answer]:
    """What the server says to the next calls, instead of an answer."""
    return []


@pytest.fixture
def stack(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answers: list[Answer],
) -> Iterator[WorkerServices]:
    def answer(asked: Asked) -> Answer:
        return answers.pop() if answers else chat(asked)

    with small_server(answer) as server:
        file = tmp_path / "models.toml"
        file.write_text(
            f'[[providers]]\nname = "small"\nwire = "openai"\nbase_url = "{server.url}/v1"\n{PRICE}'
        )
        monkeypatch.setenv("MODELS_FILE", str(file))
        with WorkerServices.open() as opened:
            yield opened


def ran(stack: WorkerServices, model: str, count: int = 3) -> RunView:
    prompts = [f"{model} {number}" for number in range(count)]
    made = stack.runs.generate(prompts, provider="small", model=model, max_retries=0)
    return work(stack, made.id)


def said(*arguments: str) -> str:
    result = CliRunner().invoke(build(), list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def lines(stack: WorkerServices, run: RunView) -> str:
    """All that a person sees of a run."""
    snapshot = stack.run_progress.rebuild(run.id)
    assert snapshot is not None
    view = RedisView(stack.redis, RunSnapshot, RUN_KEY, ttl_seconds=60)
    assert view.read([run.id]) == {run.id: snapshot}
    rate = Rate()
    rate.add(0.0, snapshot.done)
    with out.capture() as captured:
        out.print(_picture(snapshot, rate))
        print_run(run, as_json=False)
    return captured.get() + said("runs", "list") + said("runs", "show", str(run.id))


def test_a_run_of_unknown_price_shows_no_zero_anywhere(stack: WorkerServices) -> None:
    run = ran(stack, "free-or-not")
    assert (run.succeeded, run.calls, run.cost_usd, run.unknown_cost) == (3, 3, None, 3)
    shown = lines(stack, run)
    assert "$0" not in shown
    assert "  ?" in shown
    assert "unknown" in shown
    for told in (
        json.loads(said("runs", "show", str(run.id), "--json")),
        json.loads(said("runs", "list", "--json"))["items"][0],
        json.loads(said("usage", "--json"))["items"][0],
    ):
        assert (told["cost_usd"], told["unknown_cost"]) == (None, 3)
    with serve(stack, is_admin=True) as client:
        told = client.get(f"/api/v1/runs/{run.id}").json()
        assert (told["cost_usd"], told["unknown_cost"]) == (None, 3)
        [told] = client.get("/api/v1/usage?owner=all").json()
        assert told["cost_usd"] is None


def test_what_is_known_in_part_is_shown_so(stack: WorkerServices, answers: list[Answer]) -> None:
    answers.append((500, {"error": {"message": "Broke in mid-answer"}}))
    run = ran(stack, "dear")
    assert (run.succeeded, run.failed, run.calls, run.unknown_cost) == (2, 1, 3, 1)
    assert f"{run.cost_usd:f}" == "0.0000060000"
    assert "$0.000006+?" in lines(stack, run)
    assert json.loads(said("runs", "show", str(run.id), "--json"))["cost_usd"] == "0.000006"


def test_nothing_is_told_as_nothing_and_in_plain_digits(stack: WorkerServices) -> None:
    run = work(stack, stack.runs.embed(["one"], provider="local").id)
    assert (run.cost_usd, run.unknown_cost) == (Decimal(0), 0)
    assert "$0.00" in lines(stack, run)
    with serve(stack, is_admin=True) as client:
        told = client.get(f"/api/v1/runs/{run.id}").json()
        assert (told["cost_usd"], told["unknown_cost"]) == ("0", 0)
        [call] = client.get("/api/v1/usage/calls?owner=all").json()["calls"]
        assert call["cost_usd"] == "0"
