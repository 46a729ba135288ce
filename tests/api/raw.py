"""A server around a small app, and raw sockets to it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Flask, request

from forgellm.api.gate import Gate
from forgellm.api.http_server import HttpServer
from forgellm.config import Settings


def echo_app() -> Flask:
    app = Flask(__name__)

    @app.post("/length")
    def length() -> str:
        return str(len(request.get_data()))

    @app.get("/")
    def index() -> str:
        return "here"

    return app


@contextmanager
def serving(app: Flask, gate: Gate | None = None, **settings: int) -> Iterator[HttpServer]:
    server = HttpServer(app, Settings(port=0, max_streams=2, **settings), gate or Gate(4))
    server.start()
    try:
        yield server
    finally:
        server.stop()


def connect(server: HttpServer) -> socket.socket:
    return socket.create_connection(server.address, timeout=10)


def read_all(sock: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    found = b""
    while data := sock.recv(65536):
        found += data
    return found
