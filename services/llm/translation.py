"""Turns refusals and unusable answers of providers into our errors, the same for all providers."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx2

from promptstack.services.llm.answers import Usage
from promptstack.services.llm.error_table import is_page, meaning_of, status_of, told_meaning
from promptstack.services.llm.errors import (
    HIDDEN,
    AnsweredAsText,
    BadResponse,
    ConnectionFailed,
    ContentRefused,
    ContextTooLong,
    CutOff,
    LargeAnswer,
    NeverSent,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    RateLimited,
)
from promptstack.services.llm.headers import credible_wait, limit_report, request_id, retry_after
from promptstack.services.llm.reading import WRONG_FORM, Notes, Part, parse
from promptstack.services.llm.transport import LARGEST_ANSWER, AnswerTooLarge
from promptstack.services.llm.vectors import NumbersAsText
from promptstack.services.text import make_storable

LONGEST_DETAIL = 2_000
WRONG_REQUEST = 400
_KEY = re.compile(
    r"(?<![\w-])(?:(?:sk|pk|rk|ps|key|gsk|csk|xai|hf|pplx|nvapi)[-_]|AIza|ya29\.|eyJ)(?=[\w.*-]*[\d*])[\w.*-]{16,}"
    r"|(?<=Bearer )\S{8,}|(?<=Basic )\S{8,}",
    re.ASCII | re.IGNORECASE,
)
"""API keys and tokens (`sk-...`, `gsk_...`, `AIza...`, JWTs), also partly masked by asterisks. They
are long and have a digit."""

_LIMIT = re.compile(
    r"(?:less than|context length (?:is|is only|of)|context (?:size|length) \(|batch size:|max is"
    r"|tokens >|maximum (?:of|is)|tokens allowed \(|supports up to|max input tokens:"
    r"|\"n_ctx\":) ?([\d,]+)"
)
_GIVEN = re.compile(
    r"(?:passed|requested|given:|got|input \(|request \(|input token count(?: is| \(|:)|too long:"
    r"|resulted in|contains|\"n_prompt_tokens\":) ?([\d,]+)"
)
MOST_SAID = 10**9


def refusal(provider: str, answer: httpx2.Response, key_setting: str, wire: str) -> ProviderError:
    """The error for an answer whose status is not a success."""
    try:
        body = parse(answer.content)
    except WRONG_FORM:
        body = Part(None, Notes())
    # Some servers have no object `error` around it.
    told = body.part("error") if body.get("error") is not None else body
    facts = told.parts("details")
    waits = [_seconds(fact.get("retryDelay")) for fact in facts]
    return from_status(
        provider,
        answer.status_code,
        key_setting=key_setting,
        wire=wire,
        codes=[
            *(fact.get("reason") for fact in facts),
            *(told.get(name) for name in ("code", "type", "status")),
        ],
        text=answer.content.decode(errors="replace"),
        headers=answer.headers,
        wait=next((wait for wait in waits if wait is not None), None),
    )


def _seconds(delay: object) -> float | None:
    """The seconds of a google.rpc.RetryInfo, such as "3.5s"."""
    found = re.fullmatch(r"([0-9.]{1,20})s", delay) if isinstance(delay, str) else None
    try:
        return None if found is None else credible_wait(float(found[1]))
    except ValueError:
        return None


def from_status(
    provider: str,
    status: int,
    *,
    key_setting: str,
    codes: Iterable[object],
    text: str,
    headers: Mapping[str, str],
    wait: float | None = None,
    wire: str | None = None,
    usage: Usage | None = None,
) -> ProviderError:
    """The error that a refusal means.

    `codes` are the provider's error codes, the most specific first; `text` is the body; `wait` is
    how many seconds to wait, if the body says so; `wire` is the API that the provider speaks, if
    that is not its name. The message never quotes the provider, who may repeat the prompt: its
    words go to `detail`.
    """
    kind, meaning = meaning_of(wire or provider, status, codes, text)
    call = request_id(headers)
    wait = retry_after(headers, datetime.now(UTC)) if wait is None else wait
    limit, given = token_bounds(text) if issubclass(kind, ContextTooLong) else (None, None)
    words = {
        "key": key_setting,
        "bounds": f" ({given or 'more'} tokens; it takes {limit})" if limit else "",
        "server": ", or start the server with a larger --ubatch-size"
        if "physical batch" in text
        else "",
    }
    known = f", request {call}" if call else ""
    error = kind(
        f"{provider} {meaning.format(**words)} (status {status}{known}).",
        detail=detail(text),
        retry_after=wait if kind.transient else None,
        status=status,
        request_id=call,
        limits=limit_report(headers),
        usage=usage,
    )
    if isinstance(error, ContextTooLong):
        error.limit, error.given = limit, given
    return error


def token_bounds(text: str) -> tuple[int | None, int | None]:
    """The tokens that an input may have and those that it has, by what a refusal says.

    Only its beginning is read, as the rest may quote the input.
    """
    said = text[:LONGEST_DETAIL].lower()
    limit, given = (_number(pattern, said) for pattern in (_LIMIT, _GIVEN))
    return limit, given if limit and given and given > limit else None


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    digits = found[1].replace(",", "") if found else ""
    return int(digits) if digits.isascii() and 0 < len(digits) < len(str(MOST_SAID)) else None


def no_answer(provider: str, error: Exception) -> ProviderError:
    """The error where there was no answer, by what the HTTP client raised or an SDK wrapped."""
    match error if isinstance(error, (httpx2.HTTPError, TimeoutError)) else error.__cause__:
        case AnswerTooLarge():
            return LargeAnswer(
                f"{provider} answered with more than {LARGEST_ANSWER // 2**20} MiB; nothing was "
                "stored."
            )
        case (
            httpx2.ConnectError() | httpx2.ConnectTimeout() | httpx2.PoolTimeout()
            | httpx2.ProxyError()
        ):  # fmt: skip
            return NeverSent(f"{provider} could not be reached; check the network and its address.")
        case httpx2.TimeoutException() | TimeoutError():
            return ProviderTimeout(
                f"{provider} did not answer in time; the call may still be billed."
            )
        case httpx2.HTTPError():
            return ConnectionFailed(
                f"The connection to {provider} broke; the call may still be billed."
            )
        case _:
            return BadResponse(f"{provider} answered in a form that cannot be used.")


def refused(
    provider: str, why: str, answer: httpx2.Response, usage: Usage | None, notes: object
) -> ContentRefused:
    """The error for an answer in which the model refuses; its tokens are billed."""
    return ContentRefused(
        f"{provider} refused to answer this input.",
        detail=detail(why),
        status=answer.status_code,
        request_id=request_id(answer.headers),
        limits=limit_report(answer.headers),
        usage=usage,
        note=str(notes),
    )


def broken_off(
    provider: str, said: Mapping[str, Any], answer: httpx2.Response, key_setting: str, wire: str
) -> ProviderError:
    """The error that a provider ends a stream with. `said` is its object `error`."""
    codes = [said.get("code"), said.get("type"), said.get("status")]
    told = re.fullmatch("[45][0-9][0-9]", str(codes[0]))
    error = from_status(
        provider,
        int(told.group()) if told else status_of(codes),
        key_setting=key_setting,
        wire=wire,
        codes=codes,
        text=json.dumps({"error": said}, ensure_ascii=False),
        headers=answer.headers,
    )
    if isinstance(error, RateLimited):
        # What came before it is paid for, so it must count as a failure.
        error = Overloaded(
            f"{provider} broke its answer off to slow us down.",
            detail=error.detail,
            retry_after=error.retry_after,
            status=error.status,
            request_id=error.request_id,
            limits=error.limits,
        )
    return error


def cut_off(provider: str, answer: httpx2.Response) -> CutOff:
    """The error for a stream that ended before its last event."""
    return CutOff(
        f"The stream from {provider} ended before the answer did; nothing was stored.",
        status=answer.status_code,
        request_id=request_id(answer.headers),
        limits=limit_report(answer.headers),
    )


@dataclass
class Read:
    """An answer that is being read."""

    body: Part
    usage: Usage | None = None
    """The tokens that it used, once they are read: they are billed even if it can't be used."""


