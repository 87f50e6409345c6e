"""Servers that speak OpenAI's wire and aren't OpenAI: what they refuse is learned, and kept."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from promptstack.api.cli.doctor import _ask_provider, examine
from promptstack.config.settings import Settings
from promptstack.repositories.models import JobState
from promptstack.repositories.run_models import RunState
from promptstack.repositories.usage import Group
from promptstack.services.jobs.views import JobView
from promptstack.services.llm.errors import ContextTooLong
from promptstack.services.llm.learned import LearnedFacts, RefusedCalls, most_texts
from promptstack.services.llm.openai.substitutes import refused_field
from promptstack.services.llm.requests import Fallback
from promptstack.tasks.worker_services import WorkerServices
from tests.http import serve
from tests.jobs import execute
from tests.runs import work
from tests.small_server import Answer, Asked, SmallServer, chat, small_server, vectors

TEXTS = [f"Text number {number}." for number in range(200)]
TOO_MANY = {
    "dashscope": (
        400,
        "<400> InvalidParameter: batch size is invalid, it should not be larger than 10.: input",
    ),
    "tei": (413, "batch size {asked} > maximum allowed batch size 10"),
    "azure": (400, "Too many inputs. The max number of inputs is 10.  We hope to increase it."),
    "pydantic": (422, "List should have at most 10 items after validation, not {asked}"),
    "cohere": (400, "invalid request: total number of texts must be at most 10"),
}
SENT = {
    "openai": {
        "OPENAI_ORG_ID": "secret-organisation",
        "OPENAI_PROJECT_ID": "secret-project",
        "OPENAI_CUSTOM_HEADERS": "x-mine: secret",
    },
    "anthropic": {"ANTHROPIC_CUSTOM_HEADERS": "x-mine: secret"},
}

Open = Callable[..., WorkerServices]


@pytest.fixture
def open_stack(environment: dict[str, str], tmp_path: Path) -> Iterator[Open]:
    """Opens a process' stack in which `small` is a server at an address."""
    with ExitStack() as opened:

        def open_it(
            url: str, more: str = "", provider: str = "", path: str = "/v1"
        ) -> WorkerServices:
            file = tmp_path / "small.toml"
            file.write_text(
                f'[[providers]]\nname = "small"\nwire = "openai"\nbase_url = "{url}{path}"\n'
                f'generation_model = "chat-1"\nembedding_model = "bge-1"\n{provider}\n{more}'
            )
            settings = Settings(_env_file=None, models_file=file)
            return opened.enter_context(WorkerServices.open(settings))

        yield open_it


def ask(stack: WorkerServices, **how: object) -> JobView:
    asked = {"provider": "small", "max_retries": 0, **how}
    job = stack.jobs.enqueue_generation("Why?", **asked)  # type: ignore[arg-type]
    execute(stack, job.id)
    return stack.jobs.get(job.id)


def at_most(texts: int, status: int, words: str) -> Callable[[Asked], Answer]:
    def answer(asked: Asked) -> Answer:
        if len(asked.body["input"]) > texts:
            said = words.format(asked=len(asked.body["input"]))
            return status, {"error": {"message": said, "type": "invalid_request_error"}}
        return vectors(asked)

    return answer


def calls(server: SmallServer) -> list[int]:
    return [len(body["input"]) for body in server.bodies("/embeddings")]


@pytest.mark.parametrize("kind", TOO_MANY)
def test_a_run_learns_how_many_texts_a_call_may_have(open_stack: Open, kind: str) -> None:
    status, words = TOO_MANY[kind]
    with small_server(at_most(10, status, words)) as server:
        stack = open_stack(server.url)
        run = work(stack, stack.runs.embed(TEXTS, provider="small").id)
        assert (run.state, run.succeeded) == (RunState.COMPLETED, 200)
        assert calls(server) == [200, *[10] * 20]

        # Another worker knows it from the first call on, and so does a document.
        other = open_stack(server.url)
        work(other, other.runs.embed([f"{text} Again." for text in TEXTS], provider="small").id)
        assert calls(server)[21:] == [10] * 20


