"""Settings: right ones are read, wrong ones are named in one line and never quoted if secret."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from promptstack.config.errors import ConfigurationError
from promptstack.config.settings import DEFAULT_SECRET_KEY, Settings, get_settings, load_settings

PRODUCTION = {
    "ENVIRONMENT": "production",
    "SECRET_KEY": "5f0c8a" * 8,
    "ALLOWED_HOSTS": "api.example.org, example.org",
    "DATABASE_URL": "postgresql://user:pass@db/prompts",
    "REDIS_URL": "redis://cache:6379/0",
}
SECONDS = [
    "PROVIDER_TIMEOUT_SECONDS",
    "JOB_EXPIRES_SECONDS",
    "RETRY_BACKOFF_SECONDS",
    "RETRY_BACKOFF_MAX_SECONDS",
    "HEARTBEAT_SECONDS",
    "WORKER_LOST_SECONDS",
    "RECONCILE_SECONDS",
]
WRONG = {
    "ENVIRONMENT": ["prod", "Production"],
    "DEBUG": ["perhaps"],
    "LOG_FORMAT": ["xml"],
    "DATABASE_URL": ["db", "mysql://h/x", "sqlite:///x", "postgresql://h:port/x", "redis://h/0"],
    "DATABASE_POOL_SIZE": ["0", "-1", "ten", "1.5"],
    "DATABASE_MAX_OVERFLOW": ["-1", "x"],
    "REDIS_URL": ["localhost:6379", "http://localhost", "redis:localhost", "redis://h:port/0"],
    "CELERY_BROKER_URL": [
        "nonsense",
        "sqs://",
        "amqp://h:port",
        "amqp://h;redis://h",
        "amqp://h\r/v",
        "amqp:/x",
        "amqps:h",
        "amqp://",
        "amqp://user:hunter2@/v",
        "amqp://h;amqp:/x",
    ],
    "API_V1_PREFIX": ["api", "/", "/api/", "/a b"],
    "API_PORT": ["-1", "65536", "http"],
    "MAX_BODY_BYTES": ["999", "1e3x"],
    "ACCESS_TOKEN_EXPIRE_MINUTES": ["0", "1441"],
    "REFRESH_TOKEN_EXPIRE_DAYS": ["0", "367"],
    "TRUSTED_IDENTITY_HEADER": ["X Forwarded", "X:", "\u00e9"],
    "FLOWER_PORT": ["-1", "65536"],
    "MAX_TEXT_BYTES": ["0"],
    "CHUNK_TOKENS": ["15", "8001"],
    "CHUNK_OVERLAP_TOKENS": ["-1", "few"],
    "JOB_MAX_RETRIES": ["-1", "101"],
    "PROGRESS_TTL_SECONDS": ["59"],
    "WORKER_CONCURRENCY": ["0", "501"],
    "SHUTDOWN_GRACE_SECONDS": ["-0.1", "nan", "soon"],
    **{variable: ["0", "-1", "nan", "soon"] for variable in SECONDS},
}


def variable_of(field: str) -> str:
    alias = Settings.model_fields[field].validation_alias
    return str(alias) if alias else field.upper()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting comes from this machine: neither its environment nor a `.env` file."""
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_of(field), raising=False)
    monkeypatch.chdir(tmp_path)


