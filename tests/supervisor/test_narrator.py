"""What the supervisor says in the log: what happened, to which request, and never in the request's own words."""

import logging

import pytest

from forgellm.errors import ModelFailed, TemplateError
from forgellm.messages import Abort, Generate, Request, Usage
from forgellm.states import WorkerState
from forgellm.supervisor import narrator
from forgellm.supervisor.effects import Announce, Deliver, Died, Effect, Evicted, Kept, Send

REQUEST = Request(request_id="gen-1", model="m", prompt="a secret")
AGAIN = Request(request_id="gen-1", model="m", prompt="a secret", resume=(1, 2, 3))


@pytest.mark.parametrize(
    ("effect", "level", "says"),
    [
        (
            Announce("m#1", 2, WorkerState.READY, WorkerState.BACKOFF, "it was killed"),
            "INFO",
            "m#1 (life 2): ready -> backoff (it was killed)",
        ),
        (Died("m#1", 2, "hang", "no step for 60 s"), "WARNING", "m#1 (life 2) died: hang: no step for 60 s"),
        (Evicted("m", "memory", "idle, and b needs its memory"), "INFO", "m is evicted: idle, and b needs its memory"),
        (
            Kept("m", "it needs 3 GB"),
            "WARNING",
            "m goes on with the files it has, not those of its settings: it needs 3 GB",
        ),
        (Send(3, Generate(REQUEST)), "DEBUG", "request gen-1 runs at life 3"),
        (Send(4, Generate(AGAIN)), "INFO", "request gen-1 goes on at life 4, after 3 tokens"),
        (Deliver("gen-1", ModelFailed("m has failed")), "INFO", "gen-1 ended with model_failed"),
        (
            Deliver("gen-1", ("gen-1", "text", (1,), None, "stop", Usage(prompt_tokens=1, completion_tokens=1), None)),
            "DEBUG",
            "request gen-1 ended: stop",
        ),
    ],
)
def test_each_piece_of_news_is_a_line(effect: Effect, level: str, says: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "forgellm.supervisor"):
        narrator.tell([effect])
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [(level, says)]
    assert caplog.records[0].data


def test_tokens_and_other_commands_are_no_news(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "forgellm.supervisor"):
        narrator.tell([Deliver("r", ("r", "text", (1,), None, None, None, None)), Send(1, Abort("r"))])
    assert caplog.records == []


def test_the_words_of_an_error_stay_out_for_they_may_quote_the_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "forgellm.supervisor"):
        narrator.tell([Deliver("r", TemplateError("the template says: a secret")), Send(1, Generate(REQUEST))])
    assert len(caplog.records) == 2
    assert "secret" not in caplog.text