def test_a_document_is_embedded_by_a_server_of_few_texts_a_call(open_stack: Open) -> None:
    with small_server(at_most(10, *TOO_MANY["dashscope"])) as server:
        stack = open_stack(server.url)
        text = "\n\n".join(f"# Part {n}\n\n" + f"Words of part {n}. " * 150 for n in range(25))
        job = stack.jobs.enqueue_embedding(text, source="book", provider="small", max_retries=0)
        execute(stack, job.id)
        assert stack.jobs.get(job.id).state is JobState.SUCCEEDED
        first, *rest = calls(server)
        assert first > 10
        assert max(rest) == 10
        assert sum(rest) == first


def test_the_limits_of_a_server_that_states_none_are_learned_from_its_answers(
    open_stack: Open,
) -> None:
    """The first call is halved until its parts are answered; the next ones need no search."""
    with small_server(at_most(10, 400, "Bad request")) as server:
        stack = open_stack(server.url)
        work(stack, stack.runs.embed(TEXTS, provider="small").id)
        before = len(calls(server))
        again = stack.runs.embed([f"{text} Again." for text in TEXTS], provider="small").id
        run = work(stack, again)
        assert (run.succeeded, run.failed) == (200, 0)
        assert set(calls(server)[before:]) <= {7, 4}
        assert len(calls(server)) - before == 29


def test_one_bad_text_teaches_nothing_of_numbers(open_stack: Open) -> None:
    def answer(asked: Asked) -> Answer:
        if "poison" in asked.body["input"]:
            return 400, {"error": {"message": "Bad request"}}
        return vectors(asked)

    with small_server(answer) as server:
        stack = open_stack(server.url)
        run = work(stack, stack.runs.embed([*TEXTS, "poison"], provider="small").id)
        assert (run.succeeded, run.failed) == (200, 1)
        assert stack.providers.get("small").limits_of("bge-1").items == 2_048


def test_a_person_says_it_and_no_call_is_refused(open_stack: Open) -> None:
    with small_server(at_most(10, *TOO_MANY["tei"])) as server:
        stack = open_stack(server.url, '[[models]]\nprovider = "small"\ntexts_per_call = 10\n')
        work(stack, stack.runs.embed(TEXTS, provider="small").id)
        assert calls(server) == [10] * 20


# Fields that a server doesn't take


def refusing(field: str, status: int, said: object) -> Callable[[Asked], Answer]:
    def answer(asked: Asked) -> Answer:
        if field in asked.body:
            return status, said
        return chat(asked) if "messages" in asked.body else vectors(asked)

    return answer


FORBIDDEN = {
    "detail": [
        {
            "type": "extra_forbidden",
            "loc": ["body", "max_completion_tokens"],
            "msg": "Extra inputs are not permitted",
            "input": 50,
        }
    ]
}


def test_the_longest_answer_is_named_as_the_server_wants_it(open_stack: Open) -> None:
    with small_server(refusing("max_completion_tokens", 422, FORBIDDEN)) as server:
        stack = open_stack(server.url)
        for _ in range(3):
            job = ask(stack, max_tokens=50)
            assert job.state is JobState.SUCCEEDED
            assert len(stack.jobs.get_attempts(job.id)) == 1
        other = ask(open_stack(server.url), max_tokens=60)
        assert other.state is JobState.SUCCEEDED
        bodies = server.bodies("/chat/completions")
        assert [body.get("max_tokens") for body in bodies] == [None, 50, 50, 50, 60]
        assert sum("max_completion_tokens" in body for body in bodies) == 1

        told = open_stack(
            server.url.replace("127.0.0.1", "localhost"),
            ('[[models]]\nprovider = "small"\nmax_tokens_parameter = "max_tokens"\n'),
        )
        assert ask(told, max_tokens=70).state is JobState.SUCCEEDED
        assert [body.get("max_tokens") for body in server.bodies("/chat/completions")[5:]] == [70]


