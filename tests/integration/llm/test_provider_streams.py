"""One contract for the streams of all providers, by their SDKs, against the simulator."""

import asyncio
from typing import Any

import pytest

from promptstack.services.llm.answers import LLMResponse
from promptstack.services.llm.errors import (
    BadResponse,
    ConnectionFailed,
    ContentRefused,
    CutOff,
    InvalidProviderRequest,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    QuotaExhausted,
    RateLimited,
    ServerBroke,
)
from promptstack.services.llm.listening import Listener
from promptstack.services.llm.parameters import Tool
from promptstack.simulator.process import SimulatorProcess
from tests.integration.llm.test_provider_contract import (
    CHAT,
    GEMINI,
    PROMPT,
    RESPONSES,
    SCHEMA,
    Kind,
    generate,
    of_all,
    running,
    simulator,
    use,
)

__all__ = ["running", "simulator"]
TOOL = Tool(name="look", parameters={"type": "object", "properties": {"at": {"type": "string"}}})
SECOND = "Why is the sea blue? Say it in many words, one after the other."


class Heard:
    """What a listener heard."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.listener = Listener(self.pieces.append)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def stream(
    kind: Kind,
    simulator: SimulatorProcess,
    timeout: float = 10.0,
    heard: Heard | None = None,
    **fields: Any,
) -> tuple[LLMResponse, Heard]:
    heard = heard or Heard()
    request = kind.request(**{"stream": True, **fields})
    listener = heard.listener
    answer = use(
        kind,
        simulator,
        lambda llm: llm.generate_text(request, None, listener=listener),
        timeout,
    )
    return answer, heard


def same(streamed: LLMResponse, whole: LLMResponse) -> bool:
    """Whether two answers differ in nothing but what each call has of its own."""
    own = {"latency_seconds", "provider_request_id", "limits"}
    one, other = ({k: v for k, v in vars(a).items() if k not in own} for a in (streamed, whole))
    assert one == other
    return True


@of_all
def test_a_stream_is_the_same_answer_in_pieces(kind: Kind, simulator: SimulatorProcess) -> None:
    whole = generate(kind, simulator, prompt=SECOND)
    answer, heard = stream(kind, simulator, prompt=SECOND)
    assert same(answer, whole)
    assert answer.input_tokens
    assert answer.output_tokens
    assert heard.text == answer.text
    assert len(heard.pieces) > 3
    assert simulator.stats()["by_status"] == {"200": 2}
    assert list(simulator.ledger().values()) == [2]


@of_all
@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 4},
        {"json_schema": SCHEMA},
        {"tools": (TOOL,)},
        {"prompt": "[cached] " + PROMPT},
    ],
    ids=["cut-by-max-tokens", "schema", "tool", "cached"],
)
def test_all_that_an_answer_says_is_the_same(
    kind: Kind, simulator: SimulatorProcess, fields: dict[str, Any]
) -> None:
    whole = generate(kind, simulator, **fields)
    answer, heard = stream(kind, simulator, **fields)
    assert same(answer, whole)
    assert heard.text == answer.text
    assert bool(answer.tool_calls) == ("tools" in fields)


@of_all
def test_a_refusal_in_a_stream_is_the_same_error(kind: Kind, simulator: SimulatorProcess) -> None:
    errors = []
    for ask in (generate, stream):
        simulator.control({"kind": "refused"})
        with pytest.raises(ContentRefused) as caught:
            ask(kind, simulator)
        errors.append(caught.value)
    assert errors[0].usage == errors[1].usage
    assert errors[0].detail == errors[1].detail


@pytest.mark.parametrize("kind", [CHAT, RESPONSES], ids=["openai-chat", "openai-responses"])
def test_an_answer_without_content_is_the_same_error(
    kind: Kind, simulator: SimulatorProcess
) -> None:
    for ask in (generate, stream):
        simulator.control({"kind": "wrong_count"})
        with pytest.raises(BadResponse):
            ask(kind, simulator)


@of_all
def test_a_refusal_before_the_stream_is_translated_as_ever(
    kind: Kind, simulator: SimulatorProcess
) -> None:
    for fault, expected in (
        ({"kind": "status", "status": 503}, Overloaded),
        ({"kind": "status", "status": 429, "retry_after": 2}, RateLimited),
        ({"kind": "reset"}, ConnectionFailed),
    ):
        simulator.control(fault)
        heard = Heard()
        with pytest.raises(expected):
            stream(kind, simulator, heard=heard)
        assert heard.listener.usage(1) is None


@of_all
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"kind": "cut"}, CutOff),
        ({"kind": "truncated"}, CutOff),
        ({"kind": "broken"}, ConnectionFailed),
        ({"kind": "stall"}, ProviderTimeout),
        ({"kind": "error_event", "status": 503}, Overloaded),
        ({"kind": "error_event", "status": 500}, ServerBroke),
        ({"kind": "error_event", "status": 429, "code": "insufficient_quota"}, QuotaExhausted),
        ({"kind": "error_event", "status": 429}, Overloaded),
    ],
    ids=["cut", "truncated", "broken", "stall", "overloaded", "failing", "quota", "slow-down"],
)
def test_a_stream_that_breaks_off_is_no_answer_and_what_came_of_it_is_counted(
    kind: Kind,
    simulator: SimulatorProcess,
    fault: dict[str, Any],
    expected: type[ProviderError],
) -> None:
    simulator.control(fault)
    heard = Heard()
    with pytest.raises(expected) as caught:
        stream(kind, simulator, 0.5 if fault["kind"] == "stall" else 10.0, heard, prompt=SECOND)
    assert caught.value.counts_as_failure or isinstance(caught.value, QuotaExhausted)
    assert heard.text.startswith("Simulated answer")
    usage = heard.listener.usage(input_tokens=17)
    assert usage is not None
    assert usage.output_tokens >= len(heard.text) // 4  # type: ignore[operator]
    if kind.name != "openai":  # the others count their input at the beginning
        assert usage.input_tokens != 17
    simulator.wait_until_idle()
    # A stream that is cut in the middle of an event is sent as if it were good.
    status = "200" if fault["kind"] == "truncated" else "aborted"
    assert simulator.stats()["by_status"] == {status: 1}
    assert list(simulator.ledger().values()) == [1]


@of_all
def test_text_comes_while_the_answer_is_under_way(kind: Kind, simulator: SimulatorProcess) -> None:
    simulator.control({"kind": "stall"})
    heard = Heard()
    request = kind.request(stream=True)

    async def look(llm: Any) -> None:
        call = asyncio.create_task(llm.generate_text(request, None, listener=heard.listener))
        async with asyncio.timeout(60):
            while not heard.pieces:  # noqa: ASYNC110 - a piece comes from the event loop itself
                await asyncio.sleep(0.01)
        assert not call.done()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    use(kind, simulator, look, timeout=60)
    assert heard.listener.usage(1) is not None


@of_all
def test_a_stream_may_take_longer_than_a_call(kind: Kind, simulator: SimulatorProcess) -> None:
    simulator.set_latency(0.0, piece_seconds=0.15)
    try:
        answer, heard = stream(kind, simulator, 1.0, prompt=SECOND)
    finally:
        simulator.set_latency(0.0)
    assert answer.latency_seconds > 1.0
    assert heard.text == answer.text


@of_all
def test_an_answer_that_is_whole_is_kept_though_its_stream_never_ends(
    kind: Kind, simulator: SimulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptstack.services.llm.transport.AFTER_THE_END_SECONDS", 0.1)
    simulator.control({"kind": "open_end"})
    whole = generate(kind, simulator)
    simulator.control({"kind": "open_end"})
    answer, heard = stream(kind, simulator)
    assert answer.text == heard.text == whole.text
    assert answer.tokens_used


def test_gemini_takes_no_unknown_options_in_a_stream(simulator: SimulatorProcess) -> None:
    with pytest.raises(InvalidProviderRequest):
        stream(GEMINI, simulator, options={"temperatur": 1})
