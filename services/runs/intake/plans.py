"""What a run asks of all its items, checked before any of them is read."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from promptstack.repositories.run_models import RunKind
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.answers import Capability
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.llm.parameters import GenerationParameters
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.runs.intake.ingest import embedding_hasher, generation_hasher, text_only
from promptstack.services.runs.intake.new_run import (
    GenerationRunKeywords,
    NewRun,
    RunDefaults,
    RunKeywords,
    RunOptions,
)
from promptstack.services.runs.json_schema.answers import AnswerSchema
from promptstack.services.sources.batch_lines import BatchLines
from promptstack.services.sources.reading import Input
from promptstack.services.validation.bounds import refused_in_words


@dataclass(frozen=True)
class RunPlan:
    """A run whose source is still to be read."""

    lines: BatchLines
    """Makes a `NewRun`, together with the parameters that requests in the source have."""
    options: RunOptions


def plan_embedding(
    factory: LLMServiceFactory, defaults: RunDefaults, keywords: RunKeywords
) -> RunPlan:
    """Plan a run of embeddings. Raises `InvalidInput`."""
    rest: dict[str, Any] = {**keywords}
    provider = rest.pop("provider", None) or defaults.embedding_provider
    model = rest.pop("model", None)
    with refused_in_words():
        options = RunOptions(**rest)
    service = factory.offered(provider)

    def plan(asked: Mapping[str, Any]) -> NewRun:
        chosen = service.choose_model(Capability.EMBEDDING, model or asked.get("model"))
        if options.key_limits is not None:
            options.key_limits.check(provider, chosen)
        size = asked.get("dimensions")
        service.check_embedding(chosen, dimensions=size)
        hasher = embedding_hasher(options.user_id, size)
        # The form in which vectors are written is asked for by who writes them.
        own = {name: asked[name] for name in ("dimensions", "encoding_format") if name in asked}
        return NewRun(RunKind.EMBEDDING, provider, chosen, own, hasher, text_only)

    return RunPlan(BatchLines(RunKind.EMBEDDING, plan), options)


def plan_generation(
    factory: LLMServiceFactory,
    defaults: RunDefaults,
    keywords: GenerationRunKeywords,
    preferred: Callable[[UUID | None], str | None],
) -> RunPlan:
    """Plan a run of generations. What the caller says goes before what the source says.

    `preferred` is the provider of a user's runs that name none. Raises `InvalidInput`.
    """
    rest: dict[str, Any] = {**keywords}
    named = rest.pop("provider", None)
    reuse = rest.pop("reuse", True)
    own_options = {
        **_options(rest.pop("options", None)),
        **_options(rest.pop("provider_options", None)),
    }
    own = {name: rest.pop(name, None) for name in ("model", *GenerationParameters.model_fields)}
    said = {name: value for name, value in own.items() if value not in (None, [], ())}
    with refused_in_words():
        options = RunOptions(**rest)
    provider = named or preferred(options.user_id) or defaults.generation_provider
    service = factory.offered(provider)
    bounds = defaults.request_bounds

    def plan(asked: Mapping[str, Any]) -> NewRun:
        theirs = service.take_openai_options(asked.get("options", {}))
        fields = {**asked, **said, "options": {**theirs, **own_options}}
        model = service.choose_model(Capability.GENERATION, fields.pop("model", None))
        if options.key_limits is not None:
            options.key_limits.check(provider, model)
        given = bounds.checked(GenerationParameters, **fields)
        service.check_parameters(model, given)
        if given.json_schema is not None:
            AnswerSchema(given.json_schema, bounds.schemas)
        parameters = given.model_dump(mode="json", exclude_defaults=True)

        request = GenerationRequest.of_run(given, provider, model)

        def check(one: Input) -> None:
            if one.messages is not None:
                service.check_turns(request.with_input(None, one.messages))

        salt = None if reuse else time.time_ns()
        hasher = generation_hasher([str(options.user_id), parameters, salt])
        return NewRun(RunKind.GENERATION, provider, model, parameters, hasher, check)

    return RunPlan(BatchLines(RunKind.GENERATION, plan), options)


def _options(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping | None):
        raise InvalidInput("The options of a run must be an object: names with their values.")
    return given or {}
