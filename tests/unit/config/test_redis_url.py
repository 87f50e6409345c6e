"""One form of Redis URLs: what all clients read out of it, and what is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from kombu import Connection
from kombu.transport.redis import Channel
from redis.connection import parse_url

from promptstack.config.redis_url import RedisUrl

TLS = "ssl_cert_reqs=required&ssl_check_hostname=true"
printable = st.text(st.characters(codec="utf-8"), max_size=12)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("redis://h", "redis://h/0"),
        ("redis://h:1/", "redis://h:1/0"),
        ("redis://h?db=3", "redis://h/3"),
        ("redis://h/3?db=3", "redis://h/3"),
        ("redis://[::1]:6380/2", "redis://[::1]:6380/2"),
        ("redis://user@h", "redis://user:@h/0"),
        ("unix:///a%20b.sock", "unix:///a%20b.sock?db=0"),
        ("redis+socket:///a.sock?virtual_host=4", "unix:///a.sock?db=4"),
        ("rediss://h", f"rediss://h/0?{TLS}"),
        ("rediss://h?ssl_cert_reqs=CERT_REQUIRED", f"rediss://h/0?{TLS}"),
        ("rediss://h?ssl_cert_reqs=optional", f"rediss://h/0?{TLS}"),
        (
            "rediss://h?ssl_check_hostname=no",
            "rediss://h/0?ssl_cert_reqs=required&ssl_check_hostname=false",
        ),
        (
            "rediss://h?ssl_cert_reqs=CERT_NONE",
            "rediss://h/0?ssl_cert_reqs=none&ssl_check_hostname=false",
        ),
    ],
)
def test_the_usual_forms_become_one(given: str, expected: str) -> None:
    assert str(RedisUrl.parse(given)) == expected
    assert RedisUrl.parse(expected) == RedisUrl.parse(given)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sentinel://a:26379;sentinel://b:26379", "Sentinel and Cluster are not supported"),
        ("redis+sentinel://a:26379/mymaster", "Sentinel and Cluster are not supported"),
        ("redis://a:6379,b:6379/0", "Sentinel and Cluster are not supported"),
        ("redis://h/zero", "by a number"),
        ("redis://h/-1", "by a number"),
        ("redis://h/0/1", "by a number"),
        ("redis://h/0?db=1", "two databases"),
        ("redis://h/0?socket_timeout=5", "and no other"),
        ("redis://h/0?ssl_cert_reqs=required", "only rediss:// speaks"),
        ("unix:///r.sock?ssl_cert_reqs=none", "only rediss:// speaks"),
        ("rediss://h?ssl_cert_reqs=perhaps", "required or none"),
        ("rediss://h?ssl_ca_certs=/nowhere/ca.pem", "/nowhere/ca.pem, which cannot be read"),
        ("rediss://h?ssl_certfile=/nowhere/me.pem", "/nowhere/me.pem, which cannot be read"),
        (f"rediss://h?ssl_ca_certs={__file__}", "holds no certificate"),
        ("unix://run/redis.sock", "by its whole path"),
        ("unix://", "by its whole path"),
        ("redis://:pa#ss@h/0", "write # as %23"),
        ("redis://:pa/ss@h/0", "/ as %2F"),
        ("redis://h:70000/0", "up to 65535"),
        ("redis://h/0\r", "a line end"),
        ("redis://:p p@h/0", "a space"),
        ("redis://ho\nst/0", "a line end"),
        ("redis:h/0", "must start with"),
    ],
)
def test_what_no_client_could_use_is_refused_with_its_reason(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RedisUrl.parse(url)


@effort(max_examples=60, deadline=None)
@given(
    st.sampled_from(["redis", "rediss", "unix"]),
    printable,
    printable.filter(bool),
    st.integers(0, 999),
)
def test_all_clients_read_the_same(
    scheme: str, username: str, password: str, database: int
) -> None:
    place = "/run/a b.sock" if scheme == "unix" else "host:6380"
    who = f"{quote(username, safe='')}:{quote(password, safe='')}"
    url = RedisUrl.parse(f"{scheme}://{who}@{quote(place, safe=':/')}?db={database}")
    ours: Any = parse_url(str(url))  # type: ignore[no-untyped-call]
    backend: Any = Celery(set_as_current=False, backend=url.for_celery()).backend
    results = backend.connparams
    messages = _broker_parameters(url.for_celery())
    for name in ("username", "password", "db", "host", "port", "path", "ssl_check_hostname"):
        assert len({str(found.get(name) or "") for found in (ours, results, messages)}) == 1, name
    if scheme == "rediss":
        assert ours["ssl_cert_reqs"] == "required"
        assert results["ssl_cert_reqs"] == messages["ssl_cert_reqs"]
        assert messages["ssl_cert_reqs"].name == "CERT_REQUIRED"


def _broker_parameters(url: str) -> dict[str, Any]:
    """What kombu connects with, without a connection."""
    channel: Any = Channel.__new__(Channel)
    channel.connection = SimpleNamespace(client=Connection(url), default_port=6379)
    channel._registered = False
    parameters: dict[str, Any] = channel._connparams()
    return parameters


def test_the_authority_of_a_setting_yields_to_that_of_the_url(tmp_path: Path) -> None:
    url = RedisUrl.parse("rediss://:own@h").completed(password="other", ca_file="/ca.pem")
    assert str(url) == f"rediss://:own@h/0?ssl_ca_certs=%2Fca.pem&{TLS}"
    plain = RedisUrl.parse("redis://h").completed(password="pass", ca_file="/ca.pem")
    assert str(plain) == "redis://:pass@h/0"
