"""The names of models, as OpenAI's own client lists them."""

from pathlib import Path

import openai
import pytest
from openai import OpenAI

from promptstack.config.settings import Settings
from promptstack.tasks.worker_services import WorkerServices
from tests.http import live_server

ALIASES = """
[[aliases]]
name = "gpt-4o-mini"
targets = [{provider = "demo"}]

[[aliases]]
name = "team/vectors.v1"
targets = [{provider = "local"}]
"""


def test_the_sdk_lists_and_finds_names(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(ALIASES)
    with WorkerServices.open(settings.model_copy(update={"models_file": file})) as stack:
        key = stack.keys.create("ada@example.org", "Test")
        limited = stack.keys.create("ada@example.org", "Limited", providers=["local"])
        with (
            live_server(stack) as (_, url),
            OpenAI(base_url=f"{url}/openai/v1", api_key=key) as sdk,
        ):
            listed = {model.id: model.owned_by for model in sdk.models.list()}
            assert listed.items() >= {"gpt-4o-mini": "demo", "team/vectors.v1": "local"}.items()
            assert sdk.models.retrieve("gpt-4o-mini").object == "model"
            assert sdk.models.retrieve("team/vectors.v1").id == "team/vectors.v1"
            assert sdk.models.retrieve("demo/demo-1").owned_by == "demo"
            with pytest.raises(openai.NotFoundError) as caught:
                sdk.models.retrieve("nobody/knows.it")
            assert caught.value.code == "model_not_found"
            other = sdk.with_options(api_key=limited)
            assert "gpt-4o-mini" not in {model.id for model in other.models.list()}
            with pytest.raises(openai.NotFoundError):
                other.models.retrieve("gpt-4o-mini")
