"""A request for vectors: the inputs, and the size of the vectors."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field

from promptstack.services.llm.packing import EmbeddingInput
from promptstack.services.validation.bounds import Text

MAX_INPUTS = 2_048
"""Of one request, as at OpenAI."""
MAX_DIMENSIONS = 16_000
"""As many numbers as pgvector keeps in a vector."""

TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
TokenIds = Annotated[tuple[TokenId, ...], Field(min_length=1, fail_fast=True)]
Input = Annotated[Text, Field(strict=True, min_length=1)] | TokenIds
Dimensions = Annotated[int, Field(strict=True, ge=1, le=MAX_DIMENSIONS)]


class EmbeddingRequest(BaseModel):
    """Inputs, each of which gets a vector."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: Annotated[tuple[Input, ...], FailFast(), Field(min_length=1, max_length=MAX_INPUTS)]
    dimensions: Dimensions | None = None
    """The size of the vectors; None is the model's own."""

    @classmethod
    def stored(cls, request: dict[str, Any]) -> "EmbeddingRequest":
        """Read a request that was checked before it was stored."""
        inputs: list[EmbeddingInput] = [
            one if isinstance(one, str) else tuple(one) for one in request["inputs"]
        ]
        return cls.model_construct(inputs=tuple(inputs), dimensions=request.get("dimensions"))
