"""What holds for every test: no network but loopback, few threads, real data only from LFP_LENS_DATA."""

import os

# These are read once, when the libraries start, so they are set before any test module is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# One thread each where several processes share the tests.
os.environ.setdefault(
    "OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else str(min(2, os.cpu_count() or 1))
)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NO_DATA = "set LFP_LENS_DATA to the folder with the real data"
NAMES_THAT_STAY_HERE = ("", "localhost", "0.0.0.0", "::")


class NetworkBlocked(RuntimeError):
    """A test tried to leave this machine."""


def _refuse_strangers(host: Any, *, names: tuple[str, ...] = ("localhost",)) -> None:
    text = host.decode() if isinstance(host, bytes) else host
    if text is None or text in names:
        return
    try:
        # A scope, as in fe80::1%eth0, is no part of the address.
        is_here = ipaddress.ip_address(str(text).partition("%")[0]).is_loopback
    except ValueError:
        is_here = False
    if not is_here:
        raise NetworkBlocked(f"Tests may not reach {text!r}: only loopback is open.")


def _guarded_method(name: str, at: int) -> Callable[..., Any]:
    original = getattr(socket.socket, name)

    def method(self: socket.socket, *given: Any) -> Any:
        if self.family != getattr(socket, "AF_UNIX", None):
            _refuse_strangers(given[at][0])
        return original(self, *given)

    return method


def _guarded_lookup(name: str) -> Callable[..., Any]:
    original = getattr(socket, name)

    def lookup(host: Any, *given: Any, **named: Any) -> Any:
        _refuse_strangers(host, names=NAMES_THAT_STAY_HERE)
        return original(host, *given, **named)

    return lookup


# The address is the last argument of sendto, the first of the others.
for _name, _at in (("connect", 0), ("connect_ex", 0), ("sendto", -1)):
    setattr(socket.socket, _name, _guarded_method(_name, _at))
for _name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
    setattr(socket, _name, _guarded_lookup(_name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_data)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Give the folder with the real data, or skip the test with the reason."""
    from lfp_lens.parts.sources import data_folder

    folder = data_folder()
    if folder is None:
        pytest.skip(NO_DATA)
    return folder


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line and give exit code, stdout and stderr."""

    from lfp_lens import cli

    def tell(*argv: str) -> tuple[int, str, str]:
        code = cli.main(argv)
        caught = capsys.readouterr()
        return code, caught.out, caught.err

    return tell
