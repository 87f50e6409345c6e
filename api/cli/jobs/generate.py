"""`promptstack generate`: enqueue a generation, watch it, print the answer."""

import sys
from typing import Annotated

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.jobs.watch import show_until_done
from promptstack.api.cli.options.generation import GenerationOptions
from promptstack.api.cli.options.jobs import JobOptions
from promptstack.api.cli.options.values import seconds_of
from promptstack.api.cli.terminal import (
    JOB_FAILED,
    JsonFlag,
    out,
    print_json,
    printable,
    stop,
)
from promptstack.repositories.models import JobState
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.requests import Fallback, Message


def generate(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt; - reads standard input.")
    ] = None,
    *,
    message: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE:TEXT",
            help="A turn in place of PROMPT, as user:TEXT or assistant:TEXT; may repeat.",
        ),
    ] = None,
    generation: GenerationOptions,
    fallback: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROVIDER[/MODEL]", help="Who is asked where it can't answer; may repeat."
        ),
    ] = None,
    job_options: JobOptions,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Enqueue at most once under this key.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Generate a text from a prompt."""
    with connected() as stack:
        job = stack.jobs.enqueue_generation(
            _read_input() if prompt == "-" else prompt,
            messages=list(map(_parse_message, message or [])),
            provider=job_options.provider,
            model=job_options.model,
            fallbacks=list(map(_parse_fallback, fallback or [])),
            bulk=job_options.bulk,
            max_retries=job_options.max_retries,
            expires_in=seconds_of(job_options.expires_in),
            idempotency_key=idempotency_key,
            **generation.keywords(),
        )
        if job_options.wait:
            show_until_done(stack, {job.id: 1}, label="Generating", unit="texts", quiet=as_json)
            job = stack.jobs.get(job.id)
        if as_json:
            print_json(job.model_dump(mode="json"))
        elif not job_options.wait:
            out.print(f"Accepted as job {job.id}.")
        elif job.result:
            out.print(printable(job.result["text"]), markup=False)
        if job_options.wait and job.state is not JobState.SUCCEEDED:
            stop(f"job {job.id} {job.state}: {job.error or 'no reason given'}", JOB_FAILED)


def _read_input() -> str:
    """Read standard input as UTF-8, whatever the locale. Raises `InvalidInput`."""
    if sys.stdin is None:
        raise InvalidInput("Standard input is closed; there is no prompt to read.")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"Standard input is not UTF-8 text at byte {error.start}.") from error


def _parse_fallback(named: str) -> Fallback:
    provider, _, model = named.partition("/")
    return Fallback(provider=provider, model=model or None)


def _parse_message(given: str) -> Message:
    role, _, text = given.partition(":")
    try:
        return Message.model_validate({"role": role.strip().lower(), "content": text.strip()})
    except ValueError as error:
        raise InvalidInput(
            f"--message {given[:80]!a} is no turn; write user:TEXT, assistant:TEXT or system:TEXT."
        ) from error