def test_an_answer_does_not_wait_until_what_it_taught_is_shared(
    open_stack: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel that came meanwhile would lose an answer that is paid for."""
    goes_on = threading.Event()
    monkeypatch.setattr(LearnedFacts, "share", lambda *_: goes_on.wait(60))
    with small_server(refusing("max_completion_tokens", 422, FORBIDDEN)) as server:
        try:
            assert ask(open_stack(server.url), max_tokens=50).state is JobState.SUCCEEDED
            assert not goes_on.is_set()
        finally:
            goes_on.set()


def test_a_wrong_value_is_not_asked_for_under_another_name(open_stack: Open) -> None:
    """A server that doesn't know the other name would answer without any bound."""

    def answer(asked: Asked) -> Answer:
        if "max_completion_tokens" not in asked.body:
            return chat(asked)
        said = "max_completion_tokens is too large: 900. This model does not support it."
        return 400, {"error": {"message": said, "param": "max_tokens"}}

    with small_server(answer) as server:
        stack = open_stack(server.url)
        job = ask(stack, max_tokens=900)
        assert (job.state, job.error_code) == (JobState.FAILED, "INVALID_PROVIDER_REQUEST")
        assert len(server.asked) == 1
        ask(stack, max_tokens=800)
        assert all("max_completion_tokens" in asked.body for asked in server.asked)


def test_a_limit_that_a_quoted_text_speaks_of_is_not_learned(open_stack: Open) -> None:
    said = {"error": {"message": "The prompt is too long: 'I passed 9, which is less than 3'"}}
    with small_server(lambda _: (400, said)) as server:
        stack = open_stack(server.url)
        service = stack.providers.get("small")
        with pytest.raises(ContextTooLong) as caught:
            stack.loop.run(service.embed(["x"], "bge-1", None))
        assert (caught.value.limit, caught.value.given) == (3, 9)
        assert service.limits_of("bge-1").text_tokens is None


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ("Unsupported parameter: 'max_completion_tokens'. Use 'max_tokens' instead.", True),
        ("max_completion_tokens: Extra inputs are not permitted", True),
        ("Invalid 'max_completion_tokens': integer above maximum value. Expected <= 9", False),
        ("`max_completion_tokens` must be less than or equal to `8192`", False),
        ("max_completion_tokens must be at least 1, got 0. invalid_request_error", False),
        ("max_tokens is too large: 9. invalid_request_error max_completion_tokens", False),
    ],
)
def test_a_field_that_is_not_known_is_told_from_a_wrong_value(said: str, *, field: bool) -> None:
    found = refused_field({"max_completion_tokens": 9, "model": "m"}, said)
    assert found == ("max_completion_tokens" if field else None)


def test_vectors_are_asked_for_as_numbers_where_base64_is_refused(open_stack: Open) -> None:
    said = {"error": {"message": "encoding_format: unexpected keyword"}}
    with small_server(refusing("encoding_format", 422, said)) as server:
        stack = open_stack(server.url)
        for words in ("one", "two"):
            run = work(stack, stack.runs.embed([words], provider="small").id)
            assert run.succeeded == 1
        bodies = server.bodies("/embeddings")
        assert ["encoding_format" in body for body in bodies] == [True, False, False]
        assert not any("dimensions" in body for body in bodies)


def test_what_was_learned_is_shared_and_forgotten(open_stack: Open) -> None:
    with small_server(at_most(10, *TOO_MANY["tei"])) as server:
        stack = open_stack(server.url)
        work(stack, stack.runs.embed(TEXTS, provider="small").id)
        [key] = stack.redis.keys("promptstack:learned:small:*")
        assert 0 < stack.redis.ttl(key) <= 86_400
        moved = open_stack(server.url.replace("127.0.0.1", "localhost"))
        assert moved.providers.get("small").limits_of("bge-1").items == 2_048


