"""`promptstack chaos`: faults on purpose, on this deployment."""

from typing import Annotated

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.terminal import JOB_FAILED, JsonFlag, err, out, print_json, stop
from promptstack.chaos.existing_deployment import POSSIBLE, run_on_existing
from promptstack.chaos.load import Target
from promptstack.chaos.plan import Fault

PATIENCE_SECONDS = 120.0


def chaos(
    jobs: Annotated[int, typer.Option(min=1, help="Size of the load.")] = 500,
    seconds: Annotated[float, typer.Option(min=5, help="For load and faults.")] = 60.0,
    kills: Annotated[int, typer.Option(min=0, help="Workers ended by SIGKILL.")] = 3,
    times: Annotated[int, typer.Option(min=0, help="Times for each other fault.")] = 1,
    faults: Annotated[
        str, typer.Option(help=f"Of {', '.join(POSSIBLE)}.")
    ] = f"{Fault.KILL},{Fault.STOP},{Fault.TERM},{Fault.CUT}",
    seed: Annotated[int, typer.Option(help="The same seed plans the same faults.")] = 1,
    provider: Annotated[str, typer.Option(help="Who is asked; demo costs nothing.")] = "demo",
    model: Annotated[str | None, typer.Option(help="Its model.")] = None,
    simulator: Annotated[
        str | None,
        typer.Option(help="URL of the `promptstack simulator` that plays openai: judges bills."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Send a load, hurt this deployment, and judge every job.

    Workers on this machine are killed, frozen and stopped: something must start them again, as
    `promptstack up` does. `flush` deletes all that REDIS_URL holds, `cut` closes connections.
    """
    chosen = _faults(faults)
    if not yes:
        hurts = ", ".join(chosen)
        typer.confirm(f"This really does it to this deployment: {hurts}. Go on?", abort=True)
    with connected() as stack:
        with stack.ledger.transaction() as unit:
            if not unit.workers.count_alive(stack.settings.worker_lost_seconds):
                stop("No worker runs. Start one with `promptstack up`, then try again.")
        scorecard = run_on_existing(
            stack,
            seed=seed,
            jobs=jobs,
            seconds=seconds,
            kills=kills,
            times=times,
            faults=chosen,
            target=Target(provider, model, embedding_model=None),
            simulator_url=simulator,
            patience=PATIENCE_SECONDS,
            say=lambda line: err.print(line, markup=False),
        )
    if as_json:
        print_json(scorecard.as_json())
    else:
        for line in scorecard.lines():
            out.print(line, markup=False)
    if not scorecard.passed:
        raise typer.Exit(JOB_FAILED)


def _faults(given: str) -> list[Fault]:
    try:
        chosen = [Fault(name.strip()) for name in given.split(",") if name.strip()]
    except ValueError:
        chosen = []
    if not chosen or not set(chosen) <= set(POSSIBLE):
        stop(f"--faults takes some of {', '.join(POSSIBLE)}.")
    return chosen
