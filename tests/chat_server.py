"""A stand-in for an OpenAI-compatible server on 127.0.0.1: it keeps every question, a function answers or misbehaves."""

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Said:
    """A reply with its particulars."""

    text: str
    tokens: tuple[int, int] | None = (1, 1)
    finish: str = "stop"
    refusal: str | None = None


@dataclass(frozen=True)
class Fault:
    """What goes wrong after some seconds."""

    kind: str
    """`drop`: the connection closes without an answer; `cut`: in the middle of one; `garbled`: a body that is no JSON;
    `status`: one with a body of one's own."""
    seconds: float = 0.0
    tokens: tuple[int, int] = (0, 0)
    """What is charged all the same."""
    status: int = 400
    error: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


Answer = str | int | Said | Fault
"""The text of the reply, or an HTTP status to fail with, or a reply or a fault in detail."""


@dataclass
class Seen:
    """One request as the server saw it."""

    at: float
    question: str
    """A hash of its turns."""
    is_answered: bool = False
    """Whether a full reply with usage was written to the connection."""
    cost: tuple[int, int] = (0, 0)
    """Tokens that are charged for it."""


class ChatServer:
    """`answer` gets the number of the request (from 0) and its body.

    `requests` holds every body received, `seen` what became of it.
    """

    def __init__(self, answer: Callable[[int, dict[str, Any]], Answer]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.seen: list[Seen] = []
        self.batches = Batches(self)
        self.authorization: list[str | None] = []
        self._guard = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                owner.authorization.append(self.headers.get("Authorization"))
                if not self.path.endswith("/chat/completions"):
                    return self._send(*owner.batches.post(self.path, raw))
                _, seen, answer = owner.take(json.loads(raw))
                self._answer(answer, seen)
                return None

            def do_GET(self) -> None:
                self._send(*owner.batches.get(self.path))

            def _answer(self, answer: Answer, seen: Seen) -> None:
                if isinstance(answer, Fault):
                    return self._misbehave(answer, seen)
                if isinstance(answer, int):
                    return self._send(answer, json.dumps(_error(answer)).encode())
                said = answer if isinstance(answer, Said) else Said(answer)
                seen.cost = said.tokens or (0, 0)
                self._send(200, json.dumps(completion(said)).encode())
                seen.is_answered = True
                return None

            def _misbehave(self, fault: Fault, seen: Seen) -> None:
                # What breaks off on the way may have been written, and charged, all the same.
                seen.cost = (0, 0) if fault.kind == "status" else fault.tokens
                time.sleep(fault.seconds)
                if fault.kind == "garbled":
                    seen.is_answered = True
                    return self._send(200, json.dumps(completion(Said("{}"))).encode()[:40])
                if fault.kind == "cut":
                    raw = json.dumps(completion(Said("{}"))).encode()
                    return self._send(200, raw[:20], length=len(raw))
                if fault.kind == "status":
                    return self._send(fault.status, json.dumps({"error": fault.error}).encode(), headers=fault.headers)
                return self.connection.close()

            def _send(self, status: int, raw: bytes, *, length: int | None = None, headers: Any = None) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw) if length is None else length))
                for name, value in (headers or {"retry-after-ms": "5"}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients that were killed are no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def take(self, body: dict[str, Any]) -> tuple[int, Seen, Answer]:
        """Note a request and decide on its answer."""
        with self._guard:
            number = len(self.requests)
            self.requests.append(body)
            seen = Seen(time.time(), question_of(body))
            self.seen.append(seen)
        return number, seen, self.answer(number, body)

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


class Batches:
    """The server's Batch API: every batch is ready after `polls` looks at it."""

    def __init__(self, owner: ChatServer) -> None:
        self.polls = 1
        self.status = "completed"
        self.created: list[dict[str, Any]] = []
        self.lose_next_create = False
        """Whether the next batch is made but its creation is not answered."""
        self.refuse_next_create = False
        """Whether the connection breaks before the next batch is made."""
        self.mishaps: list[tuple[str, int | str]] = []
        """What goes wrong next, in order: where (`upload`, `refuse` a batch before or `create` after it is made, `list`,
        `content`), and the status, or `cut` for a body that breaks off."""
        self.before_create: Callable[[], None] = lambda: None
        """What happens while a batch is being created."""
        self._owner, self._files, self._looks = owner, {}, {}  # type: ignore[var-annotated]

    def post(self, path: str, raw: bytes) -> tuple[int, bytes]:
        """Take a file or create a batch."""
        mishap = self._mishap("upload" if path.endswith("/files") else "refuse")
        if mishap is not None:
            return mishap
        if path.endswith("/files"):
            lines = [line for line in raw.splitlines() if line.startswith(b'{"custom_id"')]
            id = f"file-{len(self._files)}"
            self._files[id] = b"\n".join(lines)
            return 200, json.dumps({"id": id, "object": "file", "bytes": len(raw), "created_at": 0, "filename": "b.jsonl",
                                    "purpose": "batch", "status": "processed"}).encode()  # fmt: skip
        if self.refuse_next_create:
            self.refuse_next_create = False
            raise ConnectionAbortedError
        self.before_create()
        asked = json.loads(raw)
        batch = {"id": f"batch-{len(self.created)}", "object": "batch", "endpoint": asked["endpoint"], "status": "validating",
                 "input_file_id": asked["input_file_id"], "completion_window": "24h", "created_at": int(time.time()),
                 "metadata": asked.get("metadata")}  # fmt: skip
        self.created.append(batch)
        if self.lose_next_create:
            self.lose_next_create = False
            raise ConnectionAbortedError
        return self._mishap("create") or (200, json.dumps(batch).encode())

    def forget(self) -> None:
        """Forget the results of every batch."""
        self._files = {id: raw for id, raw in self._files.items() if raw.startswith(b'{"custom_id"')}

    def _mishap(self, where: str) -> tuple[int, bytes] | None:
        if not self.mishaps or self.mishaps[0][0] != where:
            return None
        _, what = self.mishaps.pop(0)
        return (200, b'{"id": "ba') if isinstance(what, str) else (what, json.dumps(_error(what)).encode())

    def get(self, path: str) -> tuple[int, bytes]:
        """Give a file, a batch or all batches."""
        if path.endswith("/content"):
            id = path.split("/")[-2]
            found = (200, self._files[id]) if id in self._files else (404, json.dumps(_error(404)).encode())
            return self._mishap("content") or found
        if path.partition("?")[0].endswith("/batches"):
            mishap = self._mishap("list")
            if mishap is not None:
                return mishap
            return 200, json.dumps({"object": "list", "data": self.created[::-1], "has_more": False}).encode()
        batch = next((one for one in self.created if one["id"] == path.split("/")[-1]), None)
        if batch is None:
            return 404, json.dumps(_error(404)).encode()
        self._looks[batch["id"]] = self._looks.get(batch["id"], 0) + 1
        if self._looks[batch["id"]] > self.polls and batch["status"] != self.status:
            batch["output_file_id"] = self._finished(batch)
            batch["status"] = self.status
        return 200, json.dumps(batch).encode()

    def _finished(self, batch: dict[str, Any]) -> str:
        lines = []
        for line in self._files[batch["input_file_id"]].splitlines():
            request = json.loads(line)
            _, seen, answer = self._owner.take(request["body"])
            if isinstance(answer, Fault) and answer.kind != "status":
                continue
            if isinstance(answer, Fault):
                response: dict[str, Any] = {"status_code": answer.status, "body": {"error": answer.error}}
            elif isinstance(answer, int):
                response = {"status_code": answer, "body": _error(answer)}
            else:
                seen.is_answered = True
                said = answer if isinstance(answer, Said) else Said(answer)
                response = {"status_code": 200, "body": completion(said)}
            lines.append(
                json.dumps(
                    {"id": "r", "custom_id": request["custom_id"], "response": response, "error": None},
                    ensure_ascii=False,
                )
            )
        random.Random(0).shuffle(lines)
        id = f"file-{len(self._files)}"
        self._files[id] = "\n".join(lines).encode()
        return id


def question_of(body: dict[str, Any]) -> str:
    """Name a question by its turns."""
    return hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()[:16]


def schema_of(body: dict[str, Any]) -> str:
    """Name the reply schema that a request asks for."""
    return body["response_format"]["json_schema"]["name"]


def data_of(body: dict[str, Any]) -> dict[str, Any]:
    """Give the JSON object of the user turn."""
    return json.loads(body["messages"][1]["content"])


def completion(said: Said) -> dict[str, Any]:
    """Give the body of a chat completion."""
    message = {"role": "assistant", "content": said.text, "refusal": said.refusal}
    usage = {} if said.tokens is None else {"usage": {
        "prompt_tokens": said.tokens[0], "completion_tokens": said.tokens[1], "total_tokens": sum(said.tokens),
    }}  # fmt: skip
    return {
        "id": "chat-1", "object": "chat.completion", "created": 0, "model": "stub",
        "choices": [{"index": 0, "finish_reason": said.finish, "message": message}], **usage,
    }  # fmt: skip


def _error(status: int) -> dict[str, Any]:
    return {"error": {"message": "refused key sk-secret", "type": "stub", "code": status}}
