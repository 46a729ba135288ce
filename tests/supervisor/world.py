"""A world for the pure pool: it plays the workers by hand, and passes the time in. No process, no thread, no sleep."""

import signal
from collections.abc import Iterable
from typing import Any

from forgellm.config import Settings
from forgellm.errors import ModelNotLoaded
from forgellm.messages import (
    Bye,
    Chunk,
    EngineOptions,
    Event,
    FinishReason,
    Generate,
    Hello,
    Imported,
    LoadFailed,
    LoadPolicy,
    ModelSource,
    Ready,
    Request,
    Timeouts,
    Usage,
)
from forgellm.supervisor.effects import Deliver, Effect, Send, Signal, Spawn
from forgellm.supervisor.pool import Pool
from forgellm.supervisor.slots import DeathCause, LoadOrder
from forgellm.supervisor.status import ModelStatus, WorkerStatus
from model_info import INFO


def order(name: str = "m", **kwargs: Any) -> LoadOrder:
    options = EngineOptions(
        max_batch=kwargs.pop("max_batch", 32),
        context_length=kwargs.pop("context_length", None),
        prefix_cache_bytes=kwargs.pop("prefix_cache_bytes", 1 << 30),
    )
    return LoadOrder(source=ModelSource(name=name, kind="echo"), options=options, **kwargs)


class World:
    """Collects the pool's effects and answers them as workers would, one word at a time."""

    def __init__(self, **settings: Any) -> None:
        self.pool = Pool(Settings(**{"spare": False, **settings}))
        self.now = 100.0
        self.effects: list[Effect] = []
        self.alive: list[int] = []
        self.on_demand: dict[str, LoadOrder] = {}  # what a request for a model that is not there loads
        self._numbers = iter(range(1, 1_000_000))

    def do(self, effects: Iterable[Effect]) -> list[Effect]:
        effects = list(effects)
        self.effects += effects
        self.alive += [e.life for e in effects if isinstance(e, Spawn)]
        return effects

    # what users do

    def load(self, name: str = "m", ticket: str = "load", **kwargs: Any) -> list[Effect]:
        return self.do(self.pool.load(order(name, **kwargs), ticket, self.now))

    def loaded(self, name: str = "m", **kwargs: Any) -> int:
        """Load a model and bring all its workers to ready; returns the last life."""
        self.load(name, **kwargs)
        for life in list(self.alive):
            self.ready(life)
        return self.alive[-1]

    def unload(self, name: str | None = "m", ticket: str = "unload", *, force: bool = False) -> list[Effect]:
        return self.do(self.pool.unload(name, ticket, self.now, force=force))

    def ask(
        self,
        model: str = "m",
        request_id: str | None = None,
        client: str = "",
        keep_alive_s: float | None = None,
        load_policy: LoadPolicy | None = None,
        **timeouts: float,
    ) -> str:
        request_id = request_id or f"r{next(self._numbers)}"
        request = Request(
            request_id=request_id,
            model=model,
            client=client,
            prompt="x",
            keep_alive_s=keep_alive_s,
            load_policy=load_policy,
            timeouts=Timeouts(**timeouts),
        )
        nobody = ModelNotLoaded(f"{model} is not loaded", field="model")
        missing = nobody if load_policy == "preloaded" else self.on_demand.get(model, nobody)
        self.do(self.pool.submit(request, missing, self.now))
        return request_id

    def abort(self, request_id: str) -> list[Effect]:
        return self.do(self.pool.abort(request_id, self.now))

    def drain(self, name: str | None = None, ticket: str = "drain", timeout_s: float = 30.0) -> list[Effect]:
        return self.do(self.pool.drain(name, ticket, timeout_s, self.now))

    def resume(self, name: str | None = None) -> list[Effect]:
        return self.do(self.pool.resume(name, self.now))

    # what workers do

    def say(self, life: int, *events: Event) -> list[Effect]:
        return [e for event in events for e in self.do(self.pool.receive(life, event, self.now))]

    def ready(self, life: int) -> list[Effect]:
        return self.say(life, Hello(1000 + life), Imported(), Ready(INFO, 7, 3))

    def token(self, life: int, request_id: str, text: str = "t", finish: FinishReason | None = None) -> list[Effect]:
        usage = Usage(prompt_tokens=1, completion_tokens=1) if finish else None
        chunk: Chunk = (request_id, text, (1,), None, finish, usage, None)
        return self.say(life, (chunk,))

    def fail_load(self, life: int, code: str = "model_invalid") -> None:
        self.say(life, Hello(1000 + life), Imported(), LoadFailed(code, "its files are broken"))
        self.die(life, "could not load")

    def die(
        self,
        life: int,
        words: str = "the worker was killed",
        code: int = -signal.SIGKILL,
        cause: DeathCause | None = None,
    ) -> list[Effect]:
        self.alive.remove(life)
        return self.do(self.pool.exited(life, code, words, self.now, cause=cause))

    def crash(self, life: int) -> list[Effect]:
        """Unlike a SIGKILL it came from inside: it counts against the worker, or the request that it ran."""
        return self.die(life, "the worker crashed (SIGSEGV)", code=-signal.SIGSEGV)

    def leave(self, life: int) -> list[Effect]:
        """A worker that obeys an Unload."""
        return [*self.say(life, Bye()), *self.die(life, "exited")]

    def wait(self, seconds: float) -> list[Effect]:
        """Let time pass, and tick as often as the pool asks for it."""
        end, effects = self.now + seconds, []
        while self.pool.deadline() <= end:
            self.now = max(self.now, self.pool.deadline())
            effects += self.do(self.pool.tick(self.now))
        self.now = end
        return effects

    # what can be seen

    def delivered(self, to: str) -> list[Any]:
        return [e.news for e in self.effects if isinstance(e, Deliver) and e.to == to]

    def news(self, to: str) -> Any:
        """The one thing that was delivered to `to`."""
        (news,) = self.delivered(to)
        return news

    def generates(self) -> list[tuple[int, Generate]]:
        """Each (life, Generate) that was sent, in order."""
        sends = [e for e in self.effects if isinstance(e, Send)]
        return [(e.life, e.command) for e in sends if isinstance(e.command, Generate)]

    def resumed(self, request_id: str) -> list[tuple[int, tuple[int, ...]]]:
        """Where a request was run, and after which tokens."""
        return [(life, c.request.resume) for life, c in self.generates() if c.request.request_id == request_id]

    def life_of(self, request_id: str) -> int | None:
        return next((life for life, _ in self.resumed(request_id)), None)

    def signals(self, life: int) -> list[signal.Signals]:
        return [signal.Signals(e.number) for e in self.effects if isinstance(e, Signal) and e.life == life]

    def commands(self, life: int) -> list[str]:
        return [type(e.command).__name__ for e in self.effects if isinstance(e, Send) and e.life == life]

    def model(self, name: str = "m") -> ModelStatus:
        found = self.pool.status().model(name)
        assert found is not None, f"{name} is not loaded"
        return found

    def worker(self, name: str = "m", replica: int = 1) -> WorkerStatus:
        return self.model(name).workers[replica - 1]
