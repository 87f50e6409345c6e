"""Jobs of a real server, done by a real worker."""

import uuid

import pytest

from promptstack_client import Client, Conflict, InvalidRequest, NotFound, WaitTimedOut

HANGING = "gpt-5-nano"
"""A model that never answers, as the provider behind the server was told."""


def test_a_generation_from_its_prompt_to_its_text(client: Client) -> None:
    job = client.generate("Say hello to the world.", tags=["greeting"], max_tokens=50)
    assert (job.state, job.tags) == ("queued", ("greeting",))
    done = client.jobs.wait(job, timeout=60)
    assert done.ended
    assert "Say hello to the world." in done.text
    assert client.jobs.get(str(job.id)).text == done.text


def test_a_document_is_embedded(client: Client) -> None:
    job = client.embed("Boats sail slowly.", source=f"boats/{uuid.uuid4()}", provider="local")
    assert client.jobs.wait(job, timeout=60).checked()["chunks"] == 1


def test_a_request_is_done_once_for_its_key(client: Client) -> None:
    key = str(uuid.uuid4())
    jobs = [client.generate("Once.", idempotency_key=key) for _ in range(2)]
    assert jobs[0].id == jobs[1].id
    with pytest.raises(Conflict) as caught:
        client.generate("Another.", idempotency_key=key)
    assert caught.value.code == "IDEMPOTENCY_CONFLICT"


def test_jobs_are_listed_over_many_pages(client: Client) -> None:
    tag = str(uuid.uuid4())
    ids = {client.generate("List me.", tags=[tag]).id for _ in range(3)}
    listed = [job.id for job in client.jobs.list(limit=2, tag=tag)]
    assert listed == sorted(ids, reverse=True)
    page = client.jobs.list(limit=2, tag=tag, count=True).first()
    assert (page.count, page.count_is_capped, page.before) == (3, False, None)
    before = client.jobs.list(tag=tag, before=listed[2], limit=1)
    assert [job.id for job in before] == [listed[1], listed[0]]


def test_a_job_that_waits_is_cancelled_and_retried(client: Client) -> None:
    job = client.generate("Nobody answers.", model=HANGING)
    assert client.jobs.cancel(job).state == "cancelled"
    assert not client.jobs.retry(job).ended
    client.jobs.cancel(job)
    with pytest.raises(Conflict):
        client.jobs.cancel(client.jobs.wait(client.generate("Ends.")))


def test_what_is_wrong_is_told(client: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.generate("Hello.", temperature=9)
    assert "temperature" in str(caught.value.faults)
    with pytest.raises(InvalidRequest) as unknown:
        client.generate("Hello.", provider="nobody")
    assert unknown.value.code == "UNKNOWN_PROVIDER"
    with pytest.raises(NotFound):
        client.jobs.get(uuid.uuid4())


def test_waiting_ends_in_time_and_the_job_goes_on(client: Client) -> None:
    job = client.generate("Nobody answers.", model=HANGING)
    with pytest.raises(WaitTimedOut, match=r"has not ended in 0\.2 s"):
        client.jobs.wait(job, timeout=0.2)
    assert not client.jobs.get(job).ended
    client.jobs.cancel(job)


def test_many_jobs_are_accepted_together_or_none_of_them(client: Client) -> None:
    source = f"bulk/{uuid.uuid4()}"
    jobs = client.bulk(
        [
            {"prompt": "Say one.", "tags": ["bulk"]},
            {"messages": [{"role": "user", "content": "Say two."}], "max_tokens": 20},
            {"text": "Boats sail slowly.", "source": source, "provider": "local"},
        ]
    )
    one, two, three = client.jobs.wait_all(jobs, timeout=60)
    assert "Say one." in one.text
    assert "Say two." in two.text
    assert three.checked()["chunks"] == 1
    tag = str(uuid.uuid4())
    with pytest.raises(InvalidRequest) as caught:
        client.bulk([{"prompt": "Fine.", "tags": [tag]}, {"prompt": "Bad.", "seed": "x"}])  # type: ignore[typeddict-item]
    assert (caught.value.field or "").startswith("/jobs/1")
    assert list(client.jobs.list(tag=tag)) == []


def test_an_operation_is_done_to_all_that_match(client: Client) -> None:
    tag = str(uuid.uuid4())
    jobs = client.bulk([{"prompt": "Nobody answers.", "model": HANGING, "tags": [tag]}] * 2)
    operation = client.operations.create("cancel", {"tag": tag})
    done = client.wait(operation, timeout=60).checked()
    assert (done.matched, done.done, done.failed) == (2, 2, 0)
    assert {job.state for job in client.jobs.wait_all(jobs, timeout=60)} == {"cancelled"}
    assert operation.id in [listed.id for listed in client.operations.list()]


def test_a_job_may_end_within_its_own_request(client: Client) -> None:
    assert "in one go" in client.generate("Say it in one go.", wait=60).text
    assert not client.generate("Nobody answers.", model=HANGING, wait=0.2).ended
