"""Prints what a run would take, and what is wrong with its inputs."""

from typing import Any

from promptstack.api.cli.terminal import dollars, err, plural
from promptstack.config.control_characters import escaped
from promptstack.services.runs.views import Preflight
from promptstack.services.sources.reading import BadInput


def show_preflight(preflight: Preflight, *, named_by_id: bool) -> None:
    """Print on standard error what a run would take.

    `named_by_id`: inputs are named by their ids, as their positions are no lines of a file.
    """
    cost = "unknown" if preflight.cost_usd is None else f"${dollars(preflight.cost_usd)}"
    seconds = preflight.seconds
    time_ = "unknown (no limits are known)" if seconds is None else f"at least {seconds:,.0f} s"
    err.print(
        f"{plural(preflight.items, 'input')} for {preflight.provider}/{preflight.model}: "
        f"{preflight.bad:,} bad, {preflight.reused:,} reused, {preflight.to_pay:,} to pay for.\n"
        f"Expected: {plural(preflight.tokens, 'token')}, cost {cost}, time {time_}.",
        markup=False,
    )
    if preflight.is_over_limit and preflight.max_cost_usd is not None:
        err.print(
            f"The limit of ${dollars(preflight.max_cost_usd)} is below that cost: the run stops "
            "before all is done. Raise --max-cost, or go on later by `promptstack runs retry`.",
            markup=False,
        )
    for fault in preflight.faults:
        where = _where(fault, named_by_id=named_by_id)
        err.print(escaped(f"  {where}: {fault.code}: {fault.reason}"), markup=False)
    if more := _untold(preflight):
        err.print(f"  and {more:,} more")
    if preflight.duplicates:
        err.print(f"  {plural(preflight.duplicates, 'input')} with the id of an earlier one")


def preflight_json(preflight: Preflight) -> dict[str, Any]:
    """The preflight for programs. `faults` are the first of the `bad` inputs."""
    faults = [
        {"position": one.position, "custom_id": one.custom_id, "code": one.code, "why": one.reason}
        for one in preflight.faults
    ]
    return {
        **vars(preflight),
        "is_over_limit": preflight.is_over_limit,
        "faults": faults,
        "faults_untold": _untold(preflight),
    }


def _untold(preflight: Preflight) -> int:
    return preflight.bad - len(preflight.faults)


def _where(fault: BadInput, *, named_by_id: bool) -> str:
    if not named_by_id:
        return f"line {fault.position}"
    return fault.custom_id or f"input {fault.position}"
