"""Runs the steps that put right what lost messages, brokers and workers left behind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """Something to look after. `run` does it once, in every worker."""

    name: str
    run: Callable[[], object]


class Reconciler:
    """Steps that know nothing of each other.

    Every worker runs each of them once a second, in a thread of its own: a slow one delays no
    other. A lock in the ledger lets one worker at a time do what two could do twice or what takes
    long; the other statements change only what is still as they found it.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps

    def run_once(self) -> dict[str, object]:
        """Run every step, one after the other. Returns what each returned, by its name.

        Raises `TransientLedgerError`. A broker that is away is waited for.
        """
        return {step.name: step.run() for step in self.steps}
