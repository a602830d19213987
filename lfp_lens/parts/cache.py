"""A cache of activations on disk: safetensors shards at TransformerLens hook names, with token ids and positions.

    FOLDER/index.json              what it holds: models, sites, texts, dtype, shards
    FOLDER/shard-00000.safetensors base.blocks.3.hook_mlp_out [N, D], ..., tokens [N], positions [N], texts [N]

Only content tokens are in it, text after text. Every shard is written aside and renamed, so that a killed run goes on with
the next one. What is read from it is what the models give, computed in the same batches.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts.activations import Encoded, encode
from lfp_lens.parts.harvest import Models, Reader, Stream, TextBatches, split, text_batches
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.sites import layer_of, module_at
from lfp_lens.parts.sources import cache_folder
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.view import page

INDEX, FORMAT = "index.json", 1
SHARD_BYTES = 2**28
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
        lacking = sum(_key(texts.encoded[row].ids) not in self._places for rows in texts.rows for row in rows)
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
        places = self._places.get(_key(text.ids))
        if places is None or stream not in self.streams:
            missing = f"{stream[0]} {stream[1]}" if places is not None else f"the text {text.text[:40]!r}"
            raise LensError(f"The cache {self.folder} does not hold {missing}.")
        return self.at(places[0], stream)

    def word(self, text: Encoded, positions: Sequence[int]) -> "Place | None":
        """Give where the activations at successive tokens of a text lie; None if the cache does not hold them all."""
        places = self._places.get(_key(text.ids))
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
            key = _key(texts.encoded[row].ids)
            places = self._places[key]
            times[key] += 1
            return places[min(times[key], len(places)) - 1]

        return [[next_place(row) for row in rows] for rows in texts.rows]

    def has(self, text: Encoded) -> bool:
        """Tell whether the activations of this text are in it."""
        return _key(text.ids) in self._places

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
                    f"The cache {self.folder} cannot be read ({shard['file']}: {error}). Make it anew."
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
        from lfp_lens.parts.harvest import combined, sides_of

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


def cache(
    pair: Pair,
    sites: Sequence[str],
    texts: Sequence[str],
    folder: str | os.PathLike[str] | None = None,
    *,
    sides: Sequence[str] = ("base", "tuned"),
    max_tokens: int = 128,
    keep_end: bool = False,
    dtype: str = "float32",
) -> ActivationCache:
    """Write the activations of texts to disk once; `train_sae`, `probe` and `explain` read them by `cache=`.

    Args:
        pair: base and tuned.
        sites: hook names, for example `diverge(pair, texts).top(5)`.
        texts: each is cut to `max_tokens`.
        folder: where to write; None: a folder of its own in the user's cache. An unfinished one is completed.
        sides: `base`, `tuned` or both.
        max_tokens: longest text, in tokens.
        keep_end: cut longer texts at their start, as `probe` reads what comes before a word, and not at their end.
        dtype: `float32`; `bfloat16` or `float16` take half the room and change activations by up to 0.4 %.

    Returns:
        The cache; its size is printed before the first byte is written.

    Raises:
        LensError: for a site that does not exist, texts without tokens, too little room on the disk, or a folder that
            holds something else.

    >>> stored = cache(pair, pair.sites[:2], texts)  # doctest: +SKIP
    >>> saes = train_sae(pair, pair.sites[:2], texts, cache=stored)  # doctest: +SKIP
    """
    if dtype not in DTYPES:
        raise LensError(f"dtype is one of {', '.join(DTYPES)}; {dtype!r} given.")
    for name, given in (("site", sites), ("side", sides)):
        if isinstance(given, str) or not len(given):
            raise LensError(f"{name}s must be a list of at least one {name}; {given!r} given.")
    for side in sides:
        pair.hf(side)
    for site in sites:
        module_at(pair.tuned_hf, site)
    width, begin = pair.tuned_hf.config.hidden_size, pair.tokenizer.bos_token_id
    encoded = encode(pair.tokenizer, texts, max_tokens=pair.room(max_tokens), keep_end=keep_end)
    plans = [text_batches(part, width=width, begin=begin, device=pair.device) for part in split(encoded)]
    if not any(plan.rows for plan in plans):
        raise LensError("The texts hold no tokens: there is nothing to cache.")
    streams = [(side, site) for side in sides for site in sorted(set(sites), key=layer_of)]
    identity = {"format": FORMAT, "pair": pair.fingerprint, "streams": [list(one) for one in streams], "dtype": dtype,
                "max_tokens": max_tokens, "content": fingerprint([text.ids for text in encoded])}  # fmt: skip
    place = Path(folder) if folder is not None else cache_folder() / f"activations-{fingerprint(identity)}"
    shards = list(_shards(plans, streams, width, DTYPES[dtype].itemsize))
    _begin(place, identity, sum(shard.n_tokens for shard in shards) * len(streams) * width * DTYPES[dtype].itemsize)
    written = []
    with (
        fast_matmul(),
        tqdm(total=sum(shard.n_tokens for shard in shards), desc="cache", unit="tok", unit_scale=True) as bar,
    ):
        for at, shard in enumerate(shards):
            written.append(shard.write(place, at, pair, streams, DTYPES[dtype]))
            bar.update(shard.n_tokens)
    _write_whole(place / INDEX, json.dumps(identity | {"shards": written}))
    return open_cache(place)


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


def opened(
    given: Any,
    pair: Pair,
    sites: Sequence[str],
    texts: Sequence[str],
    *,
    sides: Sequence[str] = ("base", "tuned"),
    max_tokens: int,
    keep_end: bool = False,
) -> ActivationCache | None:
    """Give what a verb's `cache=` stands for: None, an `ActivationCache` of this pair, or one made in a folder from these texts.

    Raises `LensError` for anything else, for another pair's, and for what `cache` refuses.
    """
    if isinstance(given, (str, os.PathLike)):
        return cache(pair, sites, texts, given, sides=sides, max_tokens=max_tokens, keep_end=keep_end)
    if given is not None and not isinstance(given, ActivationCache):
        raise LensError(f"cache is an ActivationCache (lfp_lens.cache) or a folder; a {type(given).__name__} given.")
    if given is not None:
        given.check_pair(pair)
    return given


def in_key(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Give a verb's inputs as they key its result: where activations are read changes nothing, their precision does."""
    given = inputs["cache"]
    dtype = given.index["dtype"] if isinstance(given, ActivationCache) else "float32"
    rounded = {} if dtype == "float32" else {"cache_dtype": dtype}
    return {name: value for name, value in inputs.items() if name != "cache"} | rounded


