"""`promptstack flags ...`."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from promptstack.api.cli.main import build
from promptstack.tasks.worker_services import WorkerServices


def cli(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(build(), ["flags", *arguments], prog_name="promptstack")
    assert result.exit_code == code, (result.output, result.exception)
    return result


def rules_after(*arguments: str) -> Any:
    return json.loads(cli("set", *arguments, "--json").stdout)["rules"]


def test_flags_are_set_for_all_or_some_and_unset(stack: WorkerServices) -> None:
    assert rules_after("ai_chat", "on") == [{}]
    assert rules_after("ai_chat", "off") == []
    assert rules_after(
        "ai_chat", "--tier", "pro", "--tier", "enterprise", "--percentage", "10"
    ) == [{"tiers": ["enterprise", "pro"], "percentage": 10}]
    assert rules_after("ai_chat", "--beta", "--environment", "test") == [
        {"environments": ["test"], "beta_testers": True}
    ]
    several = [{"users": ["ada@example.org"]}, {"roles": ["admin"]}]
    assert rules_after("ai_chat", "--rules", json.dumps(several)) == several
    shown = cli("show", "ai_chat").stdout
    assert "users ada@example.org or roles admin" in shown
    assert "database" in shown
    assert "advanced_analytics  everybody" in cli("list").stdout
    assert "holds again" in cli("unset", "ai_chat").stdout
    assert json.loads(cli("show", "ai_chat", "--json").stdout)["source"] == "settings"
    assert [flag["name"] for flag in json.loads(cli("list", "--json").stdout)["items"]] == [
        "advanced_analytics",
        "ai_chat",
    ]
    [entry, *_] = stack.audit.get_many(object_id="ai_chat")
    assert (entry.action, entry.actor_kind) == ("flag.deleted", "command_line")


@pytest.mark.parametrize(
    "arguments",
    [
        ("set", "ai_chat"),
        ("set", "ai_chat", "on", "--beta"),
        ("set", "ai_chat", "--beta", "--rules", "[]"),
        ("set", "ai_chat", "--rules", "{"),
        ("set", "ai_chat", "--rules", '[{"moon": 1}]'),
        ("set", "ai_chat", "--environment", "staging"),
        ("set", "ai_chat", "--percentage", "101"),
        ("set", "AI", "on"),
        ("set", "ai_chat", "maybe"),
        ("show", "unheard_of"),
        ("unset", "unheard_of"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_changes(
    arguments: tuple[str, ...], stack: WorkerServices
) -> None:
    refused = cli(*arguments, code=2)
    assert refused.stdout == ""
    assert refused.stderr
    assert "Traceback" not in refused.stderr
    assert stack.audit.get_many() == []
