"""The walls around the tests hold."""

import os
import socket

import pytest


def test_a_connection_beyond_loopback_is_refused() -> None:
    with socket.socket() as out, pytest.raises(RuntimeError, match=r"may not reach '192\.0\.2\.1'"):
        out.connect(("192.0.2.1", 80))


def test_a_datagram_beyond_loopback_is_refused() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as out, pytest.raises(RuntimeError, match="only loopback"):
        out.sendto(b"x", ("192.0.2.1", 53))


def test_a_name_is_not_looked_up() -> None:
    with pytest.raises(RuntimeError, match=r"may not reach 'example\.org'"):
        socket.create_connection(("example.org", 80))


def test_loopback_is_open() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as out,
    ):
        assert out.getpeername() == server.getsockname()


def test_unix_sockets_are_open(tmp_path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as out:
        server.bind(path)
        server.listen()
        out.connect(path)


def test_the_hub_is_off() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
