"""What refusals at random cost: 429s to a tenth of the calls, whose limits are far from reached.

A fake provider that nobody here wrote, `llmock` of PyPI, answers 300 prompts and judges its
clients: the provider's SDK in 32 threads, a run, and jobs of their own. It is in no dependency
group; `python -m venv /tmp/llmock && /tmp/llmock/bin/pip install llmock` has it, and then
`python -m benchmarks.stray_faults --llmock /tmp/llmock/bin/llmock`.
"""

import argparse
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import anthropic
import httpx2
import openai
from google import genai
from google.genai import types

from benchmarks.deployment import Deployment, deployment, wait_until

THREADS = 32
RETRIES = 8
"""Of the SDK: its own default of 2 loses prompts to refusals at random."""
MAX_TOKENS = 64
LIMITS = ("--rpm", "600", "--tpm", "90000")
FAULTS = {
    "none": (),
    "10% 429": ("429=0.1",),
    "10% 429, 5% 503": ("429=0.1", "503=0.05"),
}
MODELS = {
    "openai": "gpt-5-mini",
    "anthropic": "claude-haiku-4-5",
    "gemini": "gemini-2.5-flash",
}
PATHS = {"openai": "/v1", "anthropic": "/anthropic", "gemini": "/gemini"}
NAME, KEY = "mock", "LLMOCK_KEY"
GEMINI_VERSION = "v1beta"
WARM_UP = {"openai": "gpt-5-nano", "anthropic": "claude-sonnet-4-5", "gemini": "gemini-2.5-pro"}
"""Models that the worker asks once before: its bucket of the other one is new all the same."""


@dataclass(frozen=True)
class Figures:
    """One program against one server."""

    seconds: float
    answered: int
    verdict: str


def main() -> None:
    """Run each program against a server of its own, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llmock", required=True, help="the program")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--providers", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--rounds", type=int, default=1, help="the median time is shown")
    given = parser.parse_args()
    for provider in given.providers:
        for faults in given.faults:
            sdk = 0.0
            for who, program in PROGRAMS.items():
                rounds = [
                    program(given.llmock, provider, FAULTS[faults], given.prompts)
                    for _ in range(given.rounds)
                ]
                seconds = statistics.median(one.seconds for one in rounds)
                sdk = sdk or seconds
                answered = min(one.answered for one in rounds)
                sys.stdout.write(
                    f"{provider:10} {faults:16} {who:16} {seconds:6.1f} s  "
                    f"{seconds / sdk:5.2f} of the SDK's  {answered} answered  verdict "
                    f"{' '.join(sorted({one.verdict for one in rounds}))}\n"
                )
                sys.stdout.flush()


def sdk(llmock: str, provider: str, faults: Sequence[str], count: int) -> Figures:
    """The provider's SDK in threads, with retries."""
    with server(llmock, faults) as origin:
        ask = ASKING[provider](origin + PATHS[provider])
        with ThreadPoolExecutor(THREADS) as threads:
            began = time.monotonic()
            answers = list(threads.map(ask, prompts(count)))
            seconds = time.monotonic() - began
        return judged(origin, seconds, sum(map(bool, answers)))


def run(llmock: str, provider: str, faults: Sequence[str], count: int) -> Figures:
    """A run on one worker."""
    with server(llmock, faults) as origin, one_worker(origin, provider) as it:
        began = time.monotonic()
        accepted = it.stack.runs.generate(
            prompts(count), provider=NAME, model=MODELS[provider], in_flight=THREADS,
            max_tokens=MAX_TOKENS,
        )  # fmt: skip
        done = it.stack.runs.wait(accepted.id, 600)
        return judged(origin, time.monotonic() - began, done.succeeded)


def jobs(llmock: str, provider: str, faults: Sequence[str], count: int) -> Figures:
    """As many jobs, each for itself, on one worker."""
    with server(llmock, faults) as origin, one_worker(origin, provider) as it:
        began = time.monotonic()
        accepted = [
            it.stack.jobs.enqueue_generation(
                prompt, provider=NAME, model=MODELS[provider], max_tokens=MAX_TOKENS
            ).id
            for prompt in prompts(count)
        ]
        done = it.stack.jobs.wait(accepted, timeout=600)
        return judged(
            origin, time.monotonic() - began, sum(job.state == "succeeded" for job in done)
        )


