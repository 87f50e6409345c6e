"""Proxies, certificates, headers, addresses and keys that can't be used: each is named at once."""

import asyncio
import os
from pathlib import Path

import pytest

from promptstack.config.errors import ConfigurationError
from promptstack.config.network import check_network
from promptstack.config.providers import Wire
from promptstack.config.settings import load_settings
from promptstack.services.llm.errors import NotConfigured
from promptstack.services.llm.factory import LLMServiceFactory

WIRES: tuple[Wire, ...] = ("openai", "anthropic", "gemini")
LOCAL = "http://127.0.0.1:9/v1"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in list(os.environ):
        if variable.lower().endswith(("_proxy", "_headers", "_bundle")) or "CERT" in variable:
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


FAULTS = [
    ("ALL_PROXY", "socks5://user:hunter2@127.0.0.1:1080", "a socks5:// proxy", WIRES),
    ("all_proxy", "socks5h://127.0.0.1:1080", "a socks5h:// proxy", WIRES),
    ("HTTP_PROXY", "socks4://127.0.0.1:1080", "a socks4:// proxy", WIRES),
    ("HTTPS_PROXY", "ftp://127.0.0.1:1", "a ftp:// proxy", WIRES),
    ("HTTPS_PROXY", "http://user:hunter2@proxy:port", "a port that is not a number", WIRES),
    ("http_proxy", "proxy:99999", "a port that is not a number up to 65535", WIRES),
    ("HTTP_PROXY", "http://", "names no host", WIRES),
    ("HTTPS_PROXY", "nonsense", "has neither http:// before it nor a port after it", WIRES),
    ("HTTP_PROXY", "http://proxy:3128\r", "a line end", WIRES),
    ("SSL_CERT_FILE", "/nowhere/ca.pem", "/nowhere/ca.pem, which cannot be read", WIRES),
    ("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem", "/nowhere/ca.pem, which cannot be read", WIRES),
    ("SSL_CERT_FILE", __file__, "holds no certificate", WIRES),
    ("OPENAI_ORG_ID", "org-1\n", "a line end", ("openai",)),
    ("OPENAI_PROJECT_ID", "projekt-ä", "no HTTP header can have", ("openai",)),
    ("OPENAI_CUSTOM_HEADERS", "a: b\nc: d\r\ne: f", "a line end", ("openai",)),
    ("ANTHROPIC_CUSTOM_HEADERS", "a: \x07", "no HTTP header can have", ("anthropic",)),
]


@pytest.mark.parametrize(("variable", "value", "reason", "wires"), FAULTS)
def test_what_an_sdk_would_fail_by_is_named_and_nothing_is_sent(
    variable: str, value: str, reason: str, wires: tuple[Wire, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    for wire in WIRES:
        service = LLMServiceFactory().create(wire, api_key="sk-" + "a1" * 10, base_url=LOCAL)
        if wire not in wires:
            check_network(wire, LOCAL)
            continue
        with pytest.raises(ConfigurationError) as caught:
            check_network(wire, LOCAL)
        message = str(caught.value)
        assert message.startswith(f"{variable} ")
        assert reason in message
        assert "hunter2" not in message
        assert "\n" not in message
        with pytest.raises(NotConfigured, match=variable):
            asyncio.run(service.count_tokens("text", "any") if wire != "openai" else _list(service))


async def _list(service: object) -> None:
    await service._list_models()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HTTP_PROXY": "proxy:3128", "HTTPS_PROXY": "https://user:p%40ss@proxy"},
        {"ALL_PROXY": "http://[::1]:3128", "SSL_CERT_DIR": "/nowhere"},
        {"OPENAI_ORG_ID": "org-1", "OPENAI_CUSTOM_HEADERS": "a: b\nc: d"},
        # As many desktops have it: what is in use is HTTP's.
        {"ALL_PROXY": "socks5://h:1", "HTTP_PROXY": "http://h:2", "HTTPS_PROXY": "http://h:2"},
        {"ALL_PROXY": "socks5://h:1", "NO_PROXY": "127.0.0.1,localhost"},
        {"ALL_PROXY": "socks5://h:1", "no_proxy": "127.0.0.0/8"},
        {"ALL_PROXY": "socks5://h:1", "NO_PROXY": "*"},
    ],
)
def test_what_works_is_let_be(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    check_network("openai", LOCAL)
    check_network("anthropic", LOCAL)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:8000/v1",
        "localhost:8000",
        "/v1",
        "http:///v1",
        "http://",
        "ftp://host/v1",
        "http://host:port/v1",
        "http://ho st/v1",
        "http://host\r/v1",
        "http://exa..mple/v1",
        "http://user:hunter2@host/v1",
        "http://host/v1?key=hunter2",
    ],
)
def test_an_address_that_is_none_is_refused_with_its_variable(
    wire: Wire, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"{wire.upper()}_BASE_URL"
    monkeypatch.setenv(variable, address)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(_env_file=None)
    message = str(caught.value)
    assert message.startswith(f"Wrong setting: {variable}: ")
    assert "hunter2" not in message
    assert "\n" not in message


@pytest.mark.parametrize("wire", WIRES)
def test_what_stands_around_an_address_or_a_key_is_taken_off(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{wire.upper()}_BASE_URL", " http://127.0.0.1:8000/v1\r\n")
    monkeypatch.setenv(f"{wire.upper()}_API_KEY", "sk-1234\n")
    settings = load_settings(_env_file=None)
    assert getattr(settings, f"{wire}_base_url") == "http://127.0.0.1:8000/v1"
    assert getattr(settings, f"{wire}_api_key").get_secret_value() == "sk-1234"


@pytest.mark.parametrize("key", ["sk-12\n34", "sk-12 34", "sk-ä", "sk-\x7f"])
@pytest.mark.parametrize("wire", WIRES)
def test_a_key_that_no_header_can_have_is_refused_with_its_variable(
    wire: Wire, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{wire.upper()}_API_KEY", key)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(_env_file=None)
    assert str(caught.value).startswith(f"Wrong setting: {wire.upper()}_API_KEY: ")
    assert key not in str(caught.value)
