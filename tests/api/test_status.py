"""How a pool's status is drawn for people."""

import time

from pictures import model_status, pool_status

from forgellm.api.status import status_body


def test_times_of_another_machine_are_told_by_its_own_clock() -> None:
    """Monotonic clocks begin at a machine's start: what one says is nothing to another."""
    picture = pool_status(model_status("m", since=990.0), current="m", clock=1000.0)
    assert abs(time.time() - 10 - status_body(picture)["since"]) < 5
