"""The names that clients send as their model, and whom they mean."""

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstack.config.models_file import ModelsFile
from promptstack.services.access.key_terms import KeyLimits
from promptstack.services.accounting.prices import maker_of
from promptstack.services.errors import InvalidInput, UnknownModel
from promptstack.services.llm.answers import Capability
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.llm.model_names import ModelNames
from promptstack.services.llm.requests import Fallback

GENERATION, EMBEDDING = Capability.GENERATION, Capability.EMBEDDING
FILE: dict[str, Any] = {
    "providers": [
        {
            "name": "chat",
            "wire": "openai",
            "base_url": "http://gpu1:8000/v1",
            "generation_model": "Qwen/Qwen3-8B",
        },
        {"name": "keyless", "wire": "openai", "api_key_env": "NOWHERE_SET"},
    ],
    "prices": [
        {"provider": "chat", "model": "openai/gpt-oss-20b", "input_per_million": 1},
        {"provider": "chat", "model": "llama-*", "input_per_million": 1},
    ],
    "aliases": [
        {
            "name": "fast",
            "targets": [
                {"provider": "openai", "model": "gpt-5-mini", "weight": 3},
                {"provider": "chat"},
                {"provider": "keyless", "model": "gpt-5-mini", "weight": 1_000},
            ],
            "fallbacks": [{"provider": "demo"}, {"provider": "keyless"}],
        },
        {"name": "gpt-4o-mini", "targets": [{"provider": "demo"}]},
        {"name": "away", "targets": [{"provider": "keyless", "model": "gpt-5"}]},
    ],
}


def names_of(
    file: dict[str, Any] = FILE, keys: tuple[str, ...] = ("openai",), seed: int = 1
) -> ModelNames:
    models_file = ModelsFile.model_validate(file)
    remote = {"openai", "anthropic", "gemini"}
    options: dict[str, dict[str, Any]] = {
        name: {"api_key": "sk-x" if name in keys else None} for name in remote
    }
    for server in models_file.providers:
        options[server.name] = {"api_key": None, "base_url": server.base_url}
    factory = LLMServiceFactory(
        options, providers=models_file.providers, none_can_ask=lambda _: True
    )
    built_in = [
        ModelsFile.model_validate({"providers": [{"name": one, "wire": one}]}).providers[0]
        for one in sorted(remote)
    ]
    return ModelNames(
        factory,
        models_file,
        [*built_in, *models_file.providers],
        {GENERATION: "openai", EMBEDDING: "openai"},
        maker_of=maker_of,
        random=Random(seed),
    )


@pytest.mark.parametrize(
    ("name", "provider", "model"),
    [
        ("gpt-4o-mini", "demo", "demo-1"),
        ("gpt-4.1-nano", "openai", "gpt-4.1-nano"),
        ("gpt-99-next", "openai", "gpt-99-next"),
        ("Qwen/Qwen3-8B", "chat", "Qwen/Qwen3-8B"),
        ("openai/gpt-oss-20b", "chat", "openai/gpt-oss-20b"),
        ("openai/gpt-4.1", "openai", "gpt-4.1"),
        ("chat/some/model.v1", "chat", "some/model.v1"),
        ("demo-1", "demo", "demo-1"),
    ],
)
def test_a_name_means_who_knows_it(name: str, provider: str, model: str) -> None:
    found = names_of().resolve(name, GENERATION)
    assert (found.provider, found.model, found.fallbacks) == (provider, model, ())


def test_names_of_embeddings_mean_providers_of_embeddings() -> None:
    names = names_of()
    assert names.resolve("text-embedding-3-large", EMBEDDING).provider == "openai"
    found = names.resolve(local_model(names), EMBEDDING)
    assert found.provider == "local"
    with pytest.raises(UnknownModel):
        names.resolve("gpt-4o-mini", EMBEDDING)  # its target makes no vectors


