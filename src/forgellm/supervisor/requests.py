"""All requests that have not ended: their queues, their places in workers, their ends. A part of the pure pool.

Also what a death or a move does to them: they go on elsewhere, after the tokens that were delivered. Knows nothing of
loads, memory and lifecycles, but for asking a draining worker to stop when its last request has gone.
"""

from dataclasses import replace

from forgellm.config import Settings
from forgellm.errors import ForgeLLMError, ModelUnloading, RequestCrashesWorker, from_wire
from forgellm.messages import Abort, Chunk, Generate, Prefill, Request, RequestFailed, Usage
from forgellm.states import WorkerState
from forgellm.supervisor import deadlines
from forgellm.supervisor.effects import Send
from forgellm.supervisor.lifecycle import Lifecycle
from forgellm.supervisor.outbox import Outbox
from forgellm.supervisor.replay import charge, is_quarantined
from forgellm.supervisor.slots import Asked, Model, Slot

_S = WorkerState


class Requests:
    """Every request by its id, from the moment it is taken to its one ending."""

    def __init__(self, settings: Settings, out: Outbox, life: Lifecycle, models: dict[str, Model]) -> None:
        self.asked: dict[str, Asked] = {}
        self._defaults = deadlines.of(settings)
        self._out = out
        self._life = life
        self._models = models
        self._deadlines = deadlines.Deadlines(self.asked)

    def configure(self, settings: Settings) -> None:
        """Requests that come from now on get these limits."""
        self._defaults = deadlines.of(settings)

    # Coming and going ------------------------------------------------------------------------------------------------

    def take(self, request: Request, model: Model, now: float) -> None:
        """Queue a request of a model that will serve it, and send it on if a place is free."""
        model.last_used = now
        if request.keep_alive_s is not None:
            model.keep_alive_s = request.keep_alive_s
        model.queue.append(request.request_id, request.client)
        limits = deadlines.limits(request.timeouts, model.order.timeouts, self._defaults)
        asked = self.asked[request.request_id] = Asked(
            request, queued_at=now, asked_at=now, limits=limits, tokens=list(request.resume)
        )
        self._deadlines.watch(asked)
        self.dispatch(model, now)

    def abort(self, request_id: str, now: float) -> None:
        """End a request early. A queued one ends here, a running one with its worker's last chunk."""
        asked = self.asked.get(request_id)
        if asked is not None and asked.life:
            asked.is_aborted, asked.is_moving = True, False
            self._out.do(Send(asked.life, Abort(request_id)))
        elif asked is not None:
            self._tell_aborted(asked)
            self._leave_queue(asked, now)

    def _tell_aborted(self, asked: Asked) -> None:
        """The last chunk of a request that no worker will say one of."""
        request_id, so_far = asked.request.request_id, Usage(prompt_tokens=0, completion_tokens=len(asked.tokens))
        self._out.deliver(request_id, (request_id, "", (), None, "abort", so_far, None))

    def failed(self, slot: Slot, event: RequestFailed, now: float) -> None:
        """A worker could not go on with one request; it goes on with the others."""
        if event.request_id in slot.requests:
            self.tell(event.request_id, from_wire(event.code, event.message, event.field))
            self.ended(slot, event.request_id, now)

    def prefill(self, slot: Slot, event: Prefill) -> None:
        if event.request_id in slot.requests:
            self.tell(event.request_id, event)

    def expire(self, now: float) -> None:
        """End those whose deadlines have passed."""
        for asked, error in self._deadlines.late(now):
            self.end(asked, error, now)

    def next_deadline(self) -> float:
        return self._deadlines.next()

    def end(self, asked: Asked, error: ForgeLLMError, now: float) -> None:
        """End a request with an error now; if it runs, its place is free when its worker has let go of it."""
        request_id = asked.request.request_id
        self._out.deliver(request_id, error)
        if asked.life:
            asked.is_over, asked.is_moving = True, False
            self._out.do(Send(asked.life, Abort(request_id)))
        else:
            self._leave_queue(asked, now)

    def _leave_queue(self, asked: Asked, now: float) -> None:
        """A queued request is gone; a place that was kept for it is somebody else's."""
        request_id, model = asked.request.request_id, self._models[asked.request.model]
        model.queue.remove(request_id)
        model.last_used = now
        del self.asked[request_id]
        self.dispatch(model, now)

    def tell(self, request_id: str, news: Chunk | Prefill | ForgeLLMError) -> None:
        if not self.asked[request_id].is_over:
            self._out.deliver(request_id, news)

    def dispatch(self, model: Model, now: float) -> None:
        """Send queued requests to ready workers with a free place, in order, each to the least loaded one.

        A suspect waits for a worker that runs no other suspect; meanwhile a place is kept for it."""
        kept = 0
        for request_id in model.queue.again():
            free = self._free(model)
            if self.asked[request_id].is_suspect:
                free = [slot for slot in free if not any(self.asked[other].is_suspect for other in slot.requests)]
            if free and self._places(model) > kept:
                model.queue.remove(request_id)
                self._send(request_id, free, now)
            else:
                kept += 1
        while model.queue.has_turns and self._places(model) > kept:
            self._send(model.queue.take_turn(), self._free(model), now)

    def _free(self, model: Model) -> list[Slot]:
        return [slot for slot in model.slots if slot.is_open and len(slot.requests) < slot.max_batch]

    def _places(self, model: Model) -> int:
        return sum(slot.max_batch - len(slot.requests) for slot in self._free(model))

    def _send(self, request_id: str, free: list[Slot], now: float) -> None:
        asked, slot = self.asked[request_id], min(free, key=lambda slot: len(slot.requests))
        asked.life, asked.moved_at = slot.life, now
        slot.requests.add(request_id)
        self._deadlines.watch(asked)
        self._out.do(Send(slot.life, Generate(replace(asked.request, resume=tuple(asked.tokens)))))

    def replay(self, model: Model, slot: Slot, words: str, now: float) -> bool:
        """Queue what a dead worker was running, first in line and in its old order; end what is to blame for it, and
        what was aborted, which nobody waits for.

        Returns whether something was to blame."""
        left = [asked for request_id, asked in self.asked.items() if request_id in slot.requests]
        model.last_used = now if left else model.last_used
        slot.requests.clear()
        if slot.death_cause != "killed":
            charge(asked for asked in left if not asked.is_moving)  # those were told to stop
        for asked in reversed(left):
            request_id = asked.request.request_id
            if asked.is_over:
                del self.asked[request_id]
            elif asked.is_aborted:
                del self.asked[request_id]
                self._tell_aborted(asked)
            elif is_quarantined(asked):
                del self.asked[request_id]
                again = f"{words}, again while this request was running alone under suspicion; it is not run once more"
                self._out.deliver(request_id, RequestCrashesWorker(again))
            else:
                # Its waits for a worker add up until its next token: deaths without end do not keep it for ever.
                waited_s = asked.moved_at - asked.queued_at if asked.deaths else 0.0
                asked.life, asked.queued_at, asked.is_moving = 0, now - waited_s, False
                asked.deaths += 1
                model.moves += 1
                model.queue.append_again(request_id)
                self._deadlines.watch(asked)
        if model.is_unloading and not model.is_put_away:
            self.refuse_queue(model, ModelUnloading(f"{model.name} is being unloaded, and {words}"))
        return any(map(is_quarantined, left))

    def move_away(self, slot: Slot) -> None:
        """Live migration: what a worker that must go is running goes on at the model's other workers."""
        for request_id in sorted(slot.requests):
            asked = self.asked[request_id]
            asked.is_moving = not (asked.is_over or asked.is_aborted)
            self._out.do(Send(slot.life, Abort(request_id)))

    def _moved(self, slot: Slot, asked: Asked, now: float) -> None:
        """The old worker has let go of a request; the text it held back is held back again by the next one."""
        asked.life, asked.queued_at, asked.is_moving = 0, now, False
        slot.requests.discard(asked.request.request_id)
        model = self._models[slot.model]
        model.moves += 1
        model.queue.append_again(asked.request.request_id)
        self._deadlines.watch(asked)
        if slot.state is _S.DRAINING and not slot.requests:
            self._life.stop(slot, now, slot.reason)
        self.dispatch(model, now)

    def chunk(self, slot: Slot, chunk: Chunk, now: float) -> None:
        request_id, _, token_ids, _, finish_reason, _, _ = chunk
        if request_id not in slot.requests:
            return
        asked = self.asked[request_id]
        if finish_reason == "abort" and asked.is_moving:
            self._moved(slot, asked, now)
            return
        asked.tokens.extend(token_ids)
        asked.moved_at = now
        self._deadlines.watch(asked)
        was_suspect, asked.crashes, asked.deaths = asked.is_suspect, 0, 0
        self.tell(request_id, chunk)
        if finish_reason is not None:
            self.ended(slot, request_id, now)
        elif was_suspect:
            self.dispatch(self._models[slot.model], now)

    def ended(self, slot: Slot, request_id: str, now: float) -> None:
        """A running request has ended: free its place."""
        del self.asked[request_id]
        slot.requests.discard(request_id)
        model = self._models[slot.model]
        model.request_ended(now)
        if slot.state is _S.DRAINING and not slot.requests:
            self._life.stop(slot, now, slot.reason)
        slot.served += 1
        self.dispatch(model, now)

    def refuse_queue(self, model: Model, error: ForgeLLMError) -> None:
        for request_id in model.queue.clear():
            del self.asked[request_id]
            self._out.deliver(request_id, error)