def refusal(**overrides: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(**overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    return message


def refused() -> str | None:
    try:
        load_settings()
    except ConfigurationError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("variable", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_a_wrong_value_is_refused_in_one_line_that_names_its_variable(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    message = refusal()
    assert message.startswith(f"Wrong setting: {variable}: ")
    assert message.endswith(". Set it in the environment, in .env or in its secret's file.")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("JOB_EXPIRES_SECONDS", "inf"),
        ("JOB_EXPIRES_SECONDS", "1e12"),
        ("WORKER_LOST_SECONDS", "inf"),
        ("HEARTBEAT_SECONDS", "inf"),
        ("RECONCILE_SECONDS", "inf"),
        ("SHUTDOWN_GRACE_SECONDS", "inf"),
    ],
)
def test_a_time_that_no_clock_can_hold_is_refused(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepted, it would raise OverflowError in a date or a timer, and stop what runs by it."""
    monkeypatch.setenv(variable, value)
    assert variable in refusal()


def test_several_wrong_values_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("API_PORT", "LOG_FORMAT", "REDIS_URL"):
        monkeypatch.setenv(variable, "x")
    message = refusal()
    assert all(f"{variable}: " in message for variable in ("API_PORT", "LOG_FORMAT", "REDIS_URL"))


def test_chunks_must_be_longer_than_what_overlaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHUNK_OVERLAP_TOKENS", "512")
    assert "CHUNK_OVERLAP_TOKENS must be less than CHUNK_TOKENS" in refusal()
    monkeypatch.setenv("CHUNK_TOKENS", "513")
    assert load_settings().chunk_overlap_tokens == 512


def test_workers_must_outlive_their_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARTBEAT_SECONDS", "5")
    monkeypatch.setenv("WORKER_LOST_SECONDS", "14.9")
    assert "WORKER_LOST_SECONDS must be at least three times HEARTBEAT_SECONDS" in refusal()
    monkeypatch.setenv("WORKER_LOST_SECONDS", "15")
    assert load_settings().worker_lost_seconds == 15


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:hunter2@host/name",
        "postgresql://user:hunter2",
        "postgresql://user:hunter2/name",
        "postgresql+asyncpg://user:hunter2@host/name",
        "user:hunter2@host",
    ],
)
def test_a_refusal_never_quotes_a_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("REDIS_URL", "user:hunter2@host")
    assert "hunter2" not in refusal()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_the_usual_spellings_of_a_database_url_are_one(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://us%40er:p%3Ass@host:5433/name?sslmode=require")
    expected = "postgresql+psycopg2://us%40er:p%3Ass@host:5433/name?sslmode=require"
    assert load_settings().database_url == expected


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:6379/1",
        "unix:///run/r.sock?db=2",
        "rediss://:p@h:6380/0?ssl_cert_reqs=required&ssl_check_hostname=true",
    ],
)
def test_redis_urls_are_taken_as_they_are(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    assert load_settings().redis_url == url


# Production


def in_production(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    for variable, value in {**PRODUCTION, **changes}.items():
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, value)


@pytest.mark.parametrize("host", ["*", "*.com", "*.co.uk", "*.ORG", "example.org,*.com", "*.", ""])
def test_production_answers_to_no_host_of_others(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    in_production(monkeypatch, ALLOWED_HOSTS=host)
    with pytest.raises(ConfigurationError, match="ALLOWED_HOSTS"):
        load_settings(_env_file=None)


@pytest.mark.parametrize("host", ["*.example.org", "localhost", "10.0.0.1", "[::1]", "a-b.c_d.org"])
def test_production_answers_to_its_own_hosts(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    in_production(monkeypatch, ALLOWED_HOSTS=host)
    assert load_settings(_env_file=None).allowed_hosts == [host]


@pytest.mark.parametrize("host", ["*com", "a.*.org", "http://a.org", "a.org:8000", "a b"])
def test_a_host_is_a_hosts_name(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("ALLOWED_HOSTS", host)
    with pytest.raises(ConfigurationError, match="ALLOWED_HOSTS"):
        load_settings(_env_file=None)


def test_the_password_of_redis_goes_into_an_address_that_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "p@ss/word")
    for url, expected in (
        ("redis://cache:6379/0", "redis://:p%40ss%2Fword@cache:6379/0"),
        (
            "rediss://me@cache/1",
            "rediss://me:p%40ss%2Fword@cache/1?ssl_cert_reqs=required&ssl_check_hostname=true",
        ),
        ("redis://me:other@cache/1", "redis://me:other@cache/1"),
        ("unix:///run/redis.sock?db=1", "unix://:p%40ss%2Fword@/run/redis.sock?db=1"),
    ):
        monkeypatch.setenv("REDIS_URL", url)
        assert load_settings(_env_file=None).redis_url == expected


@pytest.mark.parametrize("url", ["amqp://u:p@a:5672//;amqp://b//", "amqps://u:p@h/v", "pyamqp://h"])
def test_urls_of_rabbitmq_are_taken_as_they_are(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", f"{url}\r\n")
    assert load_settings(_env_file=None).celery_broker_url == url


def test_the_line_end_of_a_secrets_file_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "pass word \r\n")
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "user:password\n")
    settings = load_settings(_env_file=None)
    assert settings.redis_password is not None
    assert settings.redis_password.get_secret_value() == "pass word "
    assert settings.flower_basic_auth is not None
    assert settings.flower_basic_auth.get_secret_value() == "user:password"


def test_production_runs_with_safe_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    in_production(monkeypatch)
    settings = load_settings()
    assert settings.is_production
    assert not settings.is_development
    assert settings.allowed_hosts == ["api.example.org", "example.org"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SECRET_KEY", None),
        ("SECRET_KEY", DEFAULT_SECRET_KEY),
        ("SECRET_KEY", "x" * 31),
        ("ALLOWED_HOSTS", None),
        ("ALLOWED_HOSTS", "*"),
        ("ALLOWED_HOSTS", "example.org,*"),
        ("ALLOWED_HOSTS", " , "),
        ("DATABASE_URL", None),
        ("REDIS_URL", None),
    ],
)
def test_production_refuses_what_is_not_safe(
    variable: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_production(monkeypatch, **{variable: value})
    message = refusal()
    assert message.startswith(f"Wrong setting: {variable} must ")
    if variable == "SECRET_KEY" and value:
        assert value not in message


@pytest.mark.parametrize("environment", ["development", "test"])
def test_elsewhere_the_defaults_do(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", environment)
    settings = load_settings()
    assert settings.is_development == (environment == "development")
    assert not settings.is_production


# Who signs in


def test_a_header_that_says_who_it_is_needs_a_list_of_proxies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRUSTED_IDENTITY_HEADER", "X-Forwarded-Email")
    assert "TRUSTED_PROXIES must list" in refusal()
    monkeypatch.setenv("TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8,192.0.2.1")
    assert [str(one) for one in load_settings().trusted_proxies] == [
        "10.0.0.0/8",
        "fd00::/8",
        "192.0.2.1/32",
    ]
    for wrong in ("10.0.0.1/8", "proxy.example.org", "*"):
        monkeypatch.setenv("TRUSTED_PROXIES", wrong)
        assert "TRUSTED_PROXIES" in refusal()


def test_the_first_administrator_has_an_address_and_a_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FIRST_ADMIN_EMAIL", "root@example.org")
    assert "must be set together" in refusal()
    monkeypatch.setenv("FIRST_ADMIN_PASSWORD_FILE", "/run/secrets/password")
    assert load_settings().first_admin_email == "root@example.org"


def test_a_previous_key_is_as_long_as_the_present_one(monkeypatch: pytest.MonkeyPatch) -> None:
    in_production(monkeypatch, PREVIOUS_SECRET_KEY="hunter2hunter2")
    message = refusal()
    assert "PREVIOUS_SECRET_KEY must have 32" in message
    assert "hunter2" not in message


# Where settings come from


def test_the_defaults() -> None:
    settings = load_settings()
    assert settings.environment == "development"
    assert settings.state_dir == Path(".promptstack")
    assert (settings.database_url, settings.redis_url, settings.celery_broker_url) == (None,) * 3
    assert (settings.default_llm_provider, settings.default_embedding_provider) == ("demo", "local")
    assert (settings.api_host, settings.flower_host) == ("127.0.0.1", "127.0.0.1")
    assert settings.openai_api_key is None
    # A dead worker's jobs are free within 30 s.
    freed_after = settings.worker_lost_seconds + settings.reconcile_seconds
    assert freed_after + settings.heartbeat_seconds <= 30


def test_every_default_is_valid_when_said_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = load_settings()
    for field, info in Settings.model_fields.items():
        assert info.description
        if isinstance(info.default, str | int | float | Path):
            monkeypatch.setenv(variable_of(field), str(info.default))
    assert load_settings() == defaults


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ["SECRET_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"]
    for variable in [*secrets, "PREVIOUS_SECRET_KEY", "FLOWER_BASIC_AUTH"]:
        monkeypatch.setenv(variable, "hunter2:hunter2")
    settings = load_settings()
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_an_env_file_is_read_and_the_environment_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(
        "# ours\n"
        "APP_NAME='Größe'\n"
        "api_port=9001\n"
        "FLOWER_PORT=5556\n"
        "ALLOWED_HOSTS=a.example, b.example\n"
        "PROMPTSTACK_STATE_DIR=/srv/state\n"
        "JOB_MAX_RETRIES=\n"
        "SOMEBODY_ELSES=1\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("FLOWER_PORT", "5557")
    settings = load_settings()
    assert settings.app_name == "Größe"
    assert (settings.api_port, settings.flower_port) == (9001, 5557)
    assert settings.allowed_hosts == ["a.example", "b.example"]
    assert settings.state_dir == Path("/srv/state")
    assert settings.job_max_retries == 3


def test_a_wrong_value_in_an_env_file_is_refused_alike(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("API_PORT=http\n", encoding="utf-8")
    assert refusal().startswith("Wrong setting: API_PORT: ")


def test_an_env_file_that_is_no_text_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"APP_NAME=Gr\xf6\xdfe\n")
    assert ".env" in refusal()


@pytest.mark.parametrize("field", sorted(set(Settings.model_fields) - {"environment"}))
def test_an_empty_variable_counts_as_unset(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_settings()
    monkeypatch.setenv(variable_of(field), "")
    assert load_settings() == expected


def test_settings_of_a_process_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    get_settings.cache_clear()
    try:
        first = get_settings()
        monkeypatch.setenv("API_PORT", "9999")
        assert get_settings() is first
    finally:
        get_settings.cache_clear()


@effort(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(sorted(WRONG)),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40),
)
def test_whatever_stands_in_a_variable_gives_settings_or_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(variable, value)
        message = refused()
    assert message is None or (variable in message and "\n" not in message)
