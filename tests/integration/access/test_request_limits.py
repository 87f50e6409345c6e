"""Requests a minute of an API key: counted over all processes, also while Redis is away."""

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from promptstack.api.http.app import create_app
from promptstack.services.access.caller import Caller
from promptstack.services.access.errors import TooManyRequests
from promptstack.services.access.request_limits import RequestLimits
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem

JOBS = "/api/v1/jobs"


def taken(limits: RequestLimits, caller: Caller, tries: int) -> int:
    """How many of these requests may be sent."""
    count = 0
    for _ in range(tries):
        try:
            limits.take(caller)
        except TooManyRequests:
            pass
        else:
            count += 1
    return count


def caller_with(stack: WorkerServices, requests_a_minute: int | None) -> Caller:
    key = stack.keys.create("ada@example.org", "x", requests_a_minute=requests_a_minute)
    return stack.keys.authenticate(key)


def test_processes_share_the_limit_of_a_key(stack: WorkerServices) -> None:
    one, other = RequestLimits(stack.redis), RequestLimits(stack.redis)
    caller = caller_with(stack, 3)  # and another each 20 s
    assert taken(one, caller, 2) + taken(other, caller, 5) == 3
    assert taken(other, caller_with(stack, None), 100) == 100
    assert taken(one, caller_with(stack, 1_000_000), 500) == 500


def test_while_redis_is_away_each_process_has_a_share(
    stack: WorkerServices, caplog: pytest.LogCaptureFixture
) -> None:
    limits = RequestLimits(Redis(port=1, socket_connect_timeout=0.1))
    assert taken(limits, caller_with(stack, 40), 50) == 10  # a quarter
    assert taken(limits, caller_with(stack, 1), 10) == 1
    [told] = [record.message for record in caplog.records if "Redis is away" in record.message]
    assert "counted in each process" in told


def test_a_request_beyond_the_limit_is_told_when_to_come_again(stack: WorkerServices) -> None:
    key = stack.keys.create("ada@example.org", "x", requests_a_minute=2)
    other = stack.keys.create("ada@example.org", "y")
    with TestClient(create_app(stack)) as client:
        for _ in range(2):
            assert client.get(JOBS, headers={"X-API-Key": key}).status_code == 200
        refused = client.get(JOBS, headers={"X-API-Key": key})
        assert "2 requests a minute" in problem(refused, 429, "TOO_MANY_REQUESTS")["detail"]
        assert 1 <= int(refused.headers["Retry-After"]) <= 30
        assert client.get(JOBS, headers={"X-API-Key": other}).status_code == 200
