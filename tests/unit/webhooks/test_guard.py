"""No event goes into a private network: not by an address, nor by a name that leads there."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import aiohappyeyeballs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstack.services.errors import InvalidInput
from promptstack.services.validation.webhook_urls import WebhookRules, why_not_public
from promptstack.services.webhooks.answers import Answer
from promptstack.services.webhooks.errors import NamesBusy
from promptstack.services.webhooks.names import LOOKUPS_OF_USER
from promptstack.services.webhooks.receivers import Receivers
from tests.tls import Authority
from tests.webhooks import receiver

PUBLIC = "93.184.215.14"
RULES = WebhookRules()
REFUSED = {
    "loopback": "https://127.0.0.1/",
    "loopback, another": "https://127.8.9.1/",
    "private 10": "https://10.1.2.3/",
    "private 172": "https://172.16.0.1/",
    "private 192": "https://192.168.1.1/",
    "link-local, the metadata of clouds": "https://169.254.169.254/latest/meta-data/",
    "CGNAT": "https://100.64.0.1/",
    "this network": "https://0.0.0.0/",
    "this network, another": "https://0.1.2.3/",
    "multicast": "https://224.0.0.1/",
    "broadcast": "https://255.255.255.255/",
    "reserved": "https://240.0.0.1/",
    "documentation": "https://192.0.2.1/",
    "benchmarks": "https://198.18.0.1/",
    "relays of 6to4": "https://192.88.99.1/",
    "port 0": "https://example.org:0/",
    "IPv6 loopback": "https://[::1]/",
    "IPv6 unspecified": "https://[::]/",
    "IPv6 link-local": "https://[fe80::1]/",
    "IPv6 with a zone": "https://[fe80::1%25eth0]/",
    "IPv6 unique-local": "https://[fd00::1]/",
    "IPv6 site-local": "https://[fec0::1]/",
    "IPv6 multicast": "https://[ff02::1]/",
    "IPv6-mapped loopback": "https://[::ffff:127.0.0.1]/",
    "IPv6-mapped private, in hex": "https://[::ffff:a00:1]/",
    "IPv4-compatible": "https://[::127.0.0.1]/",
    "NAT64": "https://[64:ff9b::7f00:1]/",
    "6to4": "https://[2002:7f00:1::]/",
    "Teredo": "https://[2001:0:7f00:1::]/",
    "IPv6 documentation": "https://[2001:db8::1]/",
    "decimal": "https://2130706433/",
    "octal": "https://0177.0.0.1/",
    "octal, whole": "https://017700000001/",
    "hex": "https://0x7f000001/",
    "hex in parts": "https://0x7f.0.0.0x1/",
    "short": "https://127.1/",
    "with a dot at its end": "https://127.0.0.1./",
    "full-width digits": "https://\uff11\uff12\uff17.\uff10.\uff10.\uff11/",
    "ideographic dots": "https://127\u30020\u30020\u30021/",
    "localhost": "https://localhost/",
    "localhost with a dot": "https://localhost./",
    "below localhost": "https://a.localhost/",
    "no full name": "https://intranet/",
    "mDNS": "https://printer.local/",
    "internal": "https://metadata.google.internal/",
    "a user": "https://example.org@127.0.0.1/",
    "a user and a password": "https://example.org:x@10.0.0.1/",
    "only a user": "https://me@example.org/",
    "a backslash": "https://example.org\\@127.0.0.1/",
    "percent in the host": "https://127.0.0.1%2f.example.org/",
    "a space": "https://example.org /",
    "a line break": "https://example.org/\r\nHost: x",
    "a tab in the host": "https://exam\tple.org/",
    "no TLS": "http://example.org/",
    "another scheme": "file:///etc/passwd",
    "gopher": "gopher://example.org/",
    "no scheme": "//example.org/",
    "no host": "https:///path",
    "a port that is none": "https://example.org:99999/",
    "an IPv6 address that is none": "https://[::1/",
    "nothing": "",
    "too long": "https://example.org/" + "a" * 2_000,
}
TAKEN = {
    "a name": "https://example.org/hooks?token=1",
    "a name of another alphabet": "https://b\u00fccher.example/",
    "a port": "https://hooks.example.org:8443/",
    "a public address": f"https://{PUBLIC}/",
    "a public address of IPv6": "https://[2606:2800:220:1:248:1893:25c8:1946]/",
    "a mapped public address": f"https://[::ffff:{PUBLIC}]/",
}


@pytest.mark.parametrize("name", REFUSED, ids=list(REFUSED))
def test_an_address_that_leads_inside_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="The webhook's url"):
        RULES.check(REFUSED[name])


@pytest.mark.parametrize("name", TAKEN, ids=list(TAKEN))
def test_an_address_that_leads_outside_is_taken(name: str) -> None:
    assert RULES.check(TAKEN[name]) == TAKEN[name]


def test_an_operator_allows_hosts_by_their_names() -> None:
    rules = WebhookRules.of(allow_http=False, allowed_hosts=["Hooks.Intern.", "10.0.0.5"])
    for url in ("http://hooks.intern/x", "https://HOOKS.intern:8443/", "http://10.0.0.5:80/"):
        assert rules.check(url) == url
    for url in ("https://other.intern.local/", "https://10.0.0.6/", "http://example.org/"):
        with pytest.raises(InvalidInput):
            rules.check(url)


def test_a_setting_allows_http() -> None:
    rules = WebhookRules.of(allow_http=True, allowed_hosts=[])
    assert rules.check("http://example.org/")
    with pytest.raises(InvalidInput):
        rules.check("http://127.0.0.1/")


@given(st.ip_addresses())
def test_an_address_is_public_if_the_internet_has_it(address: Any) -> None:
    if why_not_public(address) is None:
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_loopback


@given(st.integers(0, 2**32 - 1))
def test_an_address_in_ipv6_is_judged_as_itself(number: int) -> None:
    from ipaddress import IPv4Address, IPv6Address  # noqa: PLC0415

    inner, mapped = IPv4Address(number), IPv6Address((0xFFFF << 32) + number)
    assert (why_not_public(inner) is None) == (why_not_public(mapped) is None)


# Names


def post(url: str, look_up: Callable[[str, int], Sequence[str]], **how: Any) -> Answer:
    async def send() -> Answer:
        rules = how.pop("rules", RULES)
        receivers = Receivers(rules, timeout_seconds=20.0, look_up=look_up, **how)
        try:
            return await receivers.post(url, "{}", {})
        finally:
            await receivers.aclose()

    return asyncio.run(send())


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that connections were made to; none comes about."""
    addresses: list[str] = []

    async def refuse(*_: Any, addr_infos: Sequence[Any], **__: Any) -> socket.socket:
        addresses.extend(info[4][0] for info in addr_infos)
        raise OSError("no network here")

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", refuse)
    return addresses


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["fe80::1%eth0"],
        ["::ffff:192.168.0.1"],
        [PUBLIC, "127.0.0.1"],
        ["127.0.0.1", PUBLIC],
    ],
    ids=str,
)
def test_a_name_that_leads_inside_is_not_asked(addresses: list[str], connected: list[str]) -> None:
    answer = post("https://example.org/", lambda *_: addresses)
    assert answer.status is None
    assert "leads to an address" in str(answer.error)
    assert connected == []


