"""Providers that MODELS_FILE names: what may stand there, and what comes of it."""

import re
from pathlib import Path

import pytest

from promptstack.config.errors import ConfigurationError
from promptstack.config.models_file import ModelAlias, ModelsFile
from promptstack.config.providers import ModelFacts, NamedProvider
from promptstack.config.settings import Settings
from promptstack.services.errors import InvalidInput, UnknownModel
from promptstack.services.llm.answers import Capability
from promptstack.services.llm.errors import NotConfigured
from promptstack.services.llm.openai import OpenAIService
from promptstack.services.llm.requests import GenerationRequest
from promptstack.tasks.composition import PromptStack
from tests.processes import ROOT

PAGE = ROOT / "docs" / "providers.md"
TWO = """
[[providers]]
name = "chat"
wire = "openai"
base_url = "http://gpu1:8000/v1/"
api_key_env = "CHAT_KEY"
generation_model = "qwen3"

[[providers]]
name = "vectors"
wire = "openai"
base_url = "http://gpu2:8080/v1"

[[models]]
provider = "vectors"
model = "bge-*"
texts_per_call = 32
tokens_per_text = 512

[[models]]
provider = "chat"
unsupported = ["seed", "tools"]
"""


def opened(tmp_path: Path, text: str, **told: str) -> PromptStack:
    file = tmp_path / f"models-{len(list(tmp_path.iterdir()))}.toml"
    file.write_text(text)
    settings = Settings(_env_file=None, models_file=file, **told)  # type: ignore[arg-type]
    return PromptStack(settings, "postgresql://none", "redis://none")


def test_named_servers_are_providers_with_their_own_models_and_limits(tmp_path: Path) -> None:
    factory = opened(tmp_path, TWO).factory

    assert {"chat", "vectors", "openai", "demo"} <= set(factory.names())
    chat, vectors = factory.service_class("chat"), factory.service_class("vectors")
    assert (chat.name, vectors.name) == ("chat", "vectors")
    assert chat.choose_model(Capability.GENERATION, None) == "qwen3"
    limits = vectors.stated_limits("bge-small")
    assert (limits.items, limits.text_tokens, limits.text_bytes) == (32, 512, None)
    assert vectors.stated_limits("other").items == OpenAIService.embedding_limits.items
    assert factory.service_class("openai").stated_limits("bge-small").text_tokens is None


def test_no_server_is_asked_for_another_ones_model(tmp_path: Path) -> None:
    """A server that isn't OpenAI has no gpt-5-mini: whoever names no model is told so."""
    for stack, provider in (
        (opened(tmp_path, TWO), "vectors"),
        (opened(tmp_path, "", openai_base_url="http://localhost:8000/v1"), "openai"),
    ):
        service = stack.factory.service_class(provider)
        for capability in Capability:
            with pytest.raises(UnknownModel, match=f"{capability}_model in MODELS_FILE"):
                service.choose_model(capability, None)
            assert service.choose_model(capability, "mine") == "mine"
    own = opened(tmp_path, "").factory.service_class("openai")
    assert own.choose_model(Capability.GENERATION, None) == "gpt-5-mini"


def test_a_missing_key_is_asked_for_where_it_would_be_read(tmp_path: Path) -> None:
    stack = opened(
        tmp_path, '[[providers]]\nname = "mine"\nwire = "openai"\n', openai_api_key="sk-1"
    )
    with pytest.raises(NotConfigured, match="read from what api_key_env in MODELS_FILE names"):
        stack.factory.create("mine").check_configured()
    with pytest.raises(NotConfigured, match="read from ANTHROPIC_API_KEY"):
        stack.factory.create("anthropic").check_configured()


def test_prices_hold_at_the_providers_own_address_alone(tmp_path: Path) -> None:
    proxies = """
[[providers]]
name = "proxy"
wire = "openai"
base_url = "https://gateway.corp/openai/v1"
prices_of = "openai"
[[providers]]
name = "other-key"
wire = "openai"
api_key_env = "OTHER"
"""
    tokens = {"input_tokens": 1_000, "output_tokens": 10}
    here = opened(tmp_path, proxies, openai_base_url="http://localhost:8000/v1").prices
    assert here.cost("openai", "gpt-5-mini", **tokens) is None
    assert here.cost("gemini", "gemini-2.5-flash", **tokens)
    assert here.cost("proxy", "gpt-5-mini", **tokens)
    assert here.cost("other-key", "gpt-5-mini", **tokens)
    told = opened(tmp_path, "", openai_base_url="https://api.openai.com/v1").prices
    assert told.cost("openai", "gpt-5-mini", **tokens)


