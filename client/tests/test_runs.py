"""Runs of a real server, done by a real worker."""

from promptstack_client import Client


def test_a_run_of_prompts_from_its_items_to_its_results(client: Client) -> None:
    items = [{"text": f"number {number}", "custom_id": str(number)} for number in range(5)]
    run = client.runs.generate(items, template="Say {text}.", name="numbers")
    done = client.runs.wait(run, timeout=60).checked()
    assert (done.state, done.succeeded, done.failed) == ("completed", 5, 0)
    results = list(client.runs.results(run, limit=2))
    assert [result.custom_id for result in results] == ["0", "1", "2", "3", "4"]
    assert "number 3" in (results[3].text or "")
    assert list(client.runs.failures(run)) == []
    assert run.id in [listed.id for listed in client.runs.list()]


def test_a_run_of_texts_has_vectors(client: Client) -> None:
    run = client.runs.embed((f"text {number}" for number in range(3)), provider="local")
    client.runs.wait(run, timeout=60)
    assert [len(result.vector or []) for result in client.runs.results(run)] == [256] * 3


def test_what_it_cost_is_known(client: Client) -> None:
    client.jobs.wait(client.generate("Count me."), timeout=60)
    sums = client.usage.sum(by=["provider"])
    assert "openai" in [usage.provider for usage in sums]
    assert client.usage.calls(limit=1).first().items[0].provider
