"""Feature flags: who changes them, how soon all processes know, and what an outage leaves."""

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest

from promptstack.repositories.access_models import Tier
from promptstack.repositories.errors import LedgerUnavailable
from promptstack.repositories.session import Ledger
from promptstack.services.access.caller import Caller
from promptstack.services.audit.actor import Actor
from promptstack.services.errors import FeatureOff, InvalidInput, NotFound
from promptstack.services.flags.flags import MAX_FLAGS, FeatureFlags
from promptstack.services.flags.rules import OFF, ON, read_rules
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve
from tests.jobs import execute
from tests.processes import read_line

ADA = Caller(user_id=uuid4(), email="ada@example.org")
ME = Actor.command_line()
PROCESSES = 3
PROGRAM = """
import sys, time
from promptstack.config.settings import load_settings
from promptstack.tasks.composition import PromptStack

with PromptStack.open(load_settings(_env_file=None)) as stack:
    was = None
    while True:
        is_on = stack.flags.is_enabled("new_dashboard")
        if is_on != was:
            print(time.time(), is_on, flush=True)
        was = is_on
        time.sleep(0.05)
"""


class Broken(Ledger):
    """A ledger that is away."""

    def __init__(self) -> None:
        self.asked = 0

    def transaction(self) -> Any:
        self.asked += 1
        raise LedgerUnavailable("The database is away.")


def test_the_database_goes_before_the_settings(stack: WorkerServices) -> None:
    flags, service = stack.flags, stack.flag_service
    assert not flags.is_enabled("nobody_heard_of_it", ADA)
    assert flags.is_enabled("advanced_analytics", ADA)
    service.set("advanced_analytics", OFF, by=ME)
    assert not flags.is_enabled("advanced_analytics", ADA)
    service.set("advanced_analytics", read_rules({"users": [ADA.email]}), by=ME)
    assert flags.is_enabled("advanced_analytics", ADA)
    assert not flags.is_enabled("advanced_analytics")
    assert "advanced_analytics" in flags.enabled(ADA)
    service.unset("advanced_analytics", by=ME)
    assert flags.is_enabled("advanced_analytics")
    with pytest.raises(NotFound, match="settings"):
        service.unset("advanced_analytics", by=ME)
    with pytest.raises(NotFound, match="is off"):
        service.get("nobody_heard_of_it")
    with pytest.raises(FeatureOff, match="promptstack flags set ai_chat"):
        flags.check("ai_chat", ADA)


@pytest.mark.parametrize("name", ["", "A", "1a", "a-b", "a" * 65, "ä", "a b", "a\n"])
def test_a_name_that_can_be_none_is_refused(name: str, stack: WorkerServices) -> None:
    with pytest.raises(InvalidInput, match="small letters"):
        stack.flag_service.set(name, ON, by=ME)


def test_there_is_room_for_so_many(stack: WorkerServices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptstack.services.flags.service.MAX_FLAGS", 2)
    stack.flag_service.set("one", ON, by=ME)
    stack.flag_service.set("two", ON, by=ME)
    stack.flag_service.set("two", OFF, by=ME)
    with pytest.raises(InvalidInput, match="There are 2 feature flags"):
        stack.flag_service.set("three", ON, by=ME)
    assert MAX_FLAGS == 1_000


def test_rules_that_are_too_large_are_refused(stack: WorkerServices) -> None:
    users = [f"{'ä' * 100}{number}@example.org" for number in range(1_000)]
    with pytest.raises(InvalidInput, match="more than 1,000,000 bytes"):
        stack.flag_service.set("ai_chat", read_rules([{"users": users}] * 10), by=ME)
    assert stack.flag_service.get("ai_chat").source == "settings"


def test_changes_stand_in_the_audit_log(stack: WorkerServices) -> None:
    stack.flag_service.set("ai_chat", read_rules({"tiers": ["pro"]}), by=ME)
    stack.flag_service.set("ai_chat", ON, by=ME)
    stack.flag_service.unset("ai_chat", by=ME)
    entries = stack.audit.get_many(object_id="ai_chat", newest_first=False)
    assert [(entry.action, entry.detail) for entry in entries] == [
        ("flag.changed", {"before": [], "after": [{"tiers": ["pro"]}]}),
        ("flag.changed", {"before": [{"tiers": ["pro"]}], "after": [{}]}),
        ("flag.deleted", {"before": [{}]}),
    ]
    assert {entry.actor_kind for entry in entries} == {"command_line"}


@pytest.fixture
def watchers(environment: dict[str, str]) -> Iterator[list["subprocess.Popen[str]"]]:
    """Processes that say when they see the flag change."""
    with ExitStack() as running:
        processes = []
        for _ in range(PROCESSES):
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True
            )
            running.enter_context(process)  # waits for its end, and closes the pipe
            running.callback(process.kill)
            processes.append(process)
        yield processes


def test_three_processes_know_a_change_within_5_s(
    watchers: list["subprocess.Popen[str]"], stack: WorkerServices
) -> None:
    def said(process: "subprocess.Popen[str]") -> tuple[float, str]:
        assert process.stdout is not None
        at, is_on = read_line(process.stdout, "what a watcher sees").split()
        return float(at), is_on

    assert {said(process)[1] for process in watchers} == {"False"}
    for rules, expected in ((ON, "True"), (OFF, "False"), (ON, "True")):
        stack.flag_service.set("new_dashboard", rules, by=ME)
        changed_at = time.time()
        for process in watchers:
            at, is_on = said(process)
            assert is_on == expected
            assert at - changed_at < 5