def test_what_a_server_does_not_support_is_refused_at_enqueue(tmp_path: Path) -> None:
    service = opened(tmp_path, TWO).factory.service_class("chat")
    request = GenerationRequest(provider="chat", model="qwen3", prompt="x", seed=0)
    with pytest.raises(InvalidInput, match="'chat' does not support seed"):
        service.check_request(request)
    service.check_request(request.model_copy(update={"seed": None, "temperature": 0.0}))


def test_the_example_of_the_docs_is_one_that_works(tmp_path: Path) -> None:
    """It names each field that there is, and each provider can be made."""
    examples = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    stack = opened(tmp_path, "\n".join(examples))
    file = stack.models_file
    assert file.named() <= {provider.name for provider in file.providers}
    for provider in file.providers:
        service = stack.factory.create(provider.name)
        assert service.name == provider.name
        defaults = {provider.generation_model, provider.embedding_model} - {None}
        assert defaults <= set(service.default_models.values())
    limits = stack.factory.service_class("embedder").stated_limits("BAAI/bge-m3")
    assert (limits.items, limits.text_tokens, limits.tokens) == (32, 8_192, 16_384)
    told = {name for entry in file.providers for name in entry.model_fields_set}
    assert set(NamedProvider.model_fields) == told
    told = {name for entry in file.models for name in entry.model_fields_set}
    assert set(ModelFacts.model_fields) - told <= {"tokenizer"}
    told = {name for entry in file.aliases for name in entry.model_fields_set}
    assert set(ModelAlias.model_fields) == told
    for alias in file.aliases:
        for target in (*alias.targets, *alias.fallbacks):
            assert target.provider in stack.factory.names()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ('wire = "openai"', "name"),
        ('name = "a/b"\nwire = "openai"', "name"),
        ('name = "a"\nwire = "cohere"', "wire"),
        ('name = "demo"\nwire = "openai"', "built-in"),
        ('name = "gemini"\nwire = "openai"', "built-in"),
        ('name = "a"\nwire = "openai"\nbase_url = "gpu1:8000/v1"', "base_url"),
        ('name = "a"\nwire = "openai"\nbase_url = "http://gp\\ru1:8000/v1"', "base_url"),
        ('name = "a"\nwire = "openai"\nbase_url = "http://u:hunter2-secret@h/v1"', "base_url"),
        ('name = "a"\nwire = "openai"\napi_key = "hunter2-secret"', "does not stand in this file"),
        ('name = "a"\nwire = "openai"\nmodle = "m"', "modle: there is no field of this name"),
        ('name = "a"\nwire = "openai"\napi_key_env = "hunter2-secret"', "api_key_env"),
        ('name = "a"\nwire = "openai"\napi_key_env = "A"\napi_key_file = "b"', "one of them"),
        ('name = "a"\nwire = "openai"\n[[providers]]\nname = "a"\nwire = "openai"', "twice"),
    ],
)
def test_a_wrong_entry_is_told_and_no_key_is_quoted(
    tmp_path: Path, entry: str, problem: str
) -> None:
    file = tmp_path / "models.toml"
    file.write_text(f"[[providers]]\n{entry}\n")
    with pytest.raises(ConfigurationError, match=problem) as caught:
        ModelsFile.read(file)
    assert "hunter2" not in str(caught.value)


def test_a_key_is_read_from_its_variable_or_file_and_appears_in_no_repr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAT_KEY", "hunter2-secret")
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("FROM_DOTENV=hunter3-secret\n")
    (tmp_path / "key").write_text("hunter4-secret\r\n")
    made = {
        "hunter2-secret": NamedProvider(name="a", wire="openai", api_key_env="CHAT_KEY"),
        "hunter3-secret": NamedProvider(name="a", wire="openai", api_key_env="FROM_DOTENV"),
        "hunter4-secret": NamedProvider(name="a", wire="openai", api_key_file=tmp_path / "key"),
    }
    for key, provider in made.items():
        found = provider.read_key()
        assert found is not None
        assert found.get_secret_value() == key
        assert "hunter" not in f"{provider!r} {found!r}"
    missing = NamedProvider(name="a", wire="openai", api_key_file=tmp_path / "none")
    assert missing.read_key() is None
    service = opened(tmp_path, TWO).factory.create("chat")
    assert "hunter" not in repr(vars(service) | {"_api_key": ""})
