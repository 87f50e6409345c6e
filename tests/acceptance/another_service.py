"""Another service's Celery app: it knows the names of our tasks and queues, and no code of ours.

python another_service.py worker             its own worker, for the tasks that follow ours
python another_service.py call NAME [JSON]   one of the calls below, whose answer is printed
"""

import json
import os
import sys
import uuid
from typing import Any

from celery import Celery, chord, group, signature

app = Celery("shop", broker=os.environ["SHOP_BROKER"], backend=os.environ["SHOP_BROKER"])
TEXT, VECTORS = "tasks.generation.generate_text", "tasks.embeddings.generate_embeddings"
WAIT = 90.0
redis: Any = app.backend


@app.task(name="shop.say")
def say(text: str) -> str:
    return text


@app.task(name="shop.keep")
def keep(result: Any, name: str) -> Any:
    """Keep what a task of theirs came to; every call counts."""
    redis.client.rpush(f"shop:{name}", json.dumps(result))
    return result


@app.task(name="shop.regret")
def regret(task_id: str, name: str) -> None:
    redis.client.rpush(f"shop:{name}", json.dumps(task_id))


def generate(prompt: str, **options: Any) -> Any:
    given = {"prompt": prompt, "provider": "demo", **options}
    return signature(TEXT, kwargs=given, queue="generation", immutable=True, app=app)


def kept(name: str) -> list[Any]:
    return [json.loads(each) for each in redis.client.lrange(f"shop:{name}", 0, -1)]


def outcome(result: Any) -> dict[str, Any]:
    """What `get` gives or raises."""
    try:
        return {"id": result.id, "result": result.get(timeout=WAIT)}
    except Exception as error:  # noqa: BLE001 - whatever it raises is the answer
        return {"id": result.id, "raised": type(error).__name__, "says": str(error)}


def send(
    name: str = TEXT, args: list[Any] | None = None, queue: str = "generation", **options: Any
) -> Any:
    return outcome(app.send_task(name, args=args, queue=queue, **options))


def send_only(kwargs: dict[str, Any], task_id: str | None = None, times: int = 1) -> str:
    chosen = task_id or str(uuid.uuid4())
    for _ in range(times):
        app.send_task(TEXT, kwargs=kwargs, queue="generation", task_id=chosen)
    return chosen


def result_of(task_id: str) -> Any:
    return outcome(app.AsyncResult(task_id))


def chain_of(name: str, **options: Any) -> Any:
    """Ours, then theirs, which has no queue of its own."""
    return outcome((generate("One.", **options) | keep.s(name)).apply_async())


def chain_into() -> Any:
    """Theirs, then ours: its result is the prompt."""
    ours = signature(TEXT, kwargs={"provider": "demo"}, queue="generation", app=app)
    return outcome((say.s("Say what they said.") | ours).apply_async())


def chain_on() -> Any:
    """Ours twice, then theirs."""
    return outcome((generate("One.") | generate("Two.") | keep.s("on")).apply_async())


def grouped() -> Any:
    result = group(generate(f"Number {n}.") for n in range(4)).apply_async()
    return [each["state"] for each in result.get(timeout=WAIT)]


def chord_of(name: str, options: list[dict[str, Any]]) -> Any:
    header = [generate(f"Number {n}.", **each) for n, each in enumerate(options)]
    return outcome(chord([*header, say.s("ours")], keep.s(name)).apply_async())


def chord_only(name: str, options: list[dict[str, Any]]) -> Any:
    header = [generate(f"Number {n}.", **each) for n, each in enumerate(options)]
    result: Any = chord(header, keep.s(name)).apply_async()
    return [result.id, [each.id for each in result.parent.results]]


def linked(name: str, **options: Any) -> Any:
    task = generate("One.", **options).on_error(regret.s(name))
    task.link(keep.s(name))
    return outcome(task.apply_async())


CALLS: list[Any] = [
    send, send_only, result_of, chain_of, chain_into, chain_on, grouped, chord_of, chord_only,
    linked, kept,
]  # fmt: skip

if __name__ == "__main__":
    if sys.argv[1] == "worker":
        app.worker_main(["worker", "--pool=solo", "--loglevel=INFO", "--without-gossip"])
    call = {each.__name__: each for each in CALLS}[sys.argv[2]]
    given = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    sys.stdout.write(json.dumps(call(**given)))
    assert not [name for name in sys.modules if name.startswith("promptstack")]
