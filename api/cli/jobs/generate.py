"""`promptstack generate`: enqueue a generation, watch it, print the answer."""

import sys
from typing import Annotated
from uuid import UUID

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.jobs.watch import show_until_done
from promptstack.api.cli.options.generation import GenerationOptions
from promptstack.api.cli.options.jobs import JobOptions
from promptstack.api.cli.options.values import seconds_of
from promptstack.api.cli.terminal import (
    JOB_FAILED,
    JsonFlag,
    err,
    out,
    print_json,
    printable,
    stop,
)
from promptstack.repositories.models import JobState
from promptstack.services.errors import InvalidInput, NoAnswer
from promptstack.services.llm.requests import Fallback, Message
from promptstack.tasks.composition import PromptStack


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
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the text as it is produced.")
    ] = False,
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
            tags=job_options.tags or (),
            expires_in=seconds_of(job_options.expires_in),
            idempotency_key=idempotency_key,
            stream=stream,
            **generation.keywords(),
        )
        is_printed = stream and job_options.wait and not as_json
        if is_printed:
            _print_text(stack, job.id)
            job = stack.jobs.get(job.id)
        elif job_options.wait:
            show_until_done(stack, {job.id: 1}, label="Generating", unit="texts", quiet=as_json)
            job = stack.jobs.get(job.id)
        if as_json:
            print_json(job.model_dump(mode="json"))
        elif not job_options.wait:
            out.print(f"Accepted as job {job.id}.")
        elif job.result and not is_printed:
            out.print(printable(job.result["text"]), markup=False)
        if job_options.wait and job.state is not JobState.SUCCEEDED:
            stop(f"job {job.id} {job.state}: {job.error or 'no reason given'}", JOB_FAILED)


def _print_text(stack: PromptStack, job_id: UUID) -> None:
    """Print a text as it is produced. What was printed stays, so a restart is told."""
    has_text = False
    try:
        for piece in stack.jobs.stream(job_id):
            if piece.kind == "restart" and has_text:
                out.print()
                err.print(f"The text begins again: {printable(piece.reason)}.", markup=False)
            has_text = piece.kind == "text"
            out.print(printable(piece.text), end="", markup=False)
            out.file.flush()
    except NoAnswer:
        pass  # the command tells how the job stands
    if has_text:
        out.print()


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
