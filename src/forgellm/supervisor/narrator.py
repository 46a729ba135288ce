"""Says in the log what the pool's effects mean. Must not log a prompt, an answer, or words that may quote one."""

import logging
from collections.abc import Iterable

from forgellm.errors import ForgeLLMError
from forgellm.messages import Generate
from forgellm.supervisor.effects import Announce, Deliver, Died, Effect, Evicted, Kept, Send

log = logging.getLogger("forgellm.supervisor")


def tell(effects: Iterable[Effect]) -> None:
    """One line for each effect that is news. An error is told by its code: its sentence may quote a request."""
    for effect in effects:
        match effect:
            case Announce(worker, life, old, new, reason):
                data = {"worker": worker, "life": life, "old": old, "state": new, "reason": reason}
                log.info("%s (life %d): %s -> %s (%s)", worker, life, old, new, reason, extra={"data": data})
            case Died(worker, life, cause, reason):
                data = {"worker": worker, "life": life, "cause": cause, "reason": reason}
                log.warning("%s (life %d) died: %s: %s", worker, life, cause, reason, extra={"data": data})
            case Evicted(model, cause, reason):
                data = {"model": model, "cause": cause, "reason": reason}
                log.info("%s is evicted: %s", model, reason, extra={"data": data})
            case Kept(model, reason):
                line = "%s goes on with the files it has, not those of its settings: %s"
                log.warning(line, model, reason, extra={"data": {"model": model, "reason": reason}})
            case Send(life, Generate(request)):
                known = {"request_id": request.request_id, "model": request.model, "life": life}
                if request.resume:
                    after = len(request.resume)
                    line = "request %s goes on at life %d, after %d tokens"
                    log.info(line, request.request_id, life, after, extra={"data": {**known, "after": after}})
                else:
                    log.debug("request %s runs at life %d", request.request_id, life, extra={"data": known})
            case Deliver(to, ForgeLLMError() as error):
                data = {"request_id": to, "code": error.code}
                log.info("%s ended with %s", to, error.code, extra={"data": data})
            case Deliver(to, (_, _, _, _, str() as finish_reason, _, _)):
                data = {"request_id": to, "finish_reason": finish_reason}
                log.debug("request %s ended: %s", to, finish_reason, extra={"data": data})
            case _:
                pass
