"""What a run asks of all its items, checked before any of them is read."""

import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from promptstack.repositories.runs.models import RunKind
from promptstack.services.llm.base import Capability, LLMService
from promptstack.services.llm.requests import TOOLS, GenerationRequest
from promptstack.services.runs.intake.estimates import NewRun
from promptstack.services.runs.intake.ingest import embedding_hasher, generation_hasher, text_only
from promptstack.services.runs.intake.new_run import RunDefaults
from promptstack.services.runs.json_schema.answers import AnswerSchema
from promptstack.services.runs.shards.workload import OF_EACH_ITEM
from promptstack.services.sources.reading import Input
from promptstack.services.validation.bounds import refused_in_words


def plan_embedding(
    provider: str, service: type[LLMService], how: Mapping[str, Any], user_id: UUID | None
) -> NewRun:
    """What a run of embeddings asks: a `model`. Raises `InvalidInput`."""
    model = service.choose_model(Capability.EMBEDDING, how["model"])
    return NewRun(RunKind.EMBEDDING, provider, model, {}, embedding_hasher(user_id), text_only)


def plan_generation(
    provider: str,
    service: type[LLMService],
    how: Mapping[str, Any],
    user_id: UUID | None,
    *,
    defaults: RunDefaults,
    reuse: bool,
) -> NewRun:
    """What a run of generations asks: fields of a `GenerationRequest`. Raises `InvalidInput`."""
    fields = dict(how)
    model = service.choose_model(Capability.GENERATION, fields.pop("model", None))
    schema = fields.get("json_schema")
    defaults.schema_bounds.check(schema)
    with refused_in_words():
        tools = TOOLS.validate_python(tuple(fields.pop("tools", ())))
    defaults.schema_bounds.check_tools([tool.parameters for tool in tools])
    with refused_in_words():
        request = GenerationRequest(
            provider=provider,
            model=model,
            prompt=OF_EACH_ITEM,
            tools=tools,
            options=fields.pop("provider_options", {}),
            **fields,
        )
    defaults.json_bounds.check(request)
    service.check_request(request)
    if schema is not None:
        AnswerSchema(schema, defaults.schema_bounds)
    parameters = request.model_dump(
        mode="json", exclude_defaults=True, exclude={"provider", "model", "prompt"}
    )

    def check(one: Input) -> None:
        if one.messages is not None:
            service.check_request(request.asked_with(None, one.messages))

    hasher = generation_hasher([str(user_id), parameters, None if reuse else time.time_ns()])
    return NewRun(RunKind.GENERATION, provider, model, parameters, hasher, check)
