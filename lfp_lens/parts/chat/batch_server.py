"""What is asked of a server's Batch API. All of it costs nothing, so it is asked again where it failed, but for one thing:

a batch is created once. Where the server perhaps made it, its name is looked up before it is made again.
"""

import json
import time
from collections.abc import Callable
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat.drivers import Connect
from lfp_lens.parts.chat.server import Failed, Hopeless, Lost, Outcome, outcome_of
from lfp_lens.parts.chat.spending import Spending

ENDPOINT, WINDOW, NAME = "/v1/chat/completions", "24h", "lfp_lens"
TRIES = 12
LOOK_BACK_SECONDS = 86_400
"""How much older than our own record a batch may look, before the search for it ends."""
PERHAPS_MADE = (408, 409, 499)
"""Statuses from 400 to 499 that do not say whether the batch was made."""


class Refused(LensError):
    """The server said no, and did nothing."""

    perhaps_made = False
    """Whether it may have done so when it was asked before."""


class Forgotten(Exception):
    """The server keeps it no longer."""


class BatchServer:
    """The Batch API of one server. Every method raises `LensError` where it fails for long, or for good."""

    def __init__(self, asker: str, spending: Spending, connect: Connect) -> None:
        self._asker, self._spending, self._connect = asker, spending, connect
        self._client: Any = None

    def connect(self) -> Any:
        """Give the client, made when it is first needed."""
        if self._client is None:
            self._client = self._connect(False)
        return self._client

    def close(self) -> None:
        """Close the client."""
        if self._client is not None:
            self._client.close()

    def upload(self, name: str, content: bytes) -> str:
        """Upload the requests of a batch and give the file's id."""
        file = (f"{name}.jsonl", content)
        return str(self._patiently(lambda: self.connect().files.create(file=file, purpose="batch").id, refusal=Refused))

    def create(self, name: str, file: str, since: float) -> str:
        """Create a batch under our name for it and give its id.

        Raises:
            Refused: if the server said that it did not make it.
        """
        was_unclear = False
        for tried in range(TRIES):
            try:
                return self._create(name, file)
            except Exception as error:
                outcome, is_surely_not = outcome_of(error, self._asker), _surely_did_nothing(error)
            if is_surely_not:
                try:
                    self._raise_or_wait(outcome, tried, Refused)
                except Refused as refusal:
                    refusal.perhaps_made = was_unclear
                    raise
                continue
            was_unclear = True
            found = self.find(name, since)
            if found is not None:
                return found
            self._raise_or_wait(outcome if isinstance(outcome, (Failed, Lost)) else UNREADABLE, tried)
        raise AssertionError("the last try raises")

    def find(self, name: str, since: float) -> str | None:
        """Find the batch of our name among the server's: looked for twice, since a new one may not be listed at once."""
        found = self._patiently(lambda: self._listed(name, since))
        if found is None:
            time.sleep(self._spending.poll_seconds)
            found = self._patiently(lambda: self._listed(name, since))
        return found and str(found)

    def batch(self, id: str) -> Any:
        """Give a batch as it stands. Raises `Forgotten` if there is none of that id."""
        return self._kept(lambda: self.connect().batches.retrieve(id))

    def content(self, file: str) -> bytes:
        """Give what stands in a file of the server. Raises `Forgotten` if it is gone."""
        return bytes(self._kept(lambda: self.connect().files.content(file).content))

    def _create(self, name: str, file: str) -> str:
        made = self.connect().batches.create(
            input_file_id=file, endpoint=ENDPOINT, completion_window=WINDOW, metadata={NAME: name}
        )
        if not made.id:
            raise AttributeError("a batch without an id")
        return str(made.id)

    def _listed(self, name: str, since: float) -> str | None:
        for batch in self.connect().batches.list(limit=100):
            if (batch.metadata or {}).get(NAME) == name:
                return str(batch.id)
            if batch.created_at < since - LOOK_BACK_SECONDS:
                break
        return None

    def _kept(self, ask: Callable[[], Any]) -> Any:
        import openai

        try:
            return self._patiently(ask, also=openai.NotFoundError)
        except openai.NotFoundError:
            raise Forgotten from None

    def _patiently(self, ask: Callable[[], Any], *, also: Any = (), refusal: type[LensError] = LensError) -> Any:
        """Ask again if it fails; errors of the kind `also` are the caller's, a no of the server is a `refusal`."""
        for tried in range(TRIES):
            outcome: Outcome
            try:
                return ask()
            except also:
                raise
            except LensError:
                raise
            except (json.JSONDecodeError, AttributeError):
                outcome = UNREADABLE
            except Exception as error:
                outcome = outcome_of(error, self._asker)
            self._raise_or_wait(outcome, tried, refusal)
        raise AssertionError("the last try raises")

    def _raise_or_wait(self, outcome: Outcome, tried: int, refusal: type[LensError] = LensError) -> None:
        if isinstance(outcome, Hopeless):
            raise refusal(str(outcome.error)) from outcome.error.__cause__
        assert isinstance(outcome, (Failed, Lost))
        is_final = isinstance(outcome, Failed) and outcome.is_final
        if is_final or tried == TRIES - 1:
            kind = refusal if is_final else LensError
            raise kind(f"{self._asker} failed on a batch: {outcome.why}. Rerun later: what was submitted is kept.")
        time.sleep(min(60.0, self._spending.backoff_seconds * 2**tried))


UNREADABLE = Failed("its answer cannot be read")


def _surely_did_nothing(error: Exception) -> bool:
    """Tell whether an error of `batches.create` says that no batch was made."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return 400 <= error.status_code < 500 and error.status_code not in PERHAPS_MADE
    outcome = outcome_of(error, "")
    return isinstance(outcome, Failed) and outcome.is_unreachable
