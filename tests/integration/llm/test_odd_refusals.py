"""Whatever a refusal looks like, it is one of the provider's errors, and costs one call.

ODD_EXAMPLES=20000 makes so many of them, new ones each time.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptstack.config.errors import Reach
from promptstack.repositories.models import Billing
from promptstack.services.accounting.billing import billing_of
from promptstack.services.errors import run_ending_codes
from promptstack.services.llm.anthropic import AnthropicService
from promptstack.services.llm.errors import (
    AuthenticationFailed,
    BadResponse,
    ContextTooLong,
    Denied,
    InputRefused,
    Intercepted,
    ProviderError,
    RateLimited,
    ServerBroke,
)
from promptstack.services.llm.gemini import GeminiService
from promptstack.services.llm.openai import OpenAIService
from promptstack.services.llm.remote import RemoteService
from promptstack.services.llm.requests import GenerationRequest
from tests.odd_answers import ANYTHING
from tests.odd_server import OddServer

EXAMPLES = int(os.environ.get("ODD_EXAMPLES", "450"))
KEY = "sk-0123456789abcdefghij"
SERVICES: dict[str, type[RemoteService[Any]]] = {
    "openai": OpenAIService,
    "anthropic": AnthropicService,
    "gemini": GeminiService,
}
STATUSES = st.integers(400, 599) | st.sampled_from([300, 304, 399, 401, 403, 404, 429, 500, 503])
WORDS = st.sampled_from(
    [
        "invalid_api_key", "permission_error", "PERMISSION_DENIED", "not_found_error", "model",
        "content_filter", "insufficient_quota", "context_length_exceeded", "overloaded_error",
        "maximum context length is 512 tokens, requested 600", "maximum context length is 9e99",
        "less than 99999999999999999999 tokens. given: 0", "input (٣ tokens) is too large to",
        "flagged", "your input was flagged", KEY, f"Bearer {KEY}",
    ]
)  # fmt: skip
FIELDS = ("code", "type", "status", "message", "details", "param", "error", "innererror")
OBJECTS = st.dictionaries(st.sampled_from(FIELDS), ANYTHING | WORDS, max_size=5)
BODIES = (
    st.builds(lambda inner: json.dumps({"error": inner}).encode(), OBJECTS | ANYTHING | WORDS)
    | st.builds(lambda body: json.dumps(body).encode(), OBJECTS | ANYTHING)
    | st.binary(max_size=40)
    | st.sampled_from(
        [
            b"", b"{", b"null", b"\xff\xfe", b"Forbidden", b"upstream connect error",
            b"<html><body>403 Forbidden: model, api key</body></html>",
            b"\n\n<!DOCTYPE html><title>Just a moment...</title>",
            b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        ]
    )
)  # fmt: skip
KINDS = ("application/json", "text/html", "text/plain; charset=nonsense", "application/xml", "")


class Asker:
    """Each provider's service, at the odd server."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self.server = OddServer()
        runner.run(self.server.start())
        paths = {"openai": "/v1"}
        self._services = {
            name: service(api_key=KEY, base_url=self.server.url + paths.get(name, ""), timeout=20.0)
            for name, service in SERVICES.items()
        }

    def stop(self) -> None:
        for service in self._services.values():
            self._runner.run(service.aclose())
        self._runner.run(self.server.stop())

    def refusal(self, provider: str, status: int, kind: str, body: bytes) -> ProviderError:
        # Of a 304 a client reads no body: left over, it would be taken for the next answer.
        head = (
            f"HTTP/1.1 {status} Odd\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n"
        )
        self.server.answer, before = head.encode() + b"\r\n" + body, self.server.calls
        request = GenerationRequest(provider=provider, model="any-model", prompt="Why?")
        service = self._services[provider]
        with pytest.raises(ProviderError) as caught:
            self._runner.run(service.generate_text(request, None))
        assert self.server.calls == before + 1
        return caught.value


@pytest.fixture(scope="module")
def asker() -> Iterator[Asker]:
    with asyncio.Runner() as runner:
        asker = Asker(runner)
        yield asker
        asker.stop()


@pytest.mark.parametrize("provider", SERVICES)
def test_a_refusal_is_one_of_our_errors_whatever_it_holds(provider: str, asker: Asker) -> None:
    @settings(
        max_examples=EXAMPLES // len(SERVICES),
        deadline=None,
        derandomize="ODD_EXAMPLES" not in os.environ,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(STATUSES, st.sampled_from(KINDS), BODIES)
    def check(status: int, kind: str, body: bytes) -> None:
        error = asker.refusal(provider, status, kind, body)
        assert error.status in {status, None}
        assert error.reach is not Reach.RUN or error.code in run_ending_codes()
        said = str(error) + (error.detail or "")
        said.encode()
        assert "\0" not in said
        assert KEY not in said
        # Only what broke in its midst may have been billed: nobody answered.
        assert billing_of(error) is not Billing.BILLED or error.status in {None, 300, 304, 399}
        # No page of a proxy ends a run.
        if body.lstrip().startswith(b"<") and 400 <= status < 500:
            assert error.reach is not Reach.RUN

    check()


PAGES: list[tuple[int, Any]] = [(401, Intercepted), (403, Intercepted), (404, Intercepted)]


@pytest.mark.parametrize("provider", SERVICES)
@pytest.mark.parametrize(("status", "kind"), PAGES)
def test_a_firewall_s_page_is_no_verdict_on_the_key(
    provider: str, status: int, kind: type[ProviderError], asker: Asker
) -> None:
    page = b"<html><head><title>403 Forbidden</title></head><body>api key model</body></html>"
    assert type(asker.refusal(provider, status, "text/html", page)) is kind
    assert type(asker.refusal(provider, 403, "application/json", b'{"message":"No"}')) is Denied


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"code": 403, "message": "Your input was flagged"}, InputRefused),
        ({"code": "429", "message": "Slow down"}, RateLimited),
        ({"code": 502, "message": "Provider returned error"}, ServerBroke),
        ({"type": "authentication_error"}, AuthenticationFailed),
        ({"message": "This model's maximum context length is 512 tokens."}, ContextTooLong),
        ("input (600 tokens) is too large to process", ContextTooLong),
        ({"message": "Something else"}, BadResponse),
        ("<html>", BadResponse),
    ],
)
def test_an_error_that_comes_as_an_answer_is_that_error(
    provider: str, said: Any, kind: type[ProviderError], asker: Asker
) -> None:
    body = json.dumps({"error": said}).encode()
    assert type(asker.refusal(provider, 200, "application/json", body)) is kind
    page = asker.refusal(provider, 200, "text/html", b"<html>Log in to the network</html>")
    assert type(page) is Intercepted
