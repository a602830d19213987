"""What tests of everything that asks a chat model share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.chat_server import Answer, ChatServer


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ChatServer]]:
    """Start servers that the `openai` client then talks to."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with ExitStack() as stack:

        def start(answer: Callable[[int, dict[str, Any]], Answer]) -> ChatServer:
            server = stack.enter_context(ChatServer(answer).running())
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            return server

        yield start
