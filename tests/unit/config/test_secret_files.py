"""Secrets are read from files, one each; the environment and .env come before them."""

import os
from pathlib import Path

import pytest
from sqlalchemy import make_url

from promptstack.config import secret_files
from promptstack.config.errors import ConfigurationError
from promptstack.config.settings import Settings, load_settings

SECRET = "sk-xyzzy"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting comes from this machine."""
    for field in Settings.model_fields:
        monkeypatch.delenv(field.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "secrets"
    made.mkdir()
    monkeypatch.setenv("SECRETS_DIR", str(made))
    return made


def openai_key() -> str | None:
    key = load_settings().openai_api_key
    return key.get_secret_value() if key else None


def test_a_file_is_a_setting(folder: Path) -> None:
    assert openai_key() is None
    (folder / "openai_api_key").write_text(f"{SECRET}\r\n")
    assert openai_key() == SECRET


def test_a_file_may_be_a_link_within_the_folder(folder: Path) -> None:
    """So Kubernetes mounts them, to change all at once."""
    (folder / "..2026").mkdir()
    (folder / "..2026/openai_api_key").write_text(SECRET)
    (folder / "..data").symlink_to("..2026")
    (folder / "openai_api_key").symlink_to("..data/openai_api_key")
    assert openai_key() == SECRET


def test_the_usual_folder_may_be_missing_or_be_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SECRETS_DIR")
    (folder / "openai_api_key").write_text(SECRET)
    monkeypatch.setattr(secret_files, "SECRETS_DIR", folder / "missing")
    assert openai_key() is None
    monkeypatch.setattr(secret_files, "SECRETS_DIR", folder)
    assert openai_key() == SECRET


def test_the_environment_wins_over_env_and_env_over_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "openai_api_key").write_text("sk-file")
    Path(".env").write_text("OPENAI_API_KEY=sk-env-file")
    assert openai_key() == "sk-env-file"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-variable")
    assert openai_key() == "sk-variable"
    # An empty one is none, wherever it stands.
    monkeypatch.setenv("OPENAI_API_KEY", "")
    Path(".env").write_text("OPENAI_API_KEY=")
    assert openai_key() == "sk-file"
    (folder / "openai_api_key").write_text("\n")
    assert openai_key() is None


def test_the_folder_may_be_named_in_env(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECRETS_DIR")
    Path(".env").write_text(f"SECRETS_DIR={folder}")
    (folder / "openai_api_key").write_text(SECRET)
    assert openai_key() == SECRET


def test_a_folder_that_is_not_there_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRETS_DIR", str(folder / "missing"))
    with pytest.raises(ConfigurationError, match=r"SECRETS_DIR names .*/missing, which is not a"):
        load_settings()


def test_a_file_that_is_not_text_is_named_and_not_quoted(folder: Path) -> None:
    (folder / "secret_key").write_bytes(SECRET.encode() + b"\xff")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert str(caught.value) == f"The secret's file {folder}/secret_key is not UTF-8 text."
    assert caught.value.__suppress_context__


def test_a_file_that_may_not_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "secret_key").write_text(SECRET)

    def refuse(path: Path, **_: object) -> str:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Path, "read_text", refuse)  # root may read every file
    with pytest.raises(ConfigurationError, match=r"secret_key can't be read \(Permission denied\)"):
        load_settings(_env_file=None)


def test_a_wrong_secret_is_named_and_not_quoted(folder: Path) -> None:
    (folder / "openai_api_key").write_text("sk xyzzy")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert str(caught.value).startswith("Wrong setting: OPENAI_API_KEY: has a space")
    assert str(caught.value).endswith("Set it in the environment, in .env or in its secret's file.")
    assert "xyzzy" not in str(caught.value)


def test_the_database_takes_its_password_beside_its_url(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "a \"quoted\" \\ $HOME 'word' any/thing@all:#?%"
    (folder / "database_password").write_text(password)
    assert load_settings().database_url is None
    monkeypatch.setenv("DATABASE_URL", "postgresql://ada@db:5432/prompts?sslmode=require")
    url = make_url(str(load_settings().database_url))
    assert (url.username, url.host, url.query) == ("ada", "db", {"sslmode": "require"})
    assert url.password == password

    for said in ("postgresql://ada:own@db/x", "postgresql://ada@db/x?password=own"):
        monkeypatch.setenv("DATABASE_URL", said)
        assert "quoted" not in str(load_settings().database_url)

    monkeypatch.setenv("DATABASE_URL", "postgresql://ada@one,two:5433/x")
    several = make_url(str(load_settings().database_url))
    assert (several.password, several.query["host"]) == (password, "one,two")

    monkeypatch.setenv("DATABASE_URL", "postgresql://db/x")
    with pytest.raises(ConfigurationError, match="DATABASE_URL must name the user"):
        load_settings()
