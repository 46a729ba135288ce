"""Refuses an answer that there is no place for before it costs a thread or a look at its body.

The server that runs the app finds out, and marks the request; the app says the words, to those who may call at all.
"""

from typing import Any

from flask import Flask, request

from forgellm.api.auth import INFERENCE
from forgellm.api.gate import Gate

HAS_NO_PLACE = "forgellm.has_no_place"
"""In the WSGI environment of a request that was refused at the door."""


def register(app: Flask, gate: Gate) -> None:
    """After the checks of who calls: nobody else learns how busy the server is."""

    def check() -> None:
        if HAS_NO_PLACE in request.environ:
            raise gate.full()

    app.before_request(check)


def wants_place(method: Any, path: Any) -> bool:
    """Whether it asks for an answer of a model, which takes a place in the gate."""
    return method == "POST" and path in INFERENCE
