"""When a server that has failed is asked again."""

from promptstack.services.circuit_breaker import CircuitBreaker


def test_a_failure_opens_it_for_its_rest() -> None:
    now = [100.0]
    circuit = CircuitBreaker(2.0, clock=lambda: now[0])
    assert not circuit.is_open()
    circuit.trip()
    assert circuit.is_open()
    now[0] = 101.9
    assert circuit.is_open()
    now[0] = 102.0
    assert not circuit.is_open()


def test_an_outage_begins_once_until_a_success() -> None:
    now = [0.0]
    circuit = CircuitBreaker(1.0, clock=lambda: now[0])
    assert circuit.trip()
    now[0] = 5.0
    assert not circuit.trip()
    circuit.reset()
    assert circuit.trip()
