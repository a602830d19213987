"""The file of a batch, and the lock on it: who holds the lock brings the batch to the server, and nobody else does."""

import os
from collections.abc import Sequence
from pathlib import Path

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat.ledger import BINARY, fcntl


class BatchFile:
    """The requests of one batch, one per line, from its preparation until its replies are in the ledger.

    The lock ends with its process, however that ends. Where the system has no such lock, everybody gets it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / "batches" / f"{name}.jsonl"
        self._opened: int | None = None

    def take(self) -> bool:
        """Take the lock unless another holds it. Raises `LensError` if the file cannot be opened."""
        if self._opened is not None:
            return True
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            opened = os.open(self.path, os.O_RDWR | os.O_CREAT | BINARY, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        if fcntl is not None:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(opened)
                return False
        self._opened = opened
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None

    def write(self, requests: Sequence[str]) -> None:
        """Write the requests to the disk, the lock held."""
        assert self._opened is not None
        try:
            rest = ("\n".join(requests) + "\n").encode()
            while rest:
                rest = rest[os.write(self._opened, rest) :]
            os.fsync(self._opened)
        except OSError as error:
            raise self._unwritable(error) from error

    def read(self) -> bytes:
        """Give the whole file; nothing where it is gone."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""

    def remove(self) -> None:
        """Delete the file and give the lock back."""
        self.release()
        self.path.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> LensError:
        return LensError(f"The batch could not be written to {self.path.parent}: {error}. Make that folder writable.")
