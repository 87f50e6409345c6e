"""The simulator's limits: what it lets in, what it says, in made-up time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstack.simulator.faults import FaultScript, parse, parse_rates
from promptstack.simulator.limits import Bucket, Limiter, LimitReached, Limits, parse_limits


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def costs(requests: float = 1.0, tokens: float = 0.0) -> dict[str, float]:
    return {
        "requests": requests,
        "tokens": tokens,
        "input_tokens": tokens,
        "output_tokens": 0.0,
    }


def test_a_bucket_lets_its_burst_in_and_then_the_rate() -> None:
    bucket = Bucket(Limits(requests_per_minute=60, burst_seconds=3), 0.0)
    for _ in range(3):
        bucket.admit(costs(), 0.0)
    with pytest.raises(LimitReached) as caught:
        bucket.admit(costs(), 0.25)
    assert caught.value.wait == pytest.approx(0.75)
    bucket.admit(costs(), 1.0)
    assert bucket.status(1.0)["requests"].remaining == 0
    assert bucket.status(3.0)["requests"].remaining == 2


def test_a_refused_call_takes_nothing_of_any_limit() -> None:
    limits = Limits(requests_per_minute=60, tokens_per_minute=600, burst_seconds=60)
    bucket = Bucket(limits, 0.0)
    bucket.admit(costs(tokens=590), 0.0)
    with pytest.raises(LimitReached):
        bucket.admit(costs(tokens=100), 0.0)
    assert bucket.status(0.0)["requests"].remaining == 59
    assert bucket.status(0.0)["tokens"].remaining == 10


def test_a_call_larger_than_a_minute_never_gets_in() -> None:
    bucket = Bucket(Limits(tokens_per_minute=600), 0.0)
    with pytest.raises(LimitReached, match="too large") as caught:
        bucket.admit(costs(tokens=601), 0.0)
    assert caught.value.headers("seconds") == {}


def test_calls_in_flight_are_counted() -> None:
    bucket = Bucket(Limits(in_flight=2), 0.0, flying=2)
    with pytest.raises(LimitReached):
        bucket.admit(costs(), 0.0)
    bucket.flying = 1
    bucket.admit(costs(), 0.0)


@pytest.mark.parametrize(
    ("form", "headers"),
    [
        ("seconds", {"retry-after": "2"}),
        ("milliseconds", {"retry-after": "2", "retry-after-ms": "1250"}),
        ("none", {}),
    ],
)
def test_a_refusal_says_when_in_the_form_that_is_set(form: str, headers: dict[str, str]) -> None:
    assert LimitReached("x", "requests", 1.25).headers(form) == headers


def test_other_limits_hold_at_once_and_keep_what_is_left() -> None:
    clock = Clock()
    limiter = Limiter(Limits(requests_per_minute=600, burst_seconds=1), clock)
    bucket = limiter.bucket("key", "model")
    for _ in range(8):
        limiter.admit(bucket, 1, 1)
    limiter.set("*", Limits(requests_per_minute=60, burst_seconds=1))
    limiter.admit(bucket, 1, 1)
    with pytest.raises(LimitReached):
        limiter.admit(bucket, 1, 1)
    other = limiter.bucket("another key", "model")
    limiter.admit(other, 1, 1)
    limiter.set("special", Limits())
    for _ in range(100):
        limiter.admit(limiter.bucket("key", "special"), 1, 1)


@given(
    limit=st.integers(1, 6_000),
    burst=st.floats(0.5, 60),
    calls=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 500)), max_size=60),
)
def test_over_any_time_no_more_is_let_in_than_burst_and_rate(
    limit: int, burst: float, calls: list[tuple[float, int]]
) -> None:
    bucket = Bucket(Limits(tokens_per_minute=limit, burst_seconds=burst), 0.0)
    now, let_in, largest = 0.0, 0.0, 0
    for passed, tokens in calls:
        now += passed
        try:
            bucket.admit(costs(tokens=tokens), now)
        except LimitReached as reached:
            # It tells the truth: then, the call gets in.
            if reached.wait is not None:
                later = now + reached.wait + 1e-6
                bucket.admit(costs(tokens=tokens), later)
                now, let_in = later, let_in + tokens
                largest = max(largest, tokens)
            continue
        let_in, largest = let_in + tokens, max(largest, tokens)
        assert let_in <= limit / 60 * (now + burst) + largest + 1


@pytest.mark.parametrize(
    "raw",
    [{"rpm": 1}, {"requests_per_minute": 0}, {"in_flight": "x"}, {"retry_after": "soon"}],
)
def test_limits_that_make_no_sense_are_refused(raw: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"unknown|must be"):
        parse_limits(raw)


def test_faults_by_rate_come_as_often_as_told_and_the_same_for_a_seed() -> None:
    raw = {"seed": 7, "faults": [{"rate": 0.2, "kind": "reset"}, {"rate": 0.1, "kind": "hang"}]}

    def draw() -> list[str]:
        script = FaultScript()
        script.set_rates(*parse_rates(raw))
        return [script.take("/v1/embeddings", "m").kind for _ in range(2_000)]

    drawn = draw()
    assert drawn == draw()
    assert drawn.count("reset") == pytest.approx(400, abs=80)
    assert drawn.count("hang") == pytest.approx(200, abs=60)


def test_the_script_goes_before_the_rates_and_a_reset_drops_both() -> None:
    script = FaultScript()
    script.set_rates(*parse_rates({"faults": [{"rate": 1, "kind": "reset"}]}))
    script.add([parse({"kind": "none"})])
    assert [script.take("/v1/embeddings", "m").kind for _ in range(2)] == ["none", "reset"]
    script.reset()
    assert script.take("/v1/embeddings", "m").kind == "none"


@pytest.mark.parametrize(
    "faults",
    [
        [{"kind": "reset"}],
        [{"rate": 2, "kind": "reset"}],
        [{"rate": 0.6, "kind": "reset"}, {"rate": 0.6, "kind": "hang"}],
        [{"rate": 0.1, "kind": "unknown"}],
    ],
)
def test_rates_that_make_no_sense_are_refused(faults: list[dict[str, object]]) -> None:
    with pytest.raises(ValueError, match=r"rate|kind"):
        parse_rates({"faults": faults})
