"""One request over HTTP: the client, and what became of the request."""

import json
import os
from dataclasses import dataclass
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat.spending import KEY_VARIABLE, URL_VARIABLE, Spending

NO_KEY = "no-key"
"""What is sent as key to a server of one's own where none is set."""
TOLD_LETTERS = 300
"""How much of a server's message is shown."""
DISPENSABLE = ("temperature", "reasoning_effort")
"""Parts of a request that a model may refuse, and that it is then asked without."""
PERHAPS_PAID = (408, 499, 502, 504, 524)
"""Statuses of gateways that gave up while the model may have been answering."""


@dataclass(frozen=True)
class Arrived:
    """A full reply."""

    text: str
    """What the model wrote; the whole body where that was no chat completion."""
    finish: str
    """Why it ended: `stop`, `length`, `content_filter`, ...; `unreadable` for a body that was no chat completion."""
    is_refused: bool
    """Whether the model or a filter refused to answer."""
    tokens: tuple[int, int] | None
    """Of question and answer, as the server counted them; None where it did not."""


@dataclass(frozen=True)
class Failed:
    """Nothing was done, and nothing paid."""

    why: str
    """Kind of error, never with a key in it."""
    wait: float | None = None
    """Seconds that the server asked to wait."""
    is_final: bool = False
    """Whether this question will never be answered here: it is too long, or a filter refused it."""
    refused_part: str = ""
    """A part of the request that the model does not take, and that it can do without."""
    is_unreachable: bool = False
    """Whether no server was there."""


@dataclass(frozen=True)
class Lost:
    """It stalled or broke off: perhaps the server answered, and perhaps that is paid."""

    why: str
    """`timeout`, `dropped`, or the status of a gateway that gave up."""


@dataclass(frozen=True)
class Hopeless:
    """No request will succeed as things are."""

    error: LensError
    """What to do."""


Outcome = Arrived | Failed | Lost | Hopeless


def connect(spending: Spending, asker: str, offline: str, *, is_async: bool) -> Any:
    """Make the client. Nothing is sent.

    Raises:
        LensError: without a key for OpenAI itself; a server of one's own (`OPENAI_BASE_URL`) needs none.
    """
    import openai

    key = os.environ.get(KEY_VARIABLE) or (None if spending.is_vendor else NO_KEY)
    if key is None:
        role = asker.split(" ")[0]
        raise LensError(
            f"The {asker} needs a key: set the environment variable {KEY_VARIABLE}, or {URL_VARIABLE} for a server of your "
            f"own, which needs none, or use {role}={offline!r}, which asks nobody."
        )
    make = openai.AsyncOpenAI if is_async else openai.OpenAI
    return make(api_key=key, base_url=spending.url, timeout=spending.timeout_seconds, max_retries=0)


def arrived(raw: str) -> Arrived:
    """Read the body of a chat completion."""
    try:
        body = json.loads(raw)
        choice, usage = body["choices"][0], body.get("usage") or {}
        message = choice["message"]
        refusal, text = message.get("refusal"), message.get("content")
        tokens = (
            (int(usage["prompt_tokens"]), int(usage["completion_tokens"])) if "completion_tokens" in usage else None
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return Arrived(raw, "unreadable", False, None)
    finish = str(choice.get("finish_reason") or "")
    return Arrived(str(text or refusal or ""), finish, bool(refusal) or finish == "content_filter", tokens)


def outcome_of(error: Exception, name: str) -> Outcome:
    """Say what an error of the client means for the request that met it."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return status_outcome(error.status_code, error.body, error.response.headers, name, type(error).__name__)
    if isinstance(error, openai.APIConnectionError):
        cause = type(error.__cause__).__name__
        if cause in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol", "InvalidURL", "PoolTimeout"):
            return Failed(f"no server answered ({cause})", is_unreachable=True)
        return Lost("timeout" if isinstance(error, openai.APITimeoutError) else "dropped")
    if isinstance(error, TimeoutError):
        return Lost("timeout")
    hopeless = LensError(f"{name} could not be asked: {type(error).__name__}. {_check()}")
    # Only what is not the client's own error is told whole: it may be a mistake of ours.
    hopeless.__cause__ = None if isinstance(error, openai.OpenAIError) else error
    return Hopeless(hopeless)


def status_outcome(status: int, body: Any, headers: Any, name: str, kind: str) -> Outcome:
    """Say what a status other than 200 means."""
    error = body if isinstance(body, dict) else {}
    error = error.get("error", error) if isinstance(error.get("error", error), dict) else {}
    told = f"{kind} (HTTP {status})"
    if status in PERHAPS_PAID:
        return Lost(str(status))
    if status in (401, 403):
        # The message of a refused key repeats a part of the key, so only the kind of error is told.
        return Hopeless(LensError(f"{name} was refused: {told}. Nothing was spent on it. {_check()}"))
    if status == 404:
        return Hopeless(LensError(f"{name} is not known to the server: {told}. Nothing was spent on it. {_check()}"))
    if status == 429 and error.get("code") == "insufficient_quota":
        return Hopeless(
            LensError(f"{name} answers no more: the account has no money left ({told}). Top it up, then rerun.")
        )
    if status in (409, 425, 429) or status >= 500:
        return Failed(told, _wait(headers))
    if error.get("param") in DISPENSABLE:
        return Failed(told, refused_part=str(error["param"]))
    return Failed(f"{told}: {_redacted(error.get('message'))}", is_final=True)


def _wait(headers: Any) -> float | None:
    """Give the seconds of `retry-after-ms` or `retry-after`."""
    for header, per_second in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(header)) / per_second
        except (TypeError, ValueError, AttributeError):
            continue
        if 0 <= seconds <= 300:
            return seconds
    return None


def _redacted(message: Any) -> str:
    text = " ".join(str(message or "no reason given").split())[:TOLD_LETTERS]
    key = os.environ.get(KEY_VARIABLE)
    return text.replace(key, "...") if key else text


def _check() -> str:
    return f"Check the model's name, {KEY_VARIABLE} and {URL_VARIABLE}, then rerun: what was answered so far is kept."
