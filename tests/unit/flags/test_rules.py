"""The rules of feature flags: whom they fit, and what is refused."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstack.config.errors import ConfigurationError
from promptstack.config.settings import load_settings
from promptstack.repositories.access_models import Role, Tier
from promptstack.services.flags.rules import (
    MAX_RULES,
    MAX_USERS,
    OFF,
    ON,
    on_for,
    place_of,
    read_rules,
)
from promptstack.tasks.from_settings import feature_flags

ADAS_ID = UUID(int=7)


@dataclass(frozen=True)
class Somebody:
    user_id: UUID = ADAS_ID
    email: str = "ada@example.org"
    role: Role = Role.USER
    tier: Tier = Tier.FREE
    is_beta_tester: bool = False


ADA = Somebody()
USERS = st.builds(
    Somebody,
    user_id=st.uuids(),
    role=st.sampled_from(Role),
    tier=st.sampled_from(Tier),
    is_beta_tester=st.booleans(),
)


def is_on(said: object, user: Somebody | None = ADA, environment: str = "test") -> bool:
    return on_for(read_rules(said), "flag", environment, user)


@pytest.mark.parametrize(
    ("said", "user", "expected"),
    [
        (True, ADA, True),
        (False, ADA, False),
        ([], ADA, False),
        ({}, ADA, True),
        ({}, None, True),
        ({"environments": ["test"]}, ADA, True),
        ({"environments": ["test"]}, None, True),
        ({"environments": ["production"]}, ADA, False),
        ({"roles": ["admin", "super_admin"]}, ADA, False),
        ({"roles": ["admin"]}, Somebody(role=Role.ADMIN), True),
        ({"tiers": ["pro"]}, ADA, False),
        ({"tiers": ["pro"]}, Somebody(tier=Tier.PRO), True),
        ({"tiers": ["pro"]}, None, False),
        ({"beta_testers": True}, ADA, False),
        ({"beta_testers": True}, Somebody(is_beta_tester=True), True),
        ({"users": ["ADA@Example.org"]}, ADA, True),
        ({"users": ["bob@example.org"]}, ADA, False),
        ({"percentage": 100}, ADA, True),
        ({"percentage": 0}, ADA, False),
        ({"percentage": 100}, None, False),
        ([{"tiers": ["pro"]}, {"users": ["ada@example.org"]}], ADA, True),
        ({"tiers": ["pro"], "users": ["ada@example.org"]}, ADA, False),
        ({"tiers": ["pro"], "percentage": 100}, Somebody(tier=Tier.PRO), True),
    ],
)
def test_whom_rules_fit(said: object, user: Somebody | None, expected: bool) -> None:
    assert is_on(said, user) is expected


@given(USERS, st.floats(0, 100), st.floats(0, 100))
def test_raising_a_percentage_keeps_whom_it_had(user: Somebody, one: float, other: float) -> None:
    low, high = sorted([one, other])
    if is_on({"percentage": low}, user):
        assert is_on({"percentage": high}, user)
    assert is_on({"percentage": low}, user) == is_on({"percentage": low}, user)


def test_a_percentage_is_about_so_many_and_others_for_another_flag() -> None:
    users = [uuid4() for _ in range(2_000)]
    first = {user for user in users if place_of("first", user) < 10}
    second = {user for user in users if place_of("second", user) < 10}
    assert 120 < len(first) < 290
    assert len(first & second) < 90


def test_who_is_in_does_not_change_with_a_release() -> None:
    """These numbers may never change: whoever has a feature would lose it."""
    assert place_of("ai_chat", UUID(int=1)) == pytest.approx(PLACES[0])
    assert place_of("ai_chat", UUID(int=2)) == pytest.approx(PLACES[1])
    assert place_of("new_dashboard", UUID(int=1)) == pytest.approx(PLACES[2])


PLACES = (91.98042032449973, 71.53872488137239, 70.36004252157181)


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "environments": st.lists(
                    st.sampled_from(["development", "production"]), min_size=1
                ),
                "roles": st.lists(st.sampled_from(Role), min_size=1),
                "tiers": st.lists(st.sampled_from(Tier), min_size=1),
                "beta_testers": st.just(True),
                "users": st.lists(st.emails(), min_size=1),
                "percentage": st.floats(0, 100),
            },
        ),
        max_size=3,
    )
)
def test_rules_are_read_back_as_they_were_written(said: list[dict[str, Any]]) -> None:
    rules = read_rules(said)
    assert read_rules([rule.as_json() for rule in rules]) == rules


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"role": ["admin"]}, "role"),
        ({"roles": ["king"]}, "roles"),
        ({"roles": "admin"}, "roles"),
        ({"tiers": [1]}, "tiers"),
        ({"environments": ["staging"]}, "environments"),
        ({"percentage": 101}, "percentage"),
        ({"percentage": -1}, "percentage"),
        ({"percentage": "nan"}, "percentage"),
        ({"percentage": "5"}, "percentage"),
        ({"percentage": True}, "percentage"),
        ({"beta_testers": False}, "beta_testers"),
        ({"users": ["a" * 300]}, "users"),
        *(({name: []}, name) for name in ("environments", "roles", "tiers", "users")),
        ({"users": ["a@b.c\n"]}, "users"),
        ({"users": [f"{n}@example.org" for n in range(MAX_USERS + 1)]}, "users"),
        ([{}] * (MAX_RULES + 1), "20"),
        ("on", "tuple"),
        (None, "tuple"),
        (1, "tuple"),
    ],
)
def test_what_is_no_rule_is_refused_in_a_sentence(said: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_rules(said)


def test_settings_say_flags_over_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert feature_flags(load_settings())["ai_chat"] == OFF
    monkeypatch.setenv("FEATURE_FLAGS", '{"ai_chat": true, "mine": {"tiers": ["pro"]}}')
    flags = feature_flags(load_settings())
    assert flags["ai_chat"] == ON
    assert flags["advanced_analytics"] == ON
    assert [rule.as_json() for rule in flags["mine"]] == [{"tiers": ["pro"]}]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("on", "must be a JSON object"),
        ("[1]", "must be a JSON object"),
        ('{"ai_chat": "yes"}', "'ai_chat'"),
        ('{"AI Chat": true}', "small letters"),
        ('{"ai_chat": {"tier": "pro"}}', "tier"),
        ("[" * 100_000, "must be a JSON object"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(
    said: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_FLAGS", said)
    with pytest.raises(ConfigurationError, match="FEATURE_FLAGS") as refused:
        feature_flags(load_settings())
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