PROGRAMS = {f"SDK, {THREADS} threads": sdk, "a run": run, "jobs": jobs}


def prompts(count: int) -> list[str]:
    """What is asked."""
    return [f"Question {number}: why is the sky blue, and not green?" for number in range(count)]


def ask_openai(url: str) -> Callable[[str], str | None]:
    """The script of OpenAI's users."""
    client = openai.OpenAI(api_key="sk-x", base_url=url, max_retries=RETRIES)

    def ask(prompt: str) -> str | None:
        answer = client.chat.completions.create(
            model=MODELS["openai"],
            messages=[{"role": "user", "content": prompt}],
            max_completion_tokens=MAX_TOKENS,
        )
        return answer.choices[0].message.content

    return ask


def ask_anthropic(url: str) -> Callable[[str], str | None]:
    """The script of Anthropic's users."""
    client = anthropic.Anthropic(api_key="sk-x", base_url=url, max_retries=RETRIES)

    def ask(prompt: str) -> str | None:
        answer = client.messages.create(
            model=MODELS["anthropic"],
            messages=[{"role": "user", "content": prompt}],
            max_tokens=MAX_TOKENS,
        )
        return "".join(getattr(block, "text", "") for block in answer.content)

    return ask


def ask_gemini(url: str) -> Callable[[str], str | None]:
    """The script of Gemini's users."""
    retries = types.HttpRetryOptions(attempts=RETRIES + 1)
    http = types.HttpOptions(base_url=url, api_version=GEMINI_VERSION, retry_options=retries)
    client = genai.Client(api_key="sk-x", http_options=http)

    def ask(prompt: str) -> str | None:
        config = types.GenerateContentConfig(max_output_tokens=MAX_TOKENS)
        return client.models.generate_content(
            model=MODELS["gemini"], contents=prompt, config=config
        ).text

    return ask


ASKING = {"openai": ask_openai, "anthropic": ask_anthropic, "gemini": ask_gemini}


@contextmanager
def server(llmock: str, faults: Sequence[str]) -> Iterator[str]:
    """Start llmock; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [llmock, "serve", "--port", str(port), *LIMITS, "--log-level", "warning"]
    command += [part for fault in faults for part in ("--error-rate", fault)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        origin = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(f"{origin}/health"), 30.0)
        yield origin
    finally:
        process.terminate()
        process.wait()


@contextmanager
def one_worker(origin: str, provider: str) -> Iterator[Deployment]:
    """A worker that has loaded the SDK, as one in service has."""
    named = (
        f'[[providers]]\nname = "{NAME}"\nwire = "{provider}"\napi_key_env = "{KEY}"\n'
        f'base_url = "{origin}{PATHS[provider]}"\n'
    )
    if provider == "gemini":
        named += f'api_version = "{GEMINI_VERSION}"\n'
    with deployment(origin, named, WORKER_CONCURRENCY=str(THREADS), **{KEY: "sk-x"}) as deployed:
        deployed.start_workers(1)
        warm_up = deployed.stack.jobs.enqueue_generation(
            "Warm up", provider=NAME, model=WARM_UP[provider], max_tokens=MAX_TOKENS
        )
        deployed.stack.jobs.wait([warm_up.id], timeout=60)
        yield deployed


def judged(origin: str, seconds: float, answered: int) -> Figures:
    """What the server says of its client."""
    verdict = httpx2.get(f"{origin}/_llmock/verdict").json()
    for finding in verdict["findings"][:5]:
        sys.stderr.write(f"{finding['severity']}: {finding['title']}\n")
    said = "passed" if verdict["passed"] else f"{verdict['errors']} errors"
    return Figures(seconds, answered, said)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url).is_success
    except httpx2.TransportError:
        return False


if __name__ == "__main__":
    main()
