"""The clamp of the wired limit, on a fake: the real one only matters on Metal."""

from types import SimpleNamespace

from forgellm.worker.wired import clamp_wired_limit


def fake_mlx() -> tuple[SimpleNamespace, list[int]]:
    asked: list[int] = []

    def set_wired_limit(limit: int) -> int:
        asked.append(limit)
        return 7

    return SimpleNamespace(set_wired_limit=set_wired_limit), asked


def test_mlx_lm_gets_at_most_the_budget_of_this_worker() -> None:
    """mlx-lm asks for the whole recommended working set, in every worker."""
    mx, asked = fake_mlx()
    clamp_wired_limit(mx, 100)
    assert [mx.set_wired_limit(90), mx.set_wired_limit(64 << 30)] == [7, 7]
    assert asked == [90, 100]


def test_a_second_clamp_replaces_the_first() -> None:
    mx, asked = fake_mlx()
    clamp_wired_limit(mx, 100)
    clamp_wired_limit(mx, 200)
    mx.set_wired_limit(1000)
    assert asked == [200]


def test_an_mlx_without_wired_limits_is_left_alone() -> None:
    mx = SimpleNamespace()
    clamp_wired_limit(mx, 100)
    assert not hasattr(mx, "set_wired_limit")
