"""What servers and gateways of OpenAI's wire do with one input, through the real SDK."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from promptstack.config.settings import load_settings
from promptstack.repositories.models import JobState
from promptstack.repositories.run_models import RunState
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute
from tests.processes import join
from tests.runs import failures, one, work

BATCH = 128
"""Tokens of one text; of this server, four characters each."""
TOO_LARGE = (
    "input (%d tokens) is too large to process. increase the physical batch size "
    "(current batch size: %d)"
)
REFUSALS: dict[str, tuple[int, Any]] = {
    "flagged": (403, {"message": "Forbidden"}),
    "sql": (403, "<html><title>403 Forbidden</title><body>Check your API key</body></html>"),
    "unauthorized": (401, {"detail": "Unauthorized"}),
    "missing": (404, {"detail": "Not Found"}),
    "poison": (500, {"error": {"code": 500, "message": "nan", "type": "server_error"}}),
    "gateway": (502, "<html>502 Bad Gateway</html>"),
}


class Server(ThreadingHTTPServer):
    """Embeds and answers as llama.cpp does, behind a gateway that doesn't like some words."""

    daemon_threads = True
    calls = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        self.server.calls += 1
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        texts = body["input"] if "input" in body else [body["messages"][-1]["content"]]
        for text in texts:
            word, tokens = text.split(maxsplit=1)[0], len(text) // 4
            if word == "crash":
                self.close_connection = True
                return
            if word in REFUSALS:
                self.say(*REFUSALS[word])
                return
            if tokens > BATCH:
                self.say(500, {"error": {"code": 500, "message": TOO_LARGE % (tokens, BATCH)}})
                return
        if "input" in body:
            rows = [{"index": n, "embedding": [1.0, 2.0]} for n in range(len(texts))]
            self.say(200, {"data": rows, "model": "m", "usage": {"prompt_tokens": 1}})
        else:
            message = {"role": "assistant", "content": "Done."}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.say(200, {"choices": [choice], "model": "m"})

    def say(self, status: int, body: Any) -> None:
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        kind = "text/html" if isinstance(body, str) else "application/json"
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        join(thread)


@pytest.fixture
def small(
    environment: dict[str, str], server: Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WorkerServices]:
    """Everything wired to the small server."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with WorkerServices.open(load_settings(_env_file=None)) as stack:
        yield stack


CODES = {
    "crash": "PROVIDER_UNREACHABLE",
    "flagged": "PROVIDER_DENIED",
    "sql": "PROVIDER_INTERCEPTED",
    "unauthorized": "PROVIDER_DENIED",
    "missing": "PROVIDER_DENIED",
    "poison": "PROVIDER_BROKE",
    "gateway": "PROVIDER_BROKE",
    "long": "CONTEXT_TOO_LONG",
}
LONG = "long " * BATCH


@pytest.mark.parametrize("word", CODES)
def test_of_forty_texts_one_fails(small: WorkerServices, server: Server, word: str) -> None:
    texts = [f"text {n}" for n in range(40)]
    texts[17] = LONG if word == "long" else f"{word} text"
    run = small.runs.embed(texts, provider="openai", model="m", max_retries=2)
    done = work(small, run.id)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 39, 1)
    assert failures(small, done) == {"18": CODES[word]}
    assert server.calls <= 3 + 2 * 6 + 3


def test_of_forty_prompts_those_fail_that_a_gateway_does_not_let_through(
    small: WorkerServices,
) -> None:
    prompts = [f"text {n}" for n in range(40)]
    prompts[:8] = [LONG if word == "long" else f"{word} text" for word in CODES]
    run = small.runs.generate(prompts, provider="openai", model="m", max_retries=1, in_flight=4)
    done = work(small, run.id)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 32, 8)
    codes = failures(small, done)
    assert codes == {str(n): code for n, code in enumerate(CODES.values(), start=1)}


def test_a_document_whose_chunks_are_too_long_is_embedded_with_a_few_calls(
    small: WorkerServices, server: Server
) -> None:
    text = " ".join(f"Sentence {n} of a document that is long enough." for n in range(300))
    began = time.monotonic()
    job = small.jobs.enqueue_embedding(text, source="a.md", provider="openai", model="m")
    execute(small, job.id)
    done = small.jobs.get(job.id)
    assert (done.state, done.failures) == (JobState.SUCCEEDED, 0)
    assert server.calls <= 12
    assert time.monotonic() - began < 30
    refused = "SELECT count(*) FROM attempts WHERE error_code = 'CONTEXT_TOO_LONG'"
    assert one(small, f"{refused} AND billing <> 'not_billed'") == (0,)
    assert 0 < one(small, refused)[0] <= 8
    # What it takes is known by now: the next document needs one call.
    before = server.calls
    job = small.jobs.enqueue_embedding(
        text.replace("Sentence", "Clause"), source="b.md", provider="openai", model="m"
    )
    execute(small, job.id)
    assert small.jobs.get(job.id).state is JobState.SUCCEEDED
    assert server.calls == before + 1
