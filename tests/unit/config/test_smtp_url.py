"""SMTP_URL: what is read of it, and what is refused."""

import pytest

from promptstack.config.errors import ConfigurationError
from promptstack.config.settings import load_settings
from promptstack.config.smtp_url import SmtpUrl

FROM = "Prompt Stack <stack@example.org>"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.example.org", ("mail.example.org", 587, "", "", False, True)),
        ("smtp://a:b%40c@mail:2525", ("mail", 2525, "a", "b@c", False, True)),
        ("smtp://relay:25?tls=off", ("relay", 25, "", "", False, False)),
        ("smtps://a%40x:b@mail", ("mail", 465, "a@x", "b", True, False)),
        ("smtp://[::1]:25?tls=off", ("::1", 25, "", "", False, False)),
    ],
)
def test_a_url_says_where_the_server_is_and_how_safe(url: str, expected: tuple[object]) -> None:
    assert tuple(vars(SmtpUrl.parse(url)).values()) == expected
    assert "b@c" not in repr(SmtpUrl.parse(url))


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://mail", "smtp:// or smtps://"),
        ("mail.example.org:25", "smtp:// or smtps://"),
        ("smtp://", "names no host"),
        ("smtp://u:hunter2@", "names no host"),
        ("smtp://u:hunter2@mail:port", "a port that is not a number"),
        ("smtp://u:hunter#2@mail", "a # in it"),
        ("smtp://u:hunter2@mail?tls=off", "must not be sent in the clear"),
        ("smtps://mail?tls=off", "smtps:// is TLS"),
        ("smtp://mail?verify=no", "no option but tls=off"),
        ("smtp://mail/path", "takes no path"),
        ("smtp://u@mail", "not both"),
        ("smtp://u:hunter2@mail\\nhost", "names no host"),
        ("smtp://ma il", "a space"),
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        load_settings(_env_file=None, smtp_url=url, mail_from=FROM)
    assert why in str(told.value)
    assert "SMTP_URL" in str(told.value)
    assert "hunter" not in str(told.value)


@pytest.mark.parametrize(
    "sender",
    ["", "nobody", "a@b, c@d", "a@b\r\nBcc: eve@example.org", "J\u00f6rg <a@b>", "<a b@c>"],
)
def test_a_wrong_sender_is_refused(sender: str) -> None:
    with pytest.raises(ConfigurationError):
        load_settings(_env_file=None, smtp_url="smtp://mail", mail_from=sender)


def test_a_mail_server_and_a_sender_come_together() -> None:
    with pytest.raises(ConfigurationError, match="must be set together"):
        load_settings(_env_file=None, smtp_url="smtp://mail")
    with pytest.raises(ConfigurationError, match="must be set together"):
        load_settings(_env_file=None, mail_from=FROM)
    assert load_settings(_env_file=None, smtp_url="smtp://mail", mail_from=FROM).mail_from == FROM
    assert load_settings(_env_file=None).smtp_url is None