@dataclass(frozen=True, eq=False)
class _Shard:
    """Some batches of one plan."""

    plan: TextBatches
    batches: list[int]
    n_tokens: int

    def write(self, folder: Path, at: int, pair: Pair, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Any]:
        """Write the shard unless it is there, and give its entry of the index."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        rows = [row for batch in self.batches for row in self.plan.rows[batch]]
        lengths = [self.plan.content(row) for row in rows]
        starts = np.cumsum([0, *lengths[:-1]]).tolist()
        entry = {"file": f"shard-{at:05d}.safetensors", "tokens": self.n_tokens, "starts": starts, "lengths": lengths,
                 "texts": [_key(self.plan.encoded[row].ids) for row in rows]}  # fmt: skip
        path = folder / entry["file"]
        if path.exists():
            return entry
        models = Models({"base": pair.base_hf, "tuned": pair.tuned_hf}, self.plan, streams)
        parts = [models.read(batch) for batch in self.batches]
        tensors = {".".join(one): torch.cat([part[one] for part in parts]).to(dtype).cpu() for one in streams}
        ids = [(token, at, row) for row in rows for at, token in enumerate(self.plan.encoded[row].ids)
               if token != self.plan.begin]  # fmt: skip
        for column, name in enumerate(("tokens", "positions", "texts")):
            tensors[name] = torch.tensor([one[column] for one in ids], dtype=torch.int32)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file(tensors, aside)
            os.replace(aside, path)
        except (OSError, SafetensorError) as error:
            aside.unlink(missing_ok=True)
            raise LensError(f"The cache could not be written in {folder}: {error}.") from error
        return entry


def _shards(plans: Sequence[TextBatches], streams: Sequence[Stream], width: int, itemsize: int) -> Iterator[_Shard]:
    limit = max(1, SHARD_BYTES // (len(streams) * width * itemsize))
    for plan in plans:
        batches: list[int] = []
        filled = 0
        for at, n in enumerate(plan.n_tokens.tolist()):
            if batches and filled + n > limit:
                yield _Shard(plan, batches, filled)
                batches, filled = [], 0
            batches.append(at)
            filled += n
        if batches:
            yield _Shard(plan, batches, filled)


def _begin(folder: Path, identity: Mapping[str, Any], n_bytes: int) -> None:
    """Make the folder, or take an unfinished one of the same content; say what the cache will take."""
    started = folder / "identity.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if started.exists():
            if json.loads(started.read_text(encoding="utf-8")) != dict(identity):
                raise LensError(f"The folder {folder} holds another cache. Delete it, or choose another folder.")
        elif any(folder.iterdir()):
            raise LensError(f"The folder {folder} is not empty and holds no cache. Choose another folder.")
        free = shutil.disk_usage(folder).free
        if n_bytes > free:
            raise LensError(
                f"The cache takes {n_bytes / 1e9:.2f} GB; {folder} has {free / 1e9:.2f} GB free. Take fewer sites or texts, or "
                'dtype="bfloat16".'
            )
        _write_whole(started, json.dumps(identity))
    except (OSError, ValueError) as error:
        raise LensError(f"The cache cannot be written in {folder}: {error}.") from error
    tqdm.write(f"cache: {n_bytes / 1e6:,.0f} MB in {folder}")


def _write_whole(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _key(ids: Sequence[int]) -> str:
    return fingerprint(list(ids))
