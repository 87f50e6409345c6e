"""A thread that repeats an action."""

import threading

from promptstack.worker.periodic import Periodic
from tests.processes import PATIENCE, wait_until

FOR_EVER = 3_600.0


def test_it_rests_while_nothing_is_to_be_done_and_acts_as_soon_as_it_is_woken() -> None:
    rounds = threading.Semaphore(0)
    periodic = Periodic("views", rounds.release, 0.0, idle_seconds=FOR_EVER)
    periodic.start()
    assert rounds.acquire(timeout=60), "the first round comes at once"
    for _ in range(3):
        assert not rounds.acquire(timeout=0.05)
        periodic.wake()
        assert rounds.acquire(timeout=60)
    periodic.stop()  # which does not wait for the rest


def test_what_comes_during_a_round_is_seen_to_in_the_next() -> None:
    began, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def act() -> None:
        began.release()
        assert go_on.acquire(timeout=PATIENCE)

    periodic = Periodic("views", act, 0.0, idle_seconds=FOR_EVER)
    periodic.start()
    assert began.acquire(timeout=60)
    periodic.wake()
    go_on.release()
    assert began.acquire(timeout=60)
    go_on.release()
    periodic.stop()


def test_an_error_ends_no_thread() -> None:
    rounds: list[int] = []

    def fail() -> None:
        rounds.append(1)
        raise RuntimeError("on purpose")

    periodic = Periodic("heartbeat", fail, 0.0)
    periodic.start()
    wait_until(lambda: len(rounds) > 1, "a round after the error")
    periodic.stop()