@pytest.mark.parametrize(
    ("said", "asked", "most"),
    [
        ("input batch size 136 > maximum allowed batch size 64", 136, 64),
        ("The batch size limit is 1000. Your batch size is 1200", 1_200, 1_000),
        ("at most 100 requests can be in one batch", 2_048, 100),
        ("Too many inputs. The max number of inputs is 1.", 16, 1),
        ("input数组最大不得超过64条", 100, 64),
        ("The batchsize of texts is 300 but must be <= 250", 300, 250),
        ("Too many inputs in request, split into more batches.", 100, 50),
        ("Batch size too large", 64, 32),
        ("List should have at most 32 items after validation, not 100", 100, 32),
        ("at most 1,000 inputs", 2_048, 1_000),
        # About texts, and not their number
        ("input[3] has more than 1 line", 64, None),
        ("inputs: each must have at most 5 sentences", 64, None),
        ("documents: max size is 2 MB", 64, None),
        ("the inputs exceed 2.5MB", 64, None),
        ("invalid request: input must be at most 20kB", 64, None),
        ("This model's maximum context length is 512 tokens, the input has 600", 1_000, None),
        ("input (600 tokens) is too large to process. increase the physical batch size", 40, None),
        ("inputs must have at most 512 characters", 1_000, None),
        ("Bad request", 40, None),
        ("maximum 64 inputs", 64, None),
        ("", 40, None),
    ],
)
def test_words_about_the_number_of_texts_are_told_from_others(
    said: str, asked: int, most: int | None
) -> None:
    assert most_texts(said, asked) == most


def test_a_larger_answered_call_is_proof_that_the_number_is_not_it() -> None:
    refused = RefusedCalls()
    texts = [str(number) for number in range(64)]
    refused.refused(texts)
    assert refused.answered([str(number) for number in range(100, 200)]) is None
    assert refused.answered(texts[:32]) is None
    assert refused.answered(texts[32:]) is None


# What doctor says


def found(stack: WorkerServices, name: str) -> tuple[str, str]:
    finding = _ask_provider(stack, name, 60.0)()
    return finding.status, finding.detail


def serving(paths: dict[str, Answer]) -> Callable[[Asked], Answer]:
    def answer(asked: Asked) -> Answer:
        if asked.headers.get("authorization") == "Bearer wrong-key-123456":
            return 401, {"error": {"message": "Invalid key wrong-key-123456"}}
        return paths.get(asked.path, (404, {"detail": "Not Found"}))

    return answer


NO_CONTENT: Answer = (422, {"detail": [{"msg": "Field required"}]})
LISTED = {"data": [{"id": f"model-{number}"} for number in range(9)] + [{"id": "chat-1"}]}


def test_doctor_says_what_a_server_can_do_that_lists_no_models(open_stack: Open) -> None:
    with small_server(serving({"/v1/embeddings": NO_CONTENT})) as server:
        stack = open_stack(server.url, '[[models]]\nprovider = "small"\ntokens_per_text = 512\n')
        status, said = found(stack, "small")
        assert (status, said.split("; ")) == (
            "ok",
            [
                "answers",
                "embedding (bge-1, 2,048 texts a call, 512 tokens a text, no known price)",
                "it has no list of models",
            ],
        )
        assert all(not {"input", "messages"} & body.keys() for body in server.bodies("/"))


def test_doctor_names_a_default_model_that_is_not_there(open_stack: Open) -> None:
    paths = {"/v1/models": (200, LISTED), "/v1/chat/completions": NO_CONTENT}
    with small_server(serving(paths)) as server:
        stack = open_stack(server.url)
        assert found(stack, "small") == ("ok", "answers; generation (chat-1, no known price)")
        assert server.bodies("/chat/completions") == []
        paths["/v1/embeddings"] = NO_CONTENT
        status, said = found(stack, "small")
        assert status == "warning"
        assert "its list has no bge-1, but model-0, model-1" in said
        assert said.endswith("and 5 more")


