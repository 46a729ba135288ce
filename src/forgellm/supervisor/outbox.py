"""Where the pool's parts lay down their effects during one call, in order."""

from forgellm.errors import ForgeLLMError
from forgellm.supervisor.effects import Deliver, Effect, News


class Outbox:
    """Effects of the current call; take() hands them over and empties it."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []

    def do(self, effect: Effect) -> None:
        self._effects.append(effect)

    def deliver(self, to: str, news: News) -> None:
        self._effects.append(Deliver(to, news))

    def fail_all(self, tickets: list[str], error: ForgeLLMError) -> None:
        """Give the same error to every ticket, and empty the list."""
        for ticket in tickets:
            self.deliver(ticket, error)
        tickets.clear()

    def take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
