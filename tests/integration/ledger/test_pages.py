"""Pages of lists: both ways through a list shows each row once, whatever the filter."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text

from promptstack.api.http.app import create_app
from promptstack.repositories import pages
from promptstack.repositories.jobs.records import JobFilter
from promptstack.repositories.models import JobState
from promptstack.repositories.pages import Page, PageQuery
from promptstack.services.errors import InvalidInput
from promptstack.services.jobs.views import JobView
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve

TAGS = ("red", "green", "blue")


def add(stack: WorkerServices, tags: Sequence[set[str]]) -> list[JobView]:
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("DELETE FROM jobs"))
    made = stack.jobs.enqueue_many([{"prompt": "x", "tags": sorted(one)} for one in tags])
    return made[::-1]


def ask(stack: WorkerServices, wanted: JobFilter, asked: PageQuery) -> Page[UUID]:
    return stack.jobs.get_page(wanted, asked).of(lambda job: job.id)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tags=st.lists(st.sets(st.sampled_from(TAGS)), max_size=9),
    wanted=st.sampled_from((None, *TAGS)),
    limit=st.integers(1, 4),
)
def test_both_ways_through_a_list_show_each_row_once(
    stack: WorkerServices, tags: list[set[str]], wanted: str | None, limit: int
) -> None:
    jobs = add(stack, tags)
    expected = [job.id for job in jobs if wanted is None or wanted in job.tags]
    which = JobFilter(tag=wanted)

    down = [ask(stack, which, PageQuery(limit, is_counted=True))]
    while down[-1].after is not None:
        down.append(ask(stack, which, PageQuery(limit, after=down[-1].after)))
    assert [id_ for page in down for id_ in page.rows] == expected
    assert (down[0].count, down[0].count_is_capped) == (len(expected), False)
    assert down[0].before is None

    up = [down[-1]]
    while up[-1].before is not None:
        up.append(ask(stack, which, PageQuery(limit, before=up[-1].before)))
    assert [id_ for page in reversed(up) for id_ in page.rows] == expected
    assert all(len(page.rows) == limit for page in (*down[:-1], *up[1:-1]))
    # From each page, the next one leads back to it.
    for page, following in pairwise(down):
        assert page.rows == ask(stack, which, PageQuery(limit, before=following.before)).rows
        assert following.before == following.rows[0]


def test_a_count_ends_where_it_tells_no_more(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "COUNT_CAP", 3)
    for rows, count, is_capped in ((3, 3, False), (5, 3, True)):
        add(stack, [set()] * rows)
        page = ask(stack, JobFilter(), PageQuery(1, is_counted=True))
        assert (page.count, page.count_is_capped) == (count, is_capped)


def test_a_page_has_one_side(stack: WorkerServices) -> None:
    [job] = add(stack, [set()])
    with pytest.raises(InvalidInput, match="one of the two"):
        stack.jobs.get_many(after=job.id, before=job.id)


def test_times_and_codes_choose_jobs(stack: WorkerServices) -> None:
    jobs = add(stack, [set()] * 3)
    with stack.ledger.transaction() as unit:
        for hour, job in enumerate(reversed(jobs)):
            unit.session.execute(
                text(
                    "UPDATE jobs SET error_code = :code, "
                    "created_at = timestamptz '2026-01-01Z' + make_interval(hours => :hour) "
                    "WHERE id = :id"
                ),
                {"hour": hour, "code": f"CODE_{hour}", "id": job.id},
            )
    since, until = datetime(2026, 1, 1, 1), datetime(2026, 1, 1, 2)  # noqa: DTZ001 - taken as UTC
    middle = [jobs[1].id]
    assert [job.id for job in stack.jobs.get_many(since=since, until=until)] == middle
    assert [job.id for job in stack.jobs.get_many(error="CODE_1")] == middle
    assert stack.jobs.get_many(error="CODE_1", model="another") == []
    with pytest.raises(InvalidInput, match="before `until`"):
        stack.jobs.get_many(since=until, until=since)


def test_every_list_goes_both_ways_over_http(stack: WorkerServices) -> None:
    """Each route whose answer has `after` takes `after`, `before` and `count`, and answers them."""
    described = create_app(stack).openapi()
    lists = {}
    for path, methods in described["paths"].items():
        if "get" not in methods:
            continue
        content = methods["get"]["responses"]["200"].get("content", {})
        answer = content.get("application/json", {}).get("schema", {})
        model = described["components"]["schemas"].get(answer.get("$ref", "").rpartition("/")[2])
        fields = set((model or {}).get("properties", {}))
        if "after" in fields and "{" not in path:
            lists[path] = fields, {one["name"] for one in methods["get"]["parameters"]}
    assert {"/api/v1/jobs", "/api/v1/runs", "/api/v1/keys", "/api/v1/users"} <= set(lists)
    for path, (fields, parameters) in lists.items():
        assert {"after", "before", "count", "count_is_capped"} <= fields, path
        assert {"limit", "after", "before", "count"} <= parameters, path

    made = [stack.jobs.enqueue_generation("x", tags=["mine"]) for _ in range(3)][::-1]
    url = "/api/v1/jobs?owner=all&limit=1"
    with serve(stack, is_admin=True) as client:
        first = client.get(f"{url}&count=true").json()
        assert (first["count"], first["count_is_capped"], first["before"]) == (3, False, None)
        second = client.get(f"{url}&after={first['after']}").json()
        assert second["jobs"][0]["id"] == str(made[1].id)
        assert second["jobs"][0]["tags"] == ["mine"]
        assert second["count"] is None
        assert client.get(f"{url}&before={second['before']}").json()["jobs"] == first["jobs"]
        both = client.get(f"{url}&before={second['before']}&after={second['before']}")
        problem(both, 422, "INVALID_INPUT")


@pytest.mark.parametrize("tags", [["x" * 65], [""], ["line\n"], [str(n) for n in range(17)], "x"])
def test_tags_have_bounds(stack: WorkerServices, tags: Any) -> None:
    with serve(stack) as client:
        for path, body in (
            ("generations", {"prompt": "x"}),
            ("embeddings", {"text": "x"}),
            ("runs/generations", {"items": ["x"], "provider": "demo"}),
        ):
            answer = client.post(f"/api/v1/{path}", json={**body, "tags": tags})
            problem(answer, 422, "INVALID_INPUT")
    with pytest.raises(InvalidInput, match="tags"):
        stack.jobs.enqueue_generation("x", tags=tags)
    assert stack.jobs.get_many() == []
    twice = stack.jobs.enqueue_generation("x", tags=["a", "b", "a"])
    assert stack.jobs.get(twice.id).tags == twice.tags == ["a", "b"]


INDEXED: dict[str, dict[str, Any]] = {
    "jobs_ended_badly": {"state": JobState.FAILED},
    "jobs_with_error": {"error": "CODE"},
    "jobs_of_model": {"provider": "gemini"},
    "jobs_with_tag": {"tag": "rare"},
    "jobs_created": {"until": datetime(2000, 1, 1, tzinfo=UTC)},
}


def test_filters_are_looked_up_and_not_searched_for(
    stack: WorkerServices, subtests: pytest.Subtests
) -> None:
    """What few of many jobs have is found by an index. A million are as quick."""
    sent: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        sent.append((statement, parameters))

    columns = "id, kind, provider, model, request, request_hash, max_retries, expires_at, "
    columns += "state, finished_at"
    values = "gen_random_uuid(), 'generation', 'demo', 'demo-1', '{}', '', 0, now(), "
    values += "'succeeded', now()"
    with stack.ledger.transaction() as unit:
        unit.session.execute(
            text(f"INSERT INTO jobs ({columns}) SELECT {values} FROM generate_series(1, 20000)")
        )
        unit.session.execute(text("ANALYZE jobs"))
    for index, wanted in INDEXED.items():
        with subtests.test(index):
            sent.clear()
            event.listen(stack.ledger.engine, "before_cursor_execute", note)
            assert stack.jobs.get_many(**wanted) == []
            event.remove(stack.ledger.engine, "before_cursor_execute", note)
            [(statement, parameters)] = [one for one in sent if "FROM jobs" in one[0]]
            with stack.ledger.transaction() as unit:
                connection = unit.session.connection()
                plan = list(connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))
            assert index in str(plan)
            assert "Seq Scan" not in str(plan)