def test_names_that_hang_hold_up_no_other_users_events(connected: list[str]) -> None:
    is_over = threading.Event()

    def look_up(host: str, port: int) -> list[str]:
        if host.startswith("slow"):
            is_over.wait(60)
        return [PUBLIC]

    async def send() -> tuple[list[object], Answer, object]:
        receivers = Receivers(RULES, timeout_seconds=4.0, look_up=look_up)
        eve, ada = uuid4(), uuid4()

        def post_to(host: str, user: UUID) -> asyncio.Task[Answer]:
            url = f"https://{host}.example.org/"
            return asyncio.create_task(receivers.post(url, "{}", {}, user))

        slow = [post_to(f"slow{n}", eve) for n in range(80)]
        await asyncio.sleep(0.1)
        other = await post_to("good", ada)
        own = await asyncio.gather(post_to("good", eve), return_exceptions=True)
        ends: list[object] = list(await asyncio.gather(*slow, return_exceptions=True))
        is_over.set()
        await receivers.aclose()
        return ends, other, own[0]

    try:
        ends, other, own = asyncio.run(send())
    finally:
        is_over.set()
    assert connected == [PUBLIC], "the other user's event went out"
    assert "no connection" in str(other.error)
    late = [one for one in ends if isinstance(one, Answer)]
    assert len(late) == LOOKUPS_OF_USER
    assert all("No answer came" in str(one.error) for one in late)
    others = [one for one in [*ends, own] if not isinstance(one, Answer)]
    assert {type(one) for one in others} == {NamesBusy}, "which is no failure of a receiver"


def test_the_connection_is_made_to_the_address_that_was_checked(connected: list[str]) -> None:
    """DNS rebinding: the second answer would be another one, and nobody asks for it."""
    answers: Iterator[list[str]] = iter([[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]])
    asked: list[str] = []

    def look_up(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    assert post("https://rebinding.example.org/", look_up).status is None
    assert asked == ["rebinding.example.org"]
    assert connected == [PUBLIC]


def test_an_address_is_checked_again_when_something_is_sent(connected: list[str]) -> None:
    answer = post("https://127.0.0.1/", lambda host, _: [host])
    assert "private network" in str(answer.error)
    assert connected == []


def test_a_redirect_is_not_followed() -> None:
    with receiver() as inside, receiver(lambda _: 302) as outside:
        outside.headers = {"Location": inside.url}
        answer = post(outside.url, lambda *_: ["127.0.0.1"], rules=allowing("127.0.0.1"))
        assert (answer.status, inside.got) == (302, [])
        assert "redirects are not followed" in str(answer.error)


def test_proxies_and_passwords_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with receiver() as served, receiver() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        answer = post(served.url, lambda *_: ["127.0.0.1"], rules=allowing("127.0.0.1"))
        assert (answer.status, proxy.got) == (204, [])


def test_the_certificate_must_be_for_the_name(tmp_path: Any) -> None:
    authority = Authority(tmp_path)
    with receiver(certificate=authority.certificate("hooks.example.org")) as served:
        for host, is_taken in (("hooks.example.org", True), ("other.example.org", False)):
            answer = post(
                served.url.replace("127.0.0.1", host),
                lambda *_: ["127.0.0.1"],
                rules=allowing("hooks.example.org", "other.example.org"),
                ca_file=str(authority.file),
            )
            assert answer.is_taken == is_taken, answer
            assert is_taken or "certificate" in str(answer.error)
        assert len(served.got) == 1


def allowing(*hosts: str) -> WebhookRules:
    return WebhookRules.of(allow_http=False, allowed_hosts=hosts)