def local_model(names: ModelNames) -> str:
    return next(one.id for one in names.listed() if one.owned_by == "local")


def test_an_unknown_name_goes_to_the_only_server_that_can_know_it() -> None:
    names = names_of(keys=())
    assert names.resolve("my-own-model", GENERATION).provider == "chat"
    with pytest.raises(UnknownModel, match=r"'my-own-model' does not exist"):
        names_of(keys=("openai",)).resolve("my-own-model", GENERATION)


def test_a_provider_without_a_key_says_so() -> None:
    with pytest.raises(InvalidInput, match=r"anthropic needs an API key"):
        names_of().resolve("anthropic/claude-haiku-4-5", GENERATION)
    with pytest.raises(UnknownModel):
        names_of().resolve("away", GENERATION)


def test_an_alias_has_fallbacks_that_can_be_asked() -> None:
    assert names_of().resolve("fast", GENERATION).fallbacks == (
        Fallback(provider="demo", model="demo-1"),
    )


def test_a_key_resolves_only_into_what_it_may_ask() -> None:
    names = names_of()
    chat_only = KeyLimits.of(["chat"], None)
    for _ in range(20):
        found = names.resolve("fast", GENERATION, key_limits=chat_only)
        assert (found.provider, found.fallbacks) == ("chat", ())
    no_mini = KeyLimits.of(None, ["gpt-5-nano*"])
    for name in ("fast", "gpt-4o-mini", "gpt-5-mini", "openai/gpt-5-mini", "Qwen/Qwen3-8B"):
        with pytest.raises(UnknownModel):
            names.resolve(name, GENERATION, key_limits=no_mini)
    assert names.resolve("gpt-5-nano", GENERATION, key_limits=no_mini).model == "gpt-5-nano"


def test_a_list_has_what_the_key_may_ask() -> None:
    names = names_of()
    ids = [one.id for one in names.listed()]
    assert ids[:2] == ["fast", "gpt-4o-mini"]
    assert {"Qwen/Qwen3-8B", "openai/gpt-oss-20b", "demo-1"} <= set(ids)
    assert not {"away", "llama-*"} & set(ids)
    assert len(ids) == len(set(ids))
    limited = KeyLimits.of(["chat"], ["openai/*", "Qwen/*"])
    assert {one.id for one in names.listed(limited)} == {
        "fast",
        "Qwen/Qwen3-8B",
        "openai/gpt-oss-20b",
    }
    with pytest.raises(UnknownModel):
        names.find("demo-1", limited)


@given(weights=st.lists(st.integers(1, 20), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_targets_are_drawn_by_their_weight(weights: list[int], seed: int) -> None:
    targets = [
        {"provider": "openai", "model": f"gpt-{number}", "weight": weight}
        for number, weight in enumerate(weights)
    ]
    names = names_of({"aliases": [{"name": "all", "targets": targets}]}, seed=seed)
    draws = 400
    counts = Counter(names.resolve("all", GENERATION).model for _ in range(draws))
    for number, weight in enumerate(weights):
        share = weight / sum(weights)
        deviation = (draws * share * (1 - share)) ** 0.5
        assert abs(counts[f"gpt-{number}"] - draws * share) <= 7 * deviation + 1


@given(key=st.text(max_size=30))
def test_a_request_that_is_sent_again_stays_the_same(key: str) -> None:
    first = names_of(seed=1).resolve("fast", GENERATION, same_for=key)
    assert names_of(seed=2).resolve("fast", GENERATION, same_for=key) == first


def test_a_target_that_stands_twice_is_drawn_twice_as_often() -> None:
    targets = [{"provider": "openai", "model": name} for name in ("gpt-5", "gpt-5", "gpt-5-mini")]
    names = names_of({"aliases": [{"name": "mixed", "targets": targets}]})
    drawn = Counter(names.resolve("mixed", GENERATION).model for _ in range(600))
    assert 330 < drawn["gpt-5"] < 470
