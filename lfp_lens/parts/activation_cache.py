"""An activation cache on disk, opened: which texts it holds, and the rows of each.

    FOLDER/index.json              what it holds: models, sites, texts, dtype, shards
    FOLDER/shard-00000.safetensors base.blocks.3.hook_mlp_out [N, D], ..., tokens [N], positions [N], texts [N]

Only content tokens are in it, text after text. `parts.cache` writes it.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts.activations import Encoded
from lfp_lens.parts.harvest import Models, Reader, Stream, TextBatches, combined, sides_of
from lfp_lens.parts.pair import Pair
from lfp_lens.view import page

INDEX, FORMAT = "index.json", 1


@dataclass(frozen=True)
class Place:
    """Where a text's activations lie."""

    shard: int
    """Index of the shard."""
    start: int
    """First row."""
    n: int
    """Number of rows."""


@dataclass(frozen=True, eq=False)
class ActivationCache:
    """Activations of texts on disk. `lfp_lens.cache` makes one, `open_cache` opens one; verbs take it as `cache=`."""

    folder: Path
    """Where it is."""
    index: dict[str, Any] = field(repr=False)
    """What `index.json` says."""

    @property
    def streams(self) -> tuple[Stream, ...]:
        """(side, site) of everything in it."""
        return tuple((side, site) for side, site in self.index["streams"])

    @property
    def n_tokens(self) -> int:
        """Content tokens in it."""
        return sum(shard["tokens"] for shard in self.index["shards"])

    @property
    def n_bytes(self) -> int:
        """What its files take on disk."""
        return sum((self.folder / shard["file"]).stat().st_size for shard in self.index["shards"])

    def reader(self, texts: TextBatches, streams: Sequence[Stream], pair: Pair, models: Models) -> Reader:
        """Give a reader of these batches, which asks the models only for streams that are not in the cache.

        Raises `LensError` if the cache is another pair's or lacks one of the texts.
        """
        self.check_pair(pair)
        lacking = sum(text_key(texts.encoded[row].ids) not in self._places for rows in texts.rows for row in rows)
        if lacking:
            raise LensError(
                f"The cache {self.folder} lacks {lacking} of {sum(map(len, texts.rows))} texts as they are read here "
                f"(it was made with max_tokens={self.index['max_tokens']}). Make it from the same texts and max_tokens."
            )
        return _CacheReader(self, texts, streams, models)

    def check_pair(self, pair: Pair) -> None:
        """Raise `LensError` unless the cache was made from this pair."""
        if self.index["pair"] != pair.fingerprint:
            raise LensError(
                f"The cache {self.folder} was made from the pair {self.index['pair']}; this pair is {pair.fingerprint}. "
                "Make one from this pair."
            )

    def read(self, text: Encoded, stream: Stream) -> torch.Tensor:
        """Give one text's activations at its content tokens, [n, D] in fp32. Raises `LensError` if it is not there."""
        places = self._places.get(text_key(text.ids))
        if places is None or stream not in self.streams:
            missing = f"{stream[0]} {stream[1]}" if places is not None else f"the text {text.text[:40]!r}"
            raise LensError(f"The cache {self.folder} does not hold {missing}.")
        return self.at(places[0], stream)

    def word(self, text: Encoded, positions: Sequence[int]) -> "Place | None":
        """Give where the activations at successive tokens of a text lie; None if the cache does not hold them all."""
        places = self._places.get(text_key(text.ids))
        if places is None:
            return None
        shard, start, n = places[0].shard, places[0].start, places[0].n
        held = self._open[shard].get_slice("positions")[start : start + n].tolist()
        first = held.index(positions[0]) if positions[0] in held else n
        is_whole = held[first : first + len(positions)] == list(positions)
        return Place(shard, start + first, len(positions)) if is_whole else None

    def at(self, place: "Place", stream: Stream) -> torch.Tensor:
        """Give the rows of one stream at a place."""
        return self._open[place.shard].get_slice(".".join(stream))[place.start : place.start + place.n].float()

    def places(self, texts: TextBatches) -> list[list["Place"]]:
        """Give where each text of each batch lies; a text that occurs again lies where its own batch put it."""
        times: Counter[str] = Counter()

        def next_place(row: int) -> Place:
            key = text_key(texts.encoded[row].ids)
            places = self._places[key]
            times[key] += 1
            return places[min(times[key], len(places)) - 1]

        return [[next_place(row) for row in rows] for rows in texts.rows]

    @cached_property
    def _places(self) -> dict[str, list["Place"]]:
        """Text -> where it lies, once for every time it occurs."""
        found: dict[str, list[Place]] = {}
        for at, shard in enumerate(self.index["shards"]):
            for key, start, n in zip(shard["texts"], shard["starts"], shard["lengths"]):
                found.setdefault(key, []).append(Place(at, start, n))
        return found

    @cached_property
    def _open(self) -> list[Any]:
        from safetensors import SafetensorError, safe_open

        found = []
        for shard in self.index["shards"]:
            try:
                # Mapped into memory, not read: a text takes what it needs.
                found.append(safe_open(self.folder / shard["file"], "pt"))
            except (OSError, SafetensorError) as error:
                raise LensError(
                    f"The cache {self.folder} cannot be read ({shard['file']}: {error}). Delete it and make it anew."
                ) from error
        return found

    def _repr_html_(self) -> str:
        facts = {
            "folder": str(self.folder), "texts": f"{len(self._places):,}", "tokens": f"{self.n_tokens:,}",
            "sites": ", ".join(f"{side} {site}" for side, site in self.streams), "dtype": self.index["dtype"],
            "on disk": f"{self.n_bytes / 1e6:,.0f} MB",
        }  # fmt: skip
        return page.card("Activation cache", facts)


@dataclass(frozen=True, eq=False)
class _CacheReader:
    """Reads a batch's activations text by text from the cache, other streams from the models."""

    cache: ActivationCache
    texts: TextBatches
    streams: Sequence[Stream]
    models: Models

    @cached_property
    def _places(self) -> list[list[Place]]:
        return self.cache.places(self.texts)

    def read(self, at: int) -> Mapping[Stream, torch.Tensor]:
        device = next(iter(self.models.models.values())).device
        held = [stream for stream in self.streams
                if all((side, stream[1]) in self.cache.streams for side in sides_of(stream[0]))]  # fmt: skip
        wanted = {(side, site) for name, site in held for side in sides_of(name)}
        seen = {
            one: torch.cat([self.cache.at(place, one) for place in self._places[at]]).to(device)
            for one in sorted(wanted)
        }
        others = [stream for stream in self.streams if stream not in held]
        asked = Models(self.models.models, self.texts, others, self.models.bf16).read(at) if others else {}
        return {stream: combined(stream, seen) if stream in held else asked[stream] for stream in self.streams}


def open_cache(folder: str | os.PathLike[str]) -> ActivationCache:
    """Open a cache that is finished. Raises `LensError` if there is none."""
    place = Path(folder)
    try:
        index = json.loads((place / INDEX).read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']}")
        for shard in index["shards"]:
            if Path(shard["file"]).name != shard["file"]:
                raise ValueError(f"{shard['file']!r} is no file of this folder")
        return ActivationCache(place, index)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LensError(
            f"There is no finished activation cache in {place} ({error}). lfp_lens.cache makes one."
        ) from error


def text_key(ids: Sequence[int]) -> str:
    """Give what a text is found by: a hash of its token ids."""
    return fingerprint(np.asarray(ids, np.int64))
