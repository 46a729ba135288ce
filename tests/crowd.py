"""Thousands of clients of one daemon, in a process of their own: `python crowd.py HOST PORT CLIENTS PLACES`.

All ask in the same moment for an answer that takes a minute, and `PLACES` of them get one. The others are refused; some
of them ask again, four at a time. Prints what it saw as JSON, and keeps every connection until its input ends.
"""

import json
import selectors
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from http.client import HTTPResponse

MODEL = "e"
BODY = json.dumps({"model": MODEL, "prompt": " ".join("w" * 1000), "max_tokens": 1000}).encode()
HEAD = "POST /api/model/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
ASK = f"{HEAD}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
REFUSAL = b"HTTP/1.1 503 "
TIMEOUT_S = 30.0
BATCH = 1000
AGAIN = 1000
AT_ONCE = 4


def refusals_s(clients: Sequence[socket.socket], count: int) -> dict[socket.socket, float]:
    """All of `clients` ask, and `count` of them are refused: those, and the seconds from their asking."""
    began, found, heard = dict[socket.socket, float](), dict[socket.socket, float](), dict[socket.socket, bytes]()
    with selectors.DefaultSelector() as ready:
        for client in clients:
            began[client] = time.monotonic()
            client.sendall(ASK)
            ready.register(client, selectors.EVENT_READ)
        while len(found) < count:
            events = ready.select(TIMEOUT_S)
            assert events, f"{len(found)} of {count} were refused"
            for key, _ in events:
                heard[key.fileobj] = heard.get(key.fileobj, b"") + key.fileobj.recv(4096)
                assert heard[key.fileobj].startswith(REFUSAL), heard[key.fileobj]
                if heard[key.fileobj].endswith(b"}"):
                    assert json.loads(heard[key.fileobj].partition(b"\r\n\r\n")[2])["code"] == "unavailable"
                    found[key.fileobj] = time.monotonic() - began[key.fileobj]
                    ready.unregister(key.fileobj)
    return found


def connected(host: str, port: int, count: int) -> list[socket.socket]:
    """Not all in one instant: the system drops what comes when its queue is full (4,096), and tries again in 1 s."""
    clients = []
    while len(clients) < count:
        clients.append(socket.create_connection((host, port), timeout=TIMEOUT_S))
        if len(clients) % BATCH == 0:  # they are taken in the order in which they came
            clients[-1].sendall(HEALTH)
            with HTTPResponse(clients[-1]) as answer:
                answer.begin()
                assert answer.status == 200
                answer.read()
    return clients


def crowd(host: str, port: int, count: int, places: int) -> None:
    clients = connected(host, port, count)
    refused = refusals_s(clients, count - places)
    others = list(refused)[:AGAIN]
    again_s = [s for i in range(0, len(others), AT_ONCE) for s in refusals_s(others[i : i + AT_ONCE], AT_ONCE).values()]
    found = {"refused": len(refused), "burst_s": max(refused.values()), "p50_s": statistics.median(again_s)}
    print(json.dumps(found), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    crowd(sys.argv[1], *map(int, sys.argv[2:]))