def test_many_uses_are_one_statement(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    reread = FeatureFlags._reread

    def count(flags: FeatureFlags) -> None:
        read.append(1)
        reread(flags)

    monkeypatch.setattr(FeatureFlags, "_reread", count)
    now = [0.0]
    flags = FeatureFlags(stack.ledger, {}, "test", clock=lambda: now[0])
    for _ in range(1_000):
        flags.is_enabled("ai_chat", ADA)
        now[0] += 0.01
    assert 5 <= len(read) <= 6


def test_what_was_known_holds_while_the_ledger_is_away(
    stack: WorkerServices, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.flag_service.set("ai_chat", ON, by=ME)
    now = [0.0]
    flags = FeatureFlags(stack.ledger, {}, "test", clock=lambda: now[0])
    assert flags.is_enabled("ai_chat", ADA)
    broken = Broken()
    monkeypatch.setattr(flags, "_ledger", broken)
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            now[0] += 3
            assert flags.is_enabled("ai_chat", ADA)
    assert broken.asked == 10
    assert len(caplog.records) == 1
    monkeypatch.setattr(flags, "_ledger", stack.ledger)
    stack.flag_service.set("ai_chat", OFF, by=ME)
    now[0] += 3
    assert not flags.is_enabled("ai_chat", ADA)


def test_settings_hold_where_the_ledger_was_never_seen() -> None:
    flags = FeatureFlags(Broken(), {"ai_chat": ON}, "test")
    assert flags.is_enabled("ai_chat", ADA)
    assert not flags.is_enabled("other", ADA)


def test_rules_of_a_later_version_are_off(
    stack: WorkerServices, caplog: pytest.LogCaptureFixture
) -> None:
    with stack.ledger.transaction() as unit:
        unit.flags.put("ai_chat", [{"moon": "full"}], "later")
    assert not stack.flags.is_enabled("ai_chat", ADA)
    assert "ai_chat is off" in caplog.text


def test_administrators_change_flags_over_http(stack: WorkerServices) -> None:
    with serve(stack, is_admin=True) as admin, serve(stack, "bob@example.org") as bob:
        said = admin.put("/api/v1/flags/ai_chat", json={"rules": [{"tiers": ["pro"]}]})
        assert said.status_code == 200, said.text
        assert said.json()["rules"] == [{"tiers": ["pro"]}]
        assert (said.json()["source"], said.json()["changed_by"]) == ("database", "ada@example.org")
        assert admin.get("/api/v1/flags/ai_chat").json() == said.json()
        names = [flag["name"] for flag in admin.get("/api/v1/flags").json()["flags"]]
        assert names == ["advanced_analytics", "ai_chat"]
        assert bob.get("/api/v1/features").json() == {"features": ["advanced_analytics"]}
        with stack.ledger.transaction() as unit:
            user = unit.users.get_by_email("bob@example.org")
            assert user is not None
            unit.users.update(user, tier=Tier.PRO)
        assert "ai_chat" in bob.get("/api/v1/features").json()["features"]
        for refused in (
            bob.get("/api/v1/flags"),
            bob.put("/api/v1/flags/ai_chat", json={"rules": [{}]}),
            bob.delete("/api/v1/flags/ai_chat"),
        ):
            problem(refused, 403, "NOT_PERMITTED")
        assert admin.delete("/api/v1/flags/ai_chat").status_code == 204
        problem(admin.delete("/api/v1/flags/ai_chat"), 404, "NOT_FOUND")
        wrongs: list[dict[str, Any]] = [
            {"rules": [{"moon": 1}]},
            {"rules": [{}] * 21},
            {"rules": []} | {"x": 1},
            {},
        ]
        for wrong in wrongs:
            problem(admin.put("/api/v1/flags/ai_chat", json=wrong), 422, "INVALID_INPUT")
        problem(admin.put("/api/v1/flags/No", json={"rules": []}), 422, "INVALID_INPUT")


def test_costs_by_model_and_day_are_for_whom_analytics_is_on(stack: WorkerServices) -> None:
    with serve(stack) as client:
        with stack.ledger.transaction() as unit:
            user = unit.users.get_by_email("ada@example.org")
            assert user is not None
        execute(stack, stack.jobs.enqueue_generation("Hello.", user_id=user.id).id)
        [row] = client.get("/api/v1/usage").json()
        assert row["model"]
        assert row["day"]
        stack.flag_service.set("advanced_analytics", OFF, by=ME)
        [row] = client.get("/api/v1/usage").json()
        assert (row["calls"], row["model"], row["day"]) == (1, None, None)
        assert (
            client.get("/api/v1/usage", params={"by": "provider"}).json()[0]["provider"] == "demo"
        )
        for by in ("model", "day"):
            problem(client.get("/api/v1/usage", params={"by": by}), 403, "FEATURE_OFF")


def test_who_reads_the_flags_holds_up_nobody(stack: WorkerServices) -> None:
    """A waiting read of the ledger never holds up others: they go on with what is known."""
    now = [0.0]
    flags = FeatureFlags(stack.ledger, {}, "test", clock=lambda: now[0])
    assert not flags.is_enabled("ai_chat")
    stack.flag_service.set("ai_chat", ON, by=ME)
    now[0] += 60
    with flags._reading:
        assert not flags.is_enabled("ai_chat")
    assert flags.is_enabled("ai_chat")
