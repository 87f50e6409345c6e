"""POST /chat of a server process, with curl for a client and a real worker."""

import json
import subprocess
from collections.abc import Callable

from promptstack.repositories.models import JobState
from promptstack.services.audit.actor import Actor
from promptstack.services.flags.rules import ON
from promptstack.tasks.composition import PromptStack
from tests.doors import Door
from tests.processes import PATIENCE, Process, wait_until


def test_the_answer_comes_in_time_and_who_hangs_up_loses_nothing(
    stack: PromptStack, start_worker: Callable[..., Process], open_door: Callable[..., Door]
) -> None:
    door = open_door()
    key = f"X-API-Key: {stack.keys.create('ada@example.org', 'Ada')}"

    def chat(*options: str, **body: object) -> list[str]:
        return [*options, "-H", key, "-H", "Content-Type: application/json", "-d", json.dumps(body)]

    status, problem = door.curl("/api/v1/chat", *chat(prompt="Hello."))
    assert (status, problem["code"]) == (403, "FEATURE_OFF")
    stack.flag_service.set("ai_chat", ON, by=Actor.command_line())
    wait_until(
        lambda: door.curl("/api/v1/features", "-H", key)[1]["features"].count("ai_chat"),
        "the flag in the server",
    )
    # Nobody works yet. The client gives up after a second, and the server notices.
    gave_up = ["curl", "-s", "-m", "1", f"{door.url}/api/v1/chat", *chat(prompt="Wait for me.")]
    assert subprocess.run(gave_up, check=False, timeout=PATIENCE).returncode == 28
    [job] = stack.jobs.get_many()
    assert job.state is JobState.QUEUED
    start_worker()
    status, answered = door.curl("/api/v1/chat", *chat(prompt="Say hello."))
    assert status == 200
    assert "Say hello." in answered["result"]["text"]
    wait_until(lambda: stack.jobs.get(job.id).state is JobState.SUCCEEDED, "the other answer")
    assert door.end()[0] == 0
