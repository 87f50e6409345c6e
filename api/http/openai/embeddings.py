"""Embeddings: the client waits for the vectors of its inputs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from anyio import to_thread
from fastapi import Request, Response
from pydantic import BaseModel, StrictStr
from starlette.types import Receive, Scope, Send

from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.bodies import Given, IdempotencyKey
from promptstack.api.http.direct import or_gone
from promptstack.api.http.openai.routes import openai_router
from promptstack.api.http.openai.vector_calls import Terms, VectorCalls
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.answers import BYTES_PER_TOKEN, Capability
from promptstack.services.llm.embedding_requests import MAX_INPUTS, Dimensions
from promptstack.services.llm.packing import EmbeddingInput, bytes_of
from promptstack.services.openai.embeddings import EncodingFormat, embedding_list
from promptstack.services.text import check_storable
from promptstack.services.vectors.service import InputVector

router = openai_router()

ENDPOINT = "/embeddings"
FLEX = "flex"
WRITTEN_AT_ONCE = 16
"""Vectors that are written on the event loop: it takes a millisecond."""
MOST_TOKEN_ID = 2**31


class EmbeddingsBody(BaseModel):
    """Inputs, and how their vectors are answered."""

    model: Given
    input: Any = None
    dimensions: Dimensions | None = None
    encoding_format: EncodingFormat | None = None
    service_tier: StrictStr | None = None


@router.post(ENDPOINT)
def create_embeddings(
    body: EmbeddingsBody,
    request: Request,
    stack: Stack,
    caller: CurrentCaller,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Answer with the vectors of one text, or of several, or of their token ids."""
    inputs = inputs_of(body.input)
    meant = stack.model_names.resolve(
        body.model,
        Capability.EMBEDDING,
        key_limits=caller.key_limits,
        same_for=idempotency_key,
    )
    stack.factory.offered(meant.provider).check_embedding(meant.model, inputs, body.dimensions)
    terms = Terms(
        meant.provider,
        meant.model,
        body.dimensions,
        caller.user_id,
        caller.key_id,
        request,
        is_bulk=body.service_tier == FLEX,
        idempotency_key=idempotency_key,
    )
    return EmbeddingsAnswer(
        request.app.state.vector_calls, terms, inputs, body.encoding_format or "float"
    )


class EmbeddingsAnswer(Response):
    """Answers with the vectors once they are there.

    It waits as it is sent, on the server's own event loop. The handler of a large body has a loop
    of its own, for which others wait.
    """

    def __init__(
        self,
        calls: VectorCalls,
        terms: Terms,
        inputs: Sequence[EmbeddingInput],
        encoding_format: EncodingFormat,
    ) -> None:
        super().__init__()
        self._calls = calls
        self._terms = terms
        self._inputs = inputs
        self._encoding_format = encoding_format

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, then answer, unless the client has gone."""
        answer = await or_gone(self._answer(), receive)
        if answer is not None:
            await answer(scope, receive, send)

    async def _answer(self) -> Response:
        made, found = await self._calls.ask(self._terms, self._inputs)
        problem = made.problem or next((one for one in found if isinstance(one, Response)), None)
        if problem is not None:
            return problem
        vectors = [one for one in found if isinstance(one, InputVector)]
        write = partial(
            embedding_list,
            self._terms.model,
            [one.vector for one in vectors],
            tokens_of(self._inputs, vectors),
            self._encoding_format,
        )
        is_small = len(vectors) <= WRITTEN_AT_ONCE
        body = write() if is_small else await to_thread.run_sync(write)
        return Response(body, headers=made.headers, media_type="application/json")


def inputs_of(given: Any) -> list[EmbeddingInput]:
    """Read the input of a request. Raises `InvalidInput`."""
    if isinstance(given, list) and given and all(type(one) is int for one in given):
        given = [given]
    inputs = given if isinstance(given, list) else [given]
    if not inputs or given is None:
        raise _invalid("is missing: send a text, a list of texts, or token ids.")
    if len(inputs) > MAX_INPUTS:
        raise _invalid(f"has {len(inputs):,} parts; at most {MAX_INPUTS:,} are taken at once.")
    return [_input_of(one, place) for place, one in enumerate(inputs)]


def _input_of(given: Any, place: int) -> EmbeddingInput:
    if isinstance(given, str) and given:
        return check_storable(given, f"input[{place}]")
    if isinstance(given, list) and given:
        if all(type(one) is int and 0 <= one < MOST_TOKEN_ID for one in given):
            return tuple(given)
        raise _invalid("has token ids that are no whole numbers from 0 on.", place)
    if given in ("", []):
        raise _invalid("is empty; there is nothing to embed.", place)
    raise _invalid("is neither text nor a list of token ids.", place)


def _invalid(says: str, place: int | None = None) -> InvalidInput:
    name = "input" if place is None else f"input[{place}]"
    return InvalidInput(f"'{name}' {says}", pointer="/input")


def tokens_of(inputs: Sequence[EmbeddingInput], vectors: Sequence[InputVector]) -> int:
    """Return the tokens of inputs; estimated where nobody has counted them."""
    return sum(
        -(-bytes_of(given) // BYTES_PER_TOKEN) if found.tokens is None else found.tokens
        for given, found in zip(inputs, vectors, strict=True)
    )
