"""One run of many items beside the jobs, and what became of it.

As the judge, it reads the tables with SQL of its own, and the provider's books.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from promptstack.chaos.attempts import BREAKS_CALLS, Attempt, is_under_way
from promptstack.chaos.driver import Happened
from promptstack.chaos.judge import read
from promptstack.services.runs.service import RunService
from promptstack.simulator.ledger import billing_key

IN_FLIGHT = 8
MAX_TOKENS = 64
MAX_RETRIES = 10

STATE = "SELECT state, finished_at FROM runs WHERE id = %s"
ITEMS = (
    "SELECT i.text, o.run_id IS NOT NULL AND o.error_code IS NULL, a.result ->> 'text', "
    "CASE WHEN o.run_id IS NULL THEN 'not ended' ELSE o.error_code END "
    "FROM items i LEFT JOIN outcomes o ON o.run_id = i.run_id AND o.position = i.position "
    "LEFT JOIN answers a ON a.content_hash = i.content_hash WHERE i.run_id = %s"
)
ATTEMPTS = (
    "SELECT a.job_id, a.number, a.worker_id, a.state, a.billing, a.started_at, a.finished_at "
    "FROM attempts a JOIN jobs j ON j.id = a.job_id WHERE j.run_id = %s"
)


@dataclass(frozen=True)
class BatchVerdict:
    """What became of a run."""

    items: int
    state: str
    succeeded: int
    wrong: int
    """Successes whose answer is missing or another item's."""
    calls_billed: int
    billed_twice: int
    """Calls billed beyond the first of their item."""
    in_flight_at_faults: int
    """Its calls under way at a worker when it was killed, frozen, stopped, or cut off."""
    unrecorded: int
    """Billed calls beyond those that the ledger has."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Items that did not succeed, by the reason."""

    def problems(self) -> list[str]:
        """Say what must not be, in words; empty where all is well."""
        found = {
            f"the run is {self.state}": self.state != "completed",
            f"{self.items - self.succeeded} items of the run did not succeed": self.items
            - self.succeeded,
            f"{self.wrong} answers of the run are missing or another item's": self.wrong,
            f"{self.unrecorded} billed calls of the run are not on record": self.unrecorded,
            f"{self.billed_twice} calls of the run billed twice, {self.in_flight_at_faults} in "
            "flight": max(0, self.billed_twice - self.in_flight_at_faults),
        }
        return [words for words, is_so in found.items() if is_so]


class Batch:
    """One generation run of the load."""

    def __init__(
        self,
        runs: RunService,
        model: str,
        *,
        name: str,
        items: int,
        dsn: str,
        books: Callable[[], Mapping[str, int]],
    ) -> None:
        """Hand it in."""
        self._prompts = [f"{name} item {number:06d}." for number in range(items)]
        run = runs.generate(
            self._prompts,
            provider="openai",
            model=model,
            max_tokens=MAX_TOKENS,
            in_flight=IN_FLIGHT,
            max_retries=MAX_RETRIES,
            name=name,
        )
        self._id, self._model = run.id, model
        self._dsn, self._books = dsn, books

    def judge(self, happened: Sequence[Happened]) -> BatchVerdict:
        """Judge it by the database and the provider's books, once nothing moves any more."""
        [(state, _)] = self._read(STATE)
        found = self._read(ITEMS)
        texts = {text: (bool(is_well), str(answer)) for text, is_well, answer, _ in found}
        attempts = [Attempt(*row) for row in self._read(ATTEMPTS)]
        billed = self._books()
        keys = [billing_key("/v1/chat/completions", self._model, one) for one in self._prompts]
        bills = [billed.get(key, 0) for key in keys]
        broken = [one for one in happened if one.fault in BREAKS_CALLS]
        recorded = sum(one.billing != "not_billed" for one in attempts)
        return BatchVerdict(
            items=len(self._prompts),
            state=str(state),
            succeeded=sum(is_well for is_well, _ in texts.values()),
            wrong=sum(is_well and text not in answer for text, (is_well, answer) in texts.items()),
            calls_billed=sum(bills),
            billed_twice=sum(max(0, count - 1) for count in bills),
            in_flight_at_faults=sum(
                any(is_under_way(attempt, one) for one in broken) for attempt in attempts
            ),
            unrecorded=max(0, sum(bills) - recorded),
            failures=Counter(code for *_, code in found if code is not None),
        )

    def is_over(self) -> bool:
        """Whether the run has ended."""
        [(_, finished_at)] = self._read(STATE)
        return finished_at is not None

    def _read(self, query: str) -> list[tuple[Any, ...]]:
        return read(self._dsn, query, self._id)
