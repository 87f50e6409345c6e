"""What a run asks of all its items, checked before any of them is read."""

import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from promptstack.repositories.runs.models import RunKind
from promptstack.services.llm.base import Capability, LLMService
from promptstack.services.llm.parameters import GenerationParameters
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.runs.intake.estimates import NewRun
from promptstack.services.runs.intake.ingest import embedding_hasher, generation_hasher, text_only
from promptstack.services.runs.json_schema.answers import AnswerSchema
from promptstack.services.sources.reading import Input
from promptstack.services.validation.request_bounds import RequestBounds


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
    bounds: RequestBounds,
    reuse: bool,
) -> NewRun:
    """What a run of generations asks: `how` has a model and `GenerationParameters`.

    Raises `InvalidInput`.
    """
    fields = dict(how)
    model = service.choose_model(Capability.GENERATION, fields.pop("model", None))
    given = bounds.checked(GenerationParameters, **fields)
    service.check_parameters(model, given)
    if given.json_schema is not None:
        AnswerSchema(given.json_schema, bounds.schemas)
    parameters = given.model_dump(mode="json", exclude_defaults=True)

    def check(one: Input) -> None:
        if one.messages is not None:
            target = (provider, model)
            service.check_turns(GenerationRequest.of_item(given, target, None, one.messages))

    hasher = generation_hasher([str(user_id), parameters, None if reuse else time.time_ns()])
    return NewRun(RunKind.GENERATION, provider, model, parameters, hasher, check)
