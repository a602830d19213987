"""A stand-in for an OpenAI-compatible server on 127.0.0.1: it keeps every question, a function answers."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = str | int
"""The text of the reply, or an HTTP status to fail with."""


class ChatServer:
    """`answer` gets the number of the request (from 0) and its body; `requests` holds every body received."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Answer]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self._guard = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner._guard:
                    number = len(owner.requests)
                    owner.requests.append(body)
                answer = owner.answer(number, body)
                status, sent = (answer, _error(answer)) if isinstance(answer, int) else (200, _reply(answer))
                raw = json.dumps(sent).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.send_header("retry-after-ms", "5")
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @contextmanager
    def running(self) -> Iterator["ChatServer"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


def schema_of(body: dict[str, Any]) -> str:
    """Name the reply schema that a request asks for."""
    return body["response_format"]["json_schema"]["name"]


def data_of(body: dict[str, Any]) -> dict[str, Any]:
    """Give the JSON object of the user turn."""
    return json.loads(body["messages"][1]["content"])


def _reply(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "chat-1", "object": "chat.completion", "created": 0, "model": "stub",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }  # fmt: skip


def _error(status: int) -> dict[str, Any]:
    return {"error": {"message": "refused key sk-secret", "type": "stub", "code": status}}
