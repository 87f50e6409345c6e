"""How an answer that is all of a job's result is kept."""

from collections.abc import Callable, Mapping

from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.records import Claim, JobSnapshot
from promptstack.repositories.session import UnitOfWork
from promptstack.services.llm.base import LLMResponse


class JobResult:
    """Keeps an answer as its job's result, with which the job has succeeded.

    As an object, and not as any function of a transaction, it can be kept together with those of
    other jobs: see `GroupCommit.succeed`.
    """

    def __init__(self, claim: Claim, read: Callable[[LLMResponse], Mapping[str, object]]) -> None:
        self.claim = claim
        self.read = read
        self.standing: JobSnapshot | None = None
        """How the job stood when its result was kept, where that is known."""

    def __call__(self, unit: UnitOfWork, answer: LLMResponse) -> None:
        """Keep the answer; also where the job has ended meanwhile."""
        result = self.read(answer)
        try:
            unit.steps.succeed(self.claim, result)
        except ClaimLost:
            unit.steps.keep_answer(self.claim, result)
