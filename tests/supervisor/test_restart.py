"""What the end of a worker says, and what a worker that ran out of GPU memory is started again with."""

import signal
from typing import Any

import pytest
from world import World

from forgellm.errors import GpuOutOfMemory, ModelChanged
from forgellm.messages import EngineOptions, Hello, Imported, Load, LoadFailed
from forgellm.states import WorkerState
from forgellm.supervisor.effects import Died, Send
from forgellm.supervisor.restart import gpu_oom_line, shrunk

S = WorkerState
NO_MEMORY = "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallback…)"
OOM: dict[str, Any] = {"words": "the worker ran out of GPU memory", "code": -signal.SIGABRT, "cause": "gpu_oom"}


@pytest.mark.parametrize(
    "line",
    [
        f"libc++abi: terminating due to uncaught exception of type std::runtime_error: {NO_MEMORY}",
        "[METAL] Command buffer execution failed: Caused GPU Timeout Error (00000002:kIOGPUCommandBuffer…)",
        "RuntimeError: [metal::malloc] Resource limit (499000) exceeded.",
    ],
)
def test_chaos_007_what_metal_says_before_an_abort_is_found_above_the_stacks(line: str) -> None:
    log = f"loading\n{line}\nFatal Python error: Aborted\n" + '  File "x.py", line 3 in step\n' * 50
    assert gpu_oom_line(-signal.SIGABRT, log) == line
    assert gpu_oom_line(1, log) == line
    assert gpu_oom_line(-signal.SIGKILL, log) == ""
    assert gpu_oom_line(-signal.SIGABRT, "Insufficient Memory, said the user") == ""


def test_a_smaller_footprint_is_half_the_batch_and_no_prefix_cache() -> None:
    assert shrunk(EngineOptions(max_batch=32)) == EngineOptions(max_batch=16, prefix_cache_bytes=0)
    assert shrunk(EngineOptions(max_batch=1)).max_batch == 1


def test_a_worker_that_ran_out_of_gpu_memory_goes_on_once_with_a_smaller_footprint() -> None:
    """Its requests are replayed as after any death; the second time the model has failed, with the words."""
    world = World(backoff_max_s=30)
    first = world.loaded(max_batch=4)
    request = world.ask()
    world.die(first, **OOM)
    (second,) = world.alive
    assert [e.cause for e in world.effects if isinstance(e, Died)] == ["gpu_oom"]
    assert "half the batch" in world.worker().reason
    (load,) = [e.command for e in world.effects if isinstance(e, Send) and e.life == second]
    assert isinstance(load, Load)
    assert (load.options.max_batch, load.options.prefix_cache_bytes) == (2, 0)
    world.ready(second)
    world.token(second, request)
    requests = [world.ask() for _ in range(3)]
    assert world.worker().in_flight == 2, "no more than half the batch"
    world.die(second, **OOM)
    assert world.alive == []
    assert world.worker().state is S.FAILED
    assert (world.model().error_code, world.model().error) == ("gpu_oom", OOM["words"])
    assert all(isinstance(world.delivered(each)[-1], GpuOutOfMemory) for each in (request, *requests))
    assert isinstance(world.news(world.ask()), GpuOutOfMemory)
    world.load(ticket="again")
    (third,) = world.alive
    assert world.commands(third) == ["Load"]


def test_a_model_that_cannot_shrink_or_is_still_loading_has_failed_at_once() -> None:
    world = World()
    world.load()
    world.say(1, Hello(1), Imported())
    world.die(1, **OOM)
    assert isinstance(world.news("load"), GpuOutOfMemory)
    world = World()
    life = world.loaded(max_batch=1, prefix_cache_bytes=0)
    world.die(life, **OOM)
    assert world.worker().state is S.FAILED


def test_a_model_whose_files_changed_is_not_respawned_and_says_so_until_it_is_loaded_again() -> None:
    world = World()
    life = world.loaded()
    request = world.ask()
    world.die(life, "the worker crashed (SIGBUS)", code=-signal.SIGBUS)
    (second,) = world.alive
    world.say(second, Hello(2), Imported(), LoadFailed("model_changed", "weights.gguf was changed"))
    world.die(second, "the worker could not load its model", code=65)
    assert world.alive == []
    assert (world.model().state, world.model().error_code) == (S.FAILED, "model_changed")
    assert isinstance(world.news(request), ModelChanged)
    world.load(ticket="again")
    world.ready(world.alive[0])
    assert world.worker().state is S.READY
