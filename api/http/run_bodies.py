"""What is asked of a new run: its fields, where its items come from, and what it is answered."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse
from pydantic import BaseModel, FailFast, Field, JsonValue

from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.bodies import Body, Given, InCollection, NotBlank
from promptstack.api.http.idempotency import Keyed
from promptstack.api.http.uploads import FORM, FORMATS, GivenUpload, NamedFile
from promptstack.api.http.waiting import Wait
from promptstack.config.models_file import Money
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.parameters import GenerationParameters
from promptstack.services.runs.views import Preflight, RunView
from promptstack.services.sources.reading import BadInput, Format, Reading, Source
from promptstack.services.validation.bounds import ChunkTokens, Dollars, InFlight, Name, Text

MAX_COLUMNS = 1_000
SourceFormat = Literal["jsonl", "csv", "parquet", "lines"]
Record = NotBlank | dict[str, JsonValue]


class RunBody(Body):
    """Fields of every run."""

    items: Annotated[list[Record], FailFast(), Field(min_length=1)] = Field(
        default_factory=list,
        description="Texts, or objects with `text`, `prompt` or `messages`, a `custom_id`, and "
        "other fields that are kept as metadata; also requests as OpenAI's Batch API takes them "
        "(`custom_id`, `url`, `body`). As many as the server's MAX_BODY_BYTES holds; more in a "
        "file.",
    )
    format: SourceFormat | None = Field(
        None, description="Of a file, where its name or type doesn't tell."
    )
    text_column: Given | None = Field(
        None, description="Field of the text. Unset: `text`, else `prompt`."
    )
    id_column: Given | None = Field(
        None, description="Field of the id. Unset: `custom_id`, else `id`."
    )
    columns: Annotated[list[Given], Field(max_length=MAX_COLUMNS)] | None = Field(
        None, description="Fields to keep as metadata. Unset: all others."
    )
    name: Name = Field("", description="For you to find it again.")
    skip_bad: bool = Field(
        False, description="Go on without items that can't be asked for; else the run is refused."
    )
    in_flight: InFlight | None = Field(None, description="Calls at once in each worker.")
    max_cost_usd: Dollars | None = Field(
        None, description="The run ends before it could cost more."
    )
    collection: InCollection = None


class EmbeddingRunBody(RunBody):
    """Texts to embed."""

    chunk_tokens: ChunkTokens | None = Field(
        None, description="Cut each text into chunks of at most so many tokens."
    )


class GenerationRunBody(GenerationParameters, RunBody):
    """Prompts to answer, and how."""

    template: Text | None = Field(
        None, description="What a prompt is made of: `Summarise: {text}`, with fields of the item."
    )
    reuse: bool = Field(True, description="Take answers that earlier runs have paid for.")


class RunCheck(BaseModel):
    """What a run would do and cost. Nothing was paid, and nothing is kept of it."""

    provider: str
    model: str
    items: int
    bad: int = Field(description="Items that can't be asked for.")
    faults: list[BadInput] = Field(description="The first of these.")
    duplicates: int = Field(description="Of the bad ones, those with the id of an earlier one.")
    to_pay: int = Field(description="Different contents that were not paid for yet.")
    reused: int = Field(description="Items that cost nothing.")
    tokens: int = Field(description="Expected, input and output together.")
    cost_usd: Money | None = Field(description="Expected; null if no price is known.")
    max_cost_usd: Money | None
    seconds: float | None = Field(description="At the known limits; null if none is known.")
    is_over_limit: bool = Field(
        description="Whether it will probably reach its limit before it is done."
    )

    @classmethod
    def of(cls, preflight: Preflight) -> "RunCheck":
        """Take it off what the service says."""
        return cls(**{name: getattr(preflight, name) for name in cls.model_fields})


DryRun = Annotated[
    bool, Query(description="Only check the items and say what the run would cost (200).")
]
AT_ONCE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": RunCheck | RunView,
        "description": "With `dry_run`: what the run would do and cost. With `wait`: the run, "
        "where it has ended in time.",
    }
}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"type": "object", "required": ["file"], "properties": {"file": _BYTES["schema"]}}
UPLOADED_BODIES = {
    "requestBody": {"content": {FORM: {"schema": _FORM}, **dict.fromkeys(FORMATS, _BYTES)}}
}


class RunRequest:
    """A request for a new run, with all that came with it."""

    def __init__(
        self,
        stack: Stack,
        caller: CurrentCaller,
        wait: Wait,
        upload: GivenUpload,
        keyed: Keyed,
    ) -> None:
        self.stack = stack
        self._caller = caller
        self._wait = wait
        self._upload = upload
        self._keyed = keyed

    def accepted(self, body: RunBody, start: Callable[..., RunView]) -> Response:
        """Start the run, and say where to ask for it."""
        keyed = self._keyed
        if keyed is not None and self._upload is not None:
            said = keyed.request_hash + self._upload.digest()
            keyed = replace(keyed, request_hash=sha256(said.encode()).hexdigest())
        source, how = self._of(body)
        return self._wait.for_new_run(start(source, skip_bad=body.skip_bad, keyed=keyed, **how))

    def checked(self, body: RunBody, prepare: Callable[..., Preflight]) -> JSONResponse:
        """Say what the run would do and cost, and keep nothing of it."""
        source, how = self._of(body)
        preflight = prepare(source, **how)
        self.stack.runs.discard(preflight.run_id)
        return JSONResponse(jsonable_encoder(RunCheck.of(preflight)))

    def _of(self, body: RunBody) -> tuple[Source, dict[str, Any]]:
        """Return the source of a run, and the keywords of its call."""
        how = dict(body)
        items, format_ = how.pop("items"), how.pop("format")
        del how["skip_bad"]
        settings = self.stack.settings
        how |= self._caller.as_owner
        how["total_bytes"] = settings.max_rendered_bytes
        if bool(items) == (self._upload is not None):
            raise InvalidInput(
                f"A run has one source: `items`, or a file; {'both' if items else 'neither'} came."
            )
        source: Any = items
        if self._upload is not None:
            source = NamedFile(self._upload.file, self._upload.name)
            format_ = format_ or self._upload.format
            how["total_bytes"] = how["unpacked_bytes"] = settings.max_unpacked_bytes
            how["total_items"] = settings.max_run_items
            how["read_seconds"] = settings.upload_seconds
        elif format_ is not None:
            raise InvalidInput("`format` is for files; `items` need none.")
        columns = how.pop("columns")
        how["reading"] = Reading(
            format=None if format_ is None else Format(format_),
            text_column=how.pop("text_column"),
            id_column=how.pop("id_column"),
            columns=None if columns is None else tuple(columns),
            template=how.pop("template", None),
            chunk_tokens=how.pop("chunk_tokens", None),
        )
        return source, how


NewRunRequest = Annotated[RunRequest, Depends()]