def test_doctor_tells_a_wrong_address_and_a_wrong_key_apart(
    open_stack: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_server(serving({"/v1/models": (200, {"data": [{"id": "other"}]})})) as server:
        nowhere = "has no generation and no embedding at this address; check base_url."
        for path in ("/v1", "/nowhere"):
            assert found(open_stack(server.url, path=path), "small") == ("warning", nowhere)
        needs = open_stack(server.url, provider='api_key_env = "SMALL_KEY"')
        assert found(needs, "small") == (
            "warning",
            "small needs an API key, which is read from SMALL_KEY.",
        )
        monkeypatch.setenv("SMALL_KEY", "wrong-key-123456")
        status, said = found(open_stack(server.url, provider='api_key_env = "SMALL_KEY"'), "small")
        assert status == "warning"
        assert "SMALL_KEY" in said
        assert "wrong-key" not in said
    status, said = found(open_stack("http://127.0.0.1:9"), "small")
    assert (status, "could not be reached" in said) == ("warning", True)


def test_doctor_knows_the_names_in_the_file(open_stack: Open) -> None:
    stack = open_stack("http://127.0.0.1:9", '[[limits]]\nprovider = "smal"\nin_flight = 1\n')
    said = [one.detail for one in examine(stack) if one.name == "MODELS_FILE"]
    assert said == ["speaks of 'smal', which is no provider"]


# Azure


def test_azure_is_asked_in_its_own_way(open_stack: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key in a header of its own, the deployment in the path, the version in the query."""
    monkeypatch.setenv("AZURE_KEY", "azure-key-1234")
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "a-token-of-somebody")
    azure = 'api_version = "2024-10-21"\napi_key_env = "AZURE_KEY"'
    with small_server(refusing("nothing", 400, "")) as it:
        stack = open_stack(it.url, provider=azure, path="")
        assert ask(stack, max_tokens=5).state is JobState.SUCCEEDED
        work(stack, stack.runs.embed(["one"], provider="small").id)
        paths = [asked.path for asked in it.asked]
        assert paths == [
            "/openai/deployments/chat-1/chat/completions?api-version=2024-10-21",
            "/openai/deployments/bge-1/embeddings?api-version=2024-10-21",
        ]
        for asked in it.asked:
            assert asked.headers["api-key"] == "azure-key-1234"
            assert "authorization" not in asked.headers


# Its name, at every door


def test_whatever_takes_a_provider_takes_the_name(
    open_stack: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFAULT_LLM_PROVIDER", "small")
    monkeypatch.setenv("DEFAULT_EMBEDDING_PROVIDER", "small")
    with small_server(refusing("seed", 503, {"error": {"message": "Busy."}})) as server:
        stack = open_stack(
            server.url,
            f'[[providers]]\nname = "other"\nwire = "openai"\nbase_url = "{server.url}/v1"\n'
            '[[limits]]\nprovider = "small"\nin_flight = 7\n',
        )
        fallbacks = [Fallback(provider="other", model="chat-2")]
        answered = ask(stack, provider=None, fallbacks=fallbacks)
        assert (answered.provider, answered.model) == ("small", "chat-1")
        with serve(stack) as client:
            made = client.post("/api/v1/generations", json={"prompt": "x", "provider": "small"})
            assert made.json()["model"] == "chat-1"
            made = client.post("/api/v1/runs/embeddings", json={"items": ["x"]})
            assert (made.json()["provider"], made.json()["model"]) == ("small", "bge-1")
        job = stack.jobs.enqueue_embedding("An owl hunts.", source="owl")
        execute(stack, job.id)
        [hit, *_] = stack.search.search("owls", limit=1)
        assert hit.text == "An owl hunts."
        limit = stack.limiter.settings_for("small", "chat-1")
        assert limit is not None
        assert limit.in_flight == 7
        usage = {
            (row.provider, row.model) for row in stack.usage.sums([Group.PROVIDER, Group.MODEL])
        }
        assert usage == {("small", "chat-1"), ("small", "bge-1")}


def test_a_server_gets_no_header_that_is_meant_for_another(
    open_stack: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDKs send what these variables hold to whomever they talk to."""
    version = 'api_version = "2023-06-01"\n'
    for wire, variables in SENT.items():
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        with small_server(serving({})) as server:
            stack = open_stack(
                "http://127.0.0.1:9",
                f'[[providers]]\nname = "named"\nwire = "{wire}"\nbase_url = "{server.url}"\n'
                f'generation_model = "m"\n{version if wire == "anthropic" else ""}',
            )
            ask(stack, provider="named")
            [asked] = server.asked
            assert "secret" not in str(asked.headers)
        assert asked.headers.get("anthropic-version") == (
            "2023-06-01" if wire == "anthropic" else None
        )
