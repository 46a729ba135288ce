"""The gate bounds who holds a thread, and empties when it closes."""

import pytest

from forgellm.api.gate import Gate
from forgellm.errors import ShuttingDown, Unavailable


def test_a_full_gate_says_when_to_come_back():
    gate = Gate(1)
    with gate.place():
        with pytest.raises(Unavailable, match="max_streams") as caught:
            gate.enter()
        assert caught.value.retry_after_s == 1
    with gate.place():
        pass


def test_a_closed_gate_lets_nobody_in_and_knows_when_it_is_empty():
    gate = Gate(2)
    gate.enter()
    gate.close()
    with pytest.raises(ShuttingDown):
        gate.enter()
    assert not gate.wait_empty(0.001)
    gate.leave()
    assert gate.wait_empty(0.001)
