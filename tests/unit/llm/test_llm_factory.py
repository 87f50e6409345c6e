"""How providers are found and made."""

import subprocess
import sys

import pytest

from promptstack.services.errors import UnknownProvider
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.factory import LLMServiceFactory
from tests.processes import PATIENCE


class Local(LLMService):
    name = "local"

    def __init__(self, *, size: int = 1, color: str = "none") -> None:
        super().__init__()
        self.size = size
        self.color = color

    def estimate_tokens(self, text: str) -> int:
        return len(text)

    async def is_available(self) -> bool:
        return True


def test_the_built_in_providers_are_known() -> None:
    assert {"demo", "local", "openai"} <= set(LLMServiceFactory().names())


def test_an_unknown_provider_names_the_known() -> None:
    factory = LLMServiceFactory()
    factory.register("mine", Local)

    for ask in (factory.service_class, factory.create):
        with pytest.raises(UnknownProvider, match=r"no provider 'opnai'.*demo.*mine.*openai"):
            ask("opnai")


def test_a_long_name_is_cut_in_the_error() -> None:
    with pytest.raises(UnknownProvider) as caught:
        LLMServiceFactory().service_class("x" * 10_000)

    assert len(str(caught.value)) < 500


def test_a_provider_can_be_registered_or_replaced() -> None:
    factory = LLMServiceFactory()
    factory.register("mine", Local)
    factory.register("openai", Local)

    assert "mine" in factory.names()
    assert factory.names().count("openai") == 1
    assert factory.service_class("openai") is Local
    assert isinstance(factory.create("mine"), Local)


def test_a_service_gets_its_options_overridden_by_the_call() -> None:
    factory = LLMServiceFactory({"mine": {"size": 2, "color": "red"}})
    factory.register("mine", Local)

    service = factory.create("mine", color="blue")

    assert isinstance(service, Local)
    assert (service.size, service.color) == (2, "blue")
    again = factory.create("mine")
    assert isinstance(again, Local)
    assert again.color == "red"


def test_each_create_makes_a_new_service() -> None:
    factory = LLMServiceFactory()
    factory.register("mine", Local)

    assert factory.create("mine") is not factory.create("mine")


def test_a_provider_comes_in_by_its_entry_point_and_is_imported_only_then() -> None:
    program = """
import sys
from promptstack.services.llm.factory import LLMServiceFactory
factory = LLMServiceFactory()
factory.names()
assert "openai" not in sys.modules
print(factory.service_class("openai").name, "openai" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )

    assert done.stdout.split() == ["openai", "True"]
