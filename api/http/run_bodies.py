"""What is asked of a new run: its fields, where its items come from, and what it is answered."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse
from pydantic import BaseModel, FailFast, Field, JsonValue

from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.bodies import Body, Given, InCollection, NotBlank
from promptstack.api.http.idempotency import Keyed
from promptstack.api.http.later import AnswerLater
from promptstack.api.http.transfers import TransferSlots
from promptstack.api.http.uploads import FORM, FORMATS, GivenUpload, NamedFile
from promptstack.api.http.waiting import Wait
from promptstack.config.models_file import Money
from promptstack.repositories.idempotency import KeyedRequest
from promptstack.repositories.run_models import RunKind
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.parameters import GenerationParameters
from promptstack.services.objects.storage import MAX_URL_CHARACTERS
from promptstack.services.runs.views import Preflight, RunView
from promptstack.services.sources.reading import BadInput, Format, Reading, Source
from promptstack.services.validation.bounds import ChunkTokens, Dollars, InFlight, Name, Text

MAX_COLUMNS = 1_000
ObjectUrl = Annotated[Text, Field(pattern=r"^s3://", max_length=MAX_URL_CHARACTERS)]
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
    source_url: ObjectUrl | None = Field(
        None, description="A file in object storage in place of `items`: `s3://bucket/name.jsonl`."
    )
    output_url: ObjectUrl | None = Field(
        None,
        description="Where results are written when the run has ended, and failures beside it as "
        "`<stem>.errors.jsonl`; the suffix tells the format.",
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
        request: Request,
        stack: Stack,
        caller: CurrentCaller,
        wait: Wait,
        *,
        upload: GivenUpload,
        keyed: Keyed,
    ) -> None:
        self.stack = stack
        self._slots: TransferSlots = request.app.state.uploads.slots
        self._caller = caller
        self._wait = wait
        self._upload = upload
        self._keyed = keyed

    def answer(self, body: RunBody, kind: RunKind, *, is_dry: bool) -> Response:
        """Start the run, or only say what it would do and cost."""
        work = partial(self.checked if is_dry else self.accepted, body, kind)
        # An object may take as long as a file of its size.
        return work() if body.source_url is None else AnswerLater(work)

    def accepted(self, body: RunBody, kind: RunKind) -> Response:
        """Start the run, and say where to ask for it."""
        runs = self.stack.runs
        start = runs.embed if kind is RunKind.EMBEDDING else runs.generate
        with self._source(body) as source:
            how = self._keywords(body, kind)
            run: RunView = start(source, skip_bad=body.skip_bad, keyed=self._whole_key(), **how)
        return self._wait.for_new_run(run)

    def checked(self, body: RunBody, kind: RunKind) -> JSONResponse:
        """Say what the run would do and cost, and keep nothing of it."""
        runs = self.stack.runs
        is_embedding = kind is RunKind.EMBEDDING
        prepare = runs.prepare_embedding if is_embedding else runs.prepare_generation
        with self._source(body) as source:
            preflight: Preflight = prepare(source, **self._keywords(body, kind))
        runs.discard(preflight.run_id)
        return JSONResponse(jsonable_encoder(RunCheck.of(preflight)))

    def _whole_key(self) -> KeyedRequest | None:
        """Return the request with a hash of all that was said, the content of a file included."""
        if self._keyed is None or self._upload is None:
            return self._keyed
        said = self._keyed.request_hash + self._upload.digest()
        return replace(self._keyed, request_hash=sha256(said.encode()).hexdigest())

    @contextmanager
    def _source(self, body: RunBody) -> Iterator[Source]:
        """Open where the items come from."""
        given = [bool(body.items), body.source_url is not None, self._upload is not None]
        if given.count(True) != 1:
            raise InvalidInput(
                "A run has one source: `items`, `source_url`, or a file; "
                f"{'several' if any(given) else 'neither'} came."
            )
        if self._upload is not None:
            yield NamedFile(self._upload.file, self._upload.name)
        elif body.source_url is not None:
            storage, user_id = self.stack.object_storage, self._caller.user_id
            url = storage.check(body.source_url, user_id)
            with self._slots.taken_by(user_id), storage.reading(url) as file:
                yield file
        else:
            yield body.items

    def _keywords(self, body: RunBody, kind: RunKind) -> dict[str, Any]:
        """Return the keywords of the service's call."""
        how: dict[str, Any] = dict(body) | self._caller.as_owner
        for name in ("items", "source_url", "skip_bad"):
            del how[name]
        settings = self.stack.settings
        format_ = how.pop("format")
        if body.items:
            if format_ is not None:
                raise InvalidInput("`format` is for files; `items` need none.")
            how["total_bytes"] = settings.max_rendered_bytes
        else:
            format_ = format_ or (self._upload.format if self._upload else None)
            how["total_bytes"] = how["unpacked_bytes"] = settings.max_unpacked_bytes
            how["total_items"] = settings.max_run_items
            how["read_seconds"] = settings.upload_seconds
        if body.output_url is not None:
            self.stack.run_outputs.check(body.output_url, kind, self._caller.user_id)
        columns = how.pop("columns")
        how["reading"] = Reading(
            format=None if format_ is None else Format(format_),
            text_column=how.pop("text_column"),
            id_column=how.pop("id_column"),
            columns=None if columns is None else tuple(columns),
            template=how.pop("template", None),
            chunk_tokens=how.pop("chunk_tokens", None),
        )
        return how


NewRunRequest = Annotated[RunRequest, Depends()]
