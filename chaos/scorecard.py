"""The scorecard of a run, for a person and for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from promptstack.chaos.batch import BatchVerdict
from promptstack.chaos.plan import Fault
from promptstack.chaos.verdict import Verdict

WIDTH = 52


@dataclass(frozen=True)
class Scorecard:
    """What was done, and what came of it."""

    seed: int
    jobs: int
    """How many the load should have had."""
    seconds: float
    faults: Mapping[Fault, int]
    faults_failed: list[str]
    refusals: int
    verdict: Verdict
    surprises: Sequence[str] = ()
    """Answers of the API that no client should get."""
    batch: BatchVerdict | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, doubled or unexplained."""
        return not self.problems()

    def problems(self) -> list[str]:
        """Say what must not be, also of the run itself: one that did nothing shows nothing."""
        missing = self.jobs - self.verdict.accepted
        found = {
            f"{missing} jobs of the load were never accepted": missing,
            f"{len(self.surprises)} answers of the API were none that a client expects, as "
            f"{next(iter(self.surprises), '')}": self.surprises,
            "no fault could be done": self.faults_failed and not any(self.faults.values()),
        }
        of_batch = [] if self.batch is None else self.batch.problems()
        own = [words for words, is_so in found.items() if is_so]
        return [*own, *self.verdict.problems(), *of_batch]

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        verdict = asdict(self.verdict)
        verdict["unexplained"] = [str(id_) for id_ in self.verdict.unexplained]
        faults = {str(fault): count for fault, count in self.faults.items()}
        return {**asdict(self), "faults": faults, "verdict": verdict, "passed": self.passed}

    def lines(self) -> list[str]:
        """All of it, for a person."""
        verdict = self.verdict
        faults = ", ".join(f"{count} {fault}" for fault, count in self.faults.items() if count)
        lines = [
            f"seed {self.seed}, {self.seconds:.0f} s; faults: {faults or 'none'}",
            _line("jobs accepted", verdict.accepted),
            _line("ended", sum(verdict.ended.values()), _named(verdict.ended)),
            *(
                [_line("  failed, by reason", "", _named(verdict.failures))]
                if verdict.failures
                else []
            ),
            _line("lost", verdict.lost),
            _line("not ended, and nothing moves any more", verdict.unfinished),
            _line("changed after their end (doubled results)", verdict.changed_after_end),
            _line("wrong or missing answers", verdict.wrong),
        ]
        if verdict.calls_billed is not None:
            lines += [
                _line("calls billed", verdict.calls_billed),
                _line("billed twice", verdict.billed_twice, _named(verdict.billed_twice_by)),
                _line("  in flight at those faults", verdict.in_flight_at_faults),
                _line("  for no fault", len(verdict.unexplained)),
                _line("billed but not on record", verdict.unrecorded),
            ]
        lines += [
            _line(
                what,
                f"{spans.median:.1f} s",
                f"median; 99% {spans.most:.1f} s, longest {spans.longest:.1f} s of {spans.count:,}",
            )
            for what, spans in sorted(verdict.recovery.items())
        ]
        lines.append(_line("progress that agrees with the database", verdict.rebuilt))
        if self.batch is not None:
            batch = self.batch
            lines += [
                _line("items of a run", batch.items, batch.state),
                _line("  succeeded", batch.succeeded),
                *(
                    [_line("  failed, by reason", "", _named(batch.failures))]
                    if batch.failures
                    else []
                ),
                _line("  wrong or missing answers", batch.wrong),
                _line("  calls billed", batch.calls_billed),
                _line("  billed twice", batch.billed_twice),
                _line("    in flight at the faults of a worker", batch.in_flight_at_faults),
                _line("  billed but not on record", batch.unrecorded),
            ]
        if self.refusals:
            lines.append(_line("enqueues that had to be sent again", self.refusals))
        lines += [f"  not done: {reason}" for reason in self.faults_failed]
        lines += [f"  {told}" for told in verdict.details]
        problems = self.problems()
        lines += [f"PROBLEM: {problem}" for problem in problems]
        return [*lines, "passed" if self.passed else "NOT passed"]


def _line(what: str, value: object, more: str = "") -> str:
    shown = f"{value:,}" if isinstance(value, int) else str(value)
    return f"{what:<{WIDTH}} {shown:>8}  {more}".rstrip()


def _named(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
