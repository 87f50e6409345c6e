"""The text of a job as it is produced, for Python: piece by piece until the job has ended."""

import time
from collections.abc import Callable, Iterator
from uuid import UUID

from promptstack.repositories.models import JobKind, JobState
from promptstack.services.errors import InvalidInput, NoAnswer
from promptstack.services.jobs.views import JobView
from promptstack.services.streams.pieces import Piece
from promptstack.services.streams.reader import TextStreams

LOOK_SECONDS = 0.5
"""How long nothing comes until the ledger is asked how the job stands."""


class JobTexts:
    """Follows texts. The ledger has the last word: Redis may have lost what it was shown."""

    def __init__(self, get: Callable[[UUID], JobView], streams: TextStreams) -> None:
        self._get = get
        self._streams = streams

    def follow(self, job: JobView, position: str, timeout: float) -> Iterator[Piece]:
        """Yield pieces of the text until the job has ended; see `JobService.stream`."""
        if job.kind is not JobKind.GENERATION:
            raise InvalidInput(f"Job {job.id} is a {job.kind}, which has no text.")
        deadline = time.monotonic() + timeout
        while True:
            pieces = self._streams.read({job.id: position}, LOOK_SECONDS).get(job.id, [])
            for piece in pieces:
                position = piece.position
                if piece.kind != "end":
                    yield piece
            if not pieces or pieces[-1].kind == "end":
                job = self._get(job.id)
                if job.state.is_final:
                    yield from self._rest(job, position)
                    return
            if time.monotonic() >= deadline:
                raise TimeoutError(f"Job {job.id} has not ended after {timeout:g} s; it goes on.")

    def _rest(self, job: JobView, position: str) -> Iterator[Piece]:
        if job.state is not JobState.SUCCEEDED or job.result is None:
            why = f" ({job.error_code}: {job.error})" if job.error_code else ""
            raise NoAnswer(f"Job {job.id} is {job.state} and has no answer{why}.")
        rest = self._streams.rest(job.id, position, job.result["text"], job.attempt)
        yield from (piece for piece in rest if piece.kind != "end")
