"""The types of settings: what a value must look like, checked when it is read."""

import json
import re
from email.utils import getaddresses
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from promptstack.config.postgres_url import postgres_url
from promptstack.config.providers import server_address
from promptstack.config.redis_url import RedisUrl, check_certificates, check_characters, check_port
from promptstack.config.smtp_url import SmtpUrl

REDIS_BROKERS = ("redis", "rediss", "redis+socket", "unix")
RABBITMQ_BROKERS = ("amqp", "amqps", "pyamqp")
TEN_YEARS = 315_360_000.0

HOST = re.compile(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*|\[[0-9a-f:.]+\]", re.ASCII | re.IGNORECASE)
MAIL_ADDRESS = re.compile(r"[\w.+=/-]+@[\w-]+(\.[\w-]+)*", re.ASCII)
WIDE_HOST = re.compile(r"\*|\*\.[^.]+|\*\.(ac|co|com|edu|gov|net|org)\.[a-z]{2}", re.IGNORECASE)
"""Matches hosts that anybody can have: all hosts, or all below a public domain such as co.uk."""


def _redis_url(url: str) -> str:
    return str(RedisUrl.parse(url.strip()))


def _broker_url(url: str) -> str:
    url = url.strip()
    scheme = url.partition(":")[0]
    if scheme in REDIS_BROKERS:
        return RedisUrl.parse(url).for_celery()
    for one in url.split(";"):  # RabbitMQ may have several, in one setting
        if one.partition(":")[0] not in RABBITMQ_BROKERS:
            known = ", ".join((*RABBITMQ_BROKERS, *REDIS_BROKERS))
            raise ValueError(f"must be a URL that starts with one of {known}")
        check_characters(one)
        check_port(one)
        if not urlsplit(one).hostname:
            raise ValueError("names no host; write it as amqp://user:password@host:5672/vhost")
        if "ssl_" in urlsplit(one).query:
            raise ValueError("takes no ssl_ options; its certificate is checked, see TLS_CA_FILE")
    return url


def _without_line_end(secret: SecretStr) -> SecretStr:
    """Drop the line end that a file with a secret has; no password ends with one."""
    return SecretStr(secret.get_secret_value().strip("\r\n"))


def _api_key(key: SecretStr) -> SecretStr:
    said = key.get_secret_value().strip()
    if not (said.isascii() and said.isprintable()) or " " in said:
        raise ValueError("has a space, a line end or another character that no key has")
    return SecretStr(said)


def _json_object(text: str) -> str:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise ValueError('must be a JSON object, such as {"ai_chat": true}')  # noqa: TRY004
    return text


def _certificates(path: Path) -> Path:
    check_certificates(str(path))
    return path


def _smtp_url(url: SecretStr) -> SecretStr:
    said = url.get_secret_value().strip()
    SmtpUrl.parse(said)
    return SecretStr(said)


def _mail_from(sender: str) -> str:
    found = getaddresses([sender])
    is_one = len(found) == 1 and MAIL_ADDRESS.fullmatch(found[0][1])
    if not is_one or not (sender.isprintable() and sender.isascii()):
        raise ValueError("must be an address, such as `Prompt Stack <stack@example.org>`")
    return sender


PostgresUrl = Annotated[str, AfterValidator(postgres_url)]
AnyRedisUrl = Annotated[str, AfterValidator(_redis_url)]
BrokerUrl = Annotated[str, AfterValidator(_broker_url)]
JsonText = Annotated[str, AfterValidator(_json_object)]
"""JSON that is read where its meaning is known."""
CertificateFile = Annotated[Path, AfterValidator(_certificates)]
SmtpAddress = Annotated[SecretStr, AfterValidator(_smtp_url)]
MailFrom = Annotated[str, AfterValidator(_mail_from)]
ServerAddress = Annotated[str, AfterValidator(server_address)]
Secret = Annotated[SecretStr, AfterValidator(_without_line_end)]
ApiKey = Annotated[SecretStr, AfterValidator(_api_key)]
Seconds = Annotated[float, Field(ge=0, le=TEN_YEARS, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, le=TEN_YEARS, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0.1, le=100, allow_inf_nan=False)]


class TierWeights(BaseModel):
    """How large a user's share is by their tier, where users wait for each other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    free: Weight = 1.0
    """Also of work without a user."""
    pro: Weight = 2.0
    enterprise: Weight = 4.0

    def of(self, tier: str) -> float:
        """The weight of a tier."""
        weight: float = getattr(self, tier)
        return weight
