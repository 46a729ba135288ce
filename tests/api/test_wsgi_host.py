"""What the app can tell of its server."""

import socket
import sys
import types

import pytest

from forgellm.api.wsgi_host import client_gone, refuse_sync_workers
from forgellm.errors import ConfigError


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_client_that_closed_its_end_is_gone_and_one_that_sends_more_is_not(pair):
    ours, theirs = pair
    is_gone = client_gone({"gunicorn.socket": ours})
    assert not is_gone()
    theirs.sendall(b"GET")
    assert not is_gone()
    assert ours.recv(3) == b"GET"  # it was only looked at
    theirs.close()
    assert is_gone()


def test_a_connection_that_is_closed_on_this_side_is_gone(pair):
    is_gone = client_gone({"gunicorn.socket": pair[0]})
    pair[0].close()
    assert is_gone()


def test_waitress_is_asked_itself():
    assert client_gone({"waitress.client_disconnected": lambda: True})()


def test_where_nobody_lets_it_look_nobody_is_gone():
    assert not client_gone({})()
    assert not client_gone({"gunicorn.socket": object()})()


def test_sync_workers_are_refused_and_threads_are_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "gunicorn.workers.sync", types.ModuleType("sync"))
    with pytest.raises(ConfigError, match="gthread"):
        refuse_sync_workers()
    monkeypatch.setitem(sys.modules, "gunicorn.workers.gthread", types.ModuleType("gthread"))
    refuse_sync_workers()
