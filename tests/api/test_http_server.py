"""The server around any app: the address that it takes, and what it leaves."""

import os

import httpx2
import pytest
from raw import echo_app, serving

from forgellm import keys
from forgellm.api.gate import Gate
from forgellm.api.http_server import HttpServer
from forgellm.config import Settings
from forgellm.errors import AddressInUse, ConfigError


def test_a_server_that_stops_leaves_nothing(no_leaks):
    with serving(echo_app()) as server:
        assert httpx2.get(server.url).text == "here"
    with pytest.raises(httpx2.TransportError):
        httpx2.get(server.url)


def test_an_address_in_use_is_told_with_its_owner():
    with serving(echo_app()) as server:
        second = HttpServer(echo_app(), Settings(port=server.address[1]), Gate(1))
        with pytest.raises(AddressInUse, match=rf"in use by process {os.getpid()}"):
            second.bind()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.org", "127.evil.example", ""])  # noqa: S104
def test_only_this_machine_is_served(host):
    with pytest.raises(ConfigError, match="API keys"):
        HttpServer(echo_app(), Settings(host=host, port=0), Gate(1)).bind()


def test_other_machines_are_served_once_there_is_a_key(tmp_path):
    settings = Settings(host="0.0.0.0", port=0, keys_file=str(tmp_path / "keys.json"))  # noqa: S104
    keys.create(settings.keys_path, name="laptop")
    server = HttpServer(echo_app(), settings, Gate(1))
    server.bind()
    server.stop()
    keys.revoke(settings.keys_path, "laptop")
    with pytest.raises(ConfigError, match="keys create"):
        HttpServer(echo_app(), settings, Gate(1)).bind()


def test_localhost_is_reached_as_127_0_0_1():
    server = HttpServer(echo_app(), Settings(host="localhost", port=0), Gate(1))
    server.bind()
    assert server.address[0] == "127.0.0.1"
    server.stop()
