"""How a job's document is cut: as the caller asked, or into smaller chunks if the model needs it.

When the model refuses a chunk as too long, the unpaid chunks are cut smaller, and the others stay.
"""

from dataclasses import dataclass, replace

from promptstack.config.settings import MIN_CHUNK_TOKENS
from promptstack.repositories.jobs.records import Claim
from promptstack.services.documents.chunking import ROOM, Chunker
from promptstack.services.llm.errors import ContextTooLong
from promptstack.services.llm.pool import ProviderPool


@dataclass(frozen=True)
class Cutting:
    """How a document is cut."""

    asked: Chunker
    fits: Chunker
    """The same, with chunks that the model takes, as far as is known."""


class Cutter:
    """Knows how to cut documents, and learns how long a model's texts may be."""

    def __init__(self, chunker: Chunker, providers: ProviderPool) -> None:
        self._chunker = chunker
        self._providers = providers
        self.fitting: dict[tuple[str, str], int] = {}
        """The length of chunks, in our tokens, that a model took after it refused longer ones."""

    def cutting_for(self, claim: Claim) -> Cutting:
        """How to cut the job's document: as the caller asked, and so that the model takes it."""
        service = self._providers.get(claim.provider)
        tokens = claim.request.get("chunk_tokens")
        asked = self._chunker if tokens is None else Chunker(tokens)
        asked = asked.by(service.facts_of(claim.model).tokenizer)
        fits = asked.taken_by(service.limits_of(claim.model).text_tokens)
        return Cutting(asked, fits.at_most(self.fitting.get((claim.provider, claim.model))))

    def smaller(self, claim: Claim, cutting: Cutting, text: str, error: ContextTooLong) -> Cutting:
        """Cut smaller after the model has refused a chunk's `text`, also the next documents.

        Raises the `error` if chunks can't be smaller.
        """
        source, fits = claim.request["source"], cutting.fits
        fits = fits.at_most(_fitting_tokens(fits.size(text, source), error))
        while len(fits.cut(text, source)) == 1:
            if fits.tokens == MIN_CHUNK_TOKENS:
                raise error
            fits = fits.at_most(fits.tokens * 3 // 4)
        # Other documents are alike, except for rare texts such as long numbers.
        limit = error.limit or 0  # no model has a limit below the smallest chunk
        least = (limit if limit >= MIN_CHUNK_TOKENS else cutting.asked.tokens) // 2
        self.fitting[claim.provider, claim.model] = max(fits.tokens, least)
        return replace(cutting, fits=fits)


def _fitting_tokens(before: int, error: ContextTooLong) -> int:
    """How many of our tokens to try after `before`, by what the provider said.

    Half if it said nothing, and never less than an eighth at once.
    """
    if error.limit is None or error.given is None:
        return before // 2
    # Other chunks may have more tokens in the same length.
    return max(before // 8, int(0.9 * before * (error.limit - ROOM) / error.given))
