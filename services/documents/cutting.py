"""How a job's document is cut: into the chunks that were asked for, or smaller, as its model needs.

What is unpaid is cut smaller once the model has refused a chunk; what has vectors stays as it is.
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
    """With chunks that its model takes, as far as is known."""

    def smaller(self, text: str, source: str, error: ContextTooLong) -> "Cutting":
        """Cut so that the model takes a chunk's `text`, which it has refused.

        Raises the `error` where no smaller chunk is left to try.
        """
        fits = self.fits.at_most(_fitting_tokens(self.fits.size(text, source), error))
        while len(fits.cut(text, source)) == 1:
            if fits.tokens == MIN_CHUNK_TOKENS:
                raise error
            fits = fits.at_most(fits.tokens * 3 // 4)
        return replace(self, fits=fits)


class Cutter:
    """Knows how documents are cut, and learns how long a model's texts may be."""

    def __init__(self, chunker: Chunker, providers: ProviderPool) -> None:
        self._chunker = chunker
        self._providers = providers
        self.fitting: dict[tuple[str, str], int] = {}
        """How long the chunks were that a model took after longer ones, in our tokens."""

    def cutting_for(self, claim: Claim) -> Cutting:
        """How the job's document is cut: as was asked for, and so that its model takes it."""
        service = self._providers.get(claim.provider)
        tokens = claim.request.get("chunk_tokens")
        asked = self._chunker if tokens is None else Chunker(tokens)
        asked = asked.by(service.facts_of(claim.model).tokenizer)
        fits = asked.taken_by(service.limits_of(claim.model).text_tokens)
        return Cutting(asked, fits.at_most(self.fitting.get((claim.provider, claim.model))))

    def smaller(self, claim: Claim, cutting: Cutting, text: str, error: ContextTooLong) -> Cutting:
        """Cut smaller, and begin the model's next documents so; see `Cutting.smaller`."""
        smaller = cutting.smaller(text, claim.request["source"], error)
        # Other documents are like this one, but for what few have, such as long numbers.
        limit = error.limit or 0  # no model has a limit below the smallest chunk
        least = (limit if limit >= MIN_CHUNK_TOKENS else cutting.asked.tokens) // 2
        self.fitting[claim.provider, claim.model] = max(smaller.fits.tokens, least)
        return smaller


def _fitting_tokens(before: int, error: ContextTooLong) -> int:
    """How many of our tokens a text may have that has `before`: by what the provider said.

    Half where it said nothing, and not less than an eighth at once.
    """
    if error.limit is None or error.given is None:
        return before // 2
    # Other chunks are denser than this one.
    return max(before // 8, int(0.9 * before * (error.limit - ROOM) / error.given))
