"""What is learned of refusals, whatever they say and whether Redis is there."""

from unittest.mock import Mock

from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError

from promptstack.services.llm.learned import MOST_MODELS, LearnedFacts, RefusedCalls, most_texts
from promptstack.services.llm.openai.substitutes import (
    SUBSTITUTES,
    as_taken,
    refused_field,
    without,
)

WORDS = st.lists(
    st.one_of(
        st.integers(0, 10**25).map(str),
        st.sampled_from(["batch", "inputs", "at most", "max", "too many", "数组", "larger than"]),
        st.sampled_from([*SUBSTITUTES, "unsupported", "extra"]),
        st.text(max_size=8),
    ),
    max_size=12,
).map(" ".join)


@given(WORDS, st.integers(2, 3_000))
def test_a_learned_batch_size_is_smaller_and_at_least_one(said: str, asked: int) -> None:
    most = most_texts(said, asked)
    assert most is None or 1 <= most < asked


@given(WORDS, st.sets(st.sampled_from(sorted(SUBSTITUTES))))
def test_a_body_in_other_words_holds_the_same_values(said: str, fields: set[str]) -> None:
    left_out = {name for name in fields if SUBSTITUTES[name].field is None}
    body = {"model": "m", **dict.fromkeys(fields - left_out, 5), **dict.fromkeys(left_out, 6)}
    field = refused_field(body, said)
    if field is not None:
        changed = without(body, field)
        assert field not in changed
        assert (changed["model"], set(changed.values()) >= {5}) == ("m", 5 in body.values())
        substitute = SUBSTITUTES[field]
        assert field not in as_taken(body, {substitute.fact: substitute.value})


@given(st.lists(st.tuples(st.sets(st.integers(0, 40), min_size=1), st.booleans()), max_size=40))
def test_a_limit_that_is_proven_is_below_each_call_that_proves_it(
    calls: list[tuple[set[int], bool]],
) -> None:
    refused, sizes = RefusedCalls(), [0]
    for texts, is_answered in calls:
        words = [str(text) for text in sorted(texts)]
        if is_answered:
            proven = refused.answered(words)
            assert proven is None or 1 <= proven < max(sizes)
        else:
            refused.refused(words)
            sizes.append(len(words))


def test_without_redis_a_process_knows_what_it_has_met() -> None:
    redis = Mock()
    redis.hgetall.side_effect = redis.hset.side_effect = RedisConnectionError("away")
    now = [0.0]
    learned = LearnedFacts(redis, clock=lambda: now[0])
    assert learned.of("s", "m") == {}
    learned.learn("s", "m", "texts_per_call", 32)
    learned.learn("s", "m", "texts_per_call", 10)
    learned.learn("s", "m", "texts_per_call", 32)
    now[0] = 100.0
    assert learned.of("s", "m") == {"texts_per_call": "10"}


def test_what_is_remembered_of_models_is_bounded() -> None:
    learned = LearnedFacts()
    for number in range(MOST_MODELS + 5):
        learned.learn("s", f"model-{number}", "texts_per_call", 10)
    assert len(learned._known) <= MOST_MODELS