@contextmanager
def reading(provider: str, answer: httpx2.Response, key_setting: str, wire: str) -> Iterator[Read]:
    """Read an answer. Raises `BadResponse` where its form is wrong.

    Where the answer holds an error in spite of its status, that error is raised.
    """
    read = Read(Part(None, Notes()))
    try:
        read.body = parse(answer.content)
        yield read
    except WRONG_FORM as error:
        told = read.body.part("error")
        text = answer.content.decode(errors="replace")
        codes = [told.get("code"), told.get("type"), told.get("status")]
        status = re.fullmatch("[45][0-9][0-9]", str(codes[0]))
        # Only the words of an error count: the text of an answer may hold any words.
        said = json.dumps(read.body.get("error"))
        number = int(status.group()) if status else WRONG_REQUEST
        if status or is_page(text) or told_meaning(wire, number, codes, said):
            raise from_status(
                provider,
                answer.status_code if is_page(text) else number,
                key_setting=key_setting,
                wire=wire,
                codes=codes,
                text=text,
                headers=answer.headers,
                usage=read.usage,
            ) from error
        bad, why = BadResponse, "in a form that cannot be used; nothing was stored"
        if isinstance(error, NumbersAsText):
            bad, why = (
                AnsweredAsText,
                "the numbers of vectors as text; use a server that sends numbers",
            )
        raise bad(
            f"{provider} answered {why}.",
            detail=detail(f"{error}: {text[:LONGEST_DETAIL]}"),
            status=answer.status_code,
            request_id=request_id(answer.headers),
            limits=limit_report(answer.headers),
            usage=read.usage,
            note=str(read.body.notes),
        ) from error


def detail(text: str) -> str:
    """What a provider said, shortened, storable, and without what looks like a key.

    Some providers quote a wrong key, and a server in between may quote the headers.
    """
    return make_storable(_KEY.sub(HIDDEN, text[: 2 * LONGEST_DETAIL]))[:LONGEST_DETAIL]
