"""Harvest: every content token once an epoch, shuffled the same on every run, from one pass of each model and no logits."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activations import Encoded, encode
from lfp_lens.parts.harvest import Blocks, Models, Stream, split, text_batches
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.sites import trunk
from tests.tiny import tiny_pair, tiny_texts

SITES = ("blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out")
STREAM: Stream = ("tuned", SITES[0])


class Numbered:
    """Batches whose activations say which token they are: [token, token]."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.reads = sizes, list[int]()

    def read(self, at: int) -> Mapping[Stream, torch.Tensor]:
        self.reads.append(at)
        start = sum(self.sizes[:at])
        return {STREAM: torch.arange(start, start + self.sizes[at]).float()[:, None].expand(-1, 2).clone()}


def numbered(
    sizes: list[int], block_tokens: int, wanted: list[int], *, start: int = 0, seed: int = 0
) -> list[list[int]]:
    source = Blocks(Numbered(sizes), np.array(sizes), block_tokens, seed)
    return [block[STREAM][:, 0].int().tolist() for block in source.blocks(start, wanted)]


def test_an_epoch_holds_every_token_once_and_the_next_one_again() -> None:
    sizes = [5, 3, 4, 8]
    found = numbered(sizes, 7, [7, 7, 7, 7, 7, 5])
    assert [len(block) for block in found] == [7, 7, 7, 7, 7, 5]
    flat = [token for block in found for token in block]
    counts = np.bincount(flat, minlength=20)
    assert counts.tolist() == [2] * 20, "40 tokens are two epochs of 20"


def test_blocks_are_shuffled_and_another_seed_gives_another_order() -> None:
    one, again, other = (numbered([40, 40], 40, [40, 40], seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    assert one[0] != sorted(one[0])
    assert not {(a, a + 1) for a in one[0]} <= {(a, b) for a, b in zip(one[0], one[0][1:])}


@pytest.mark.parametrize("start", [1, 2, 3, 4])
def test_going_on_at_any_block_gives_the_same_tokens(start: int) -> None:
    sizes, wanted = [5, 3, 4, 8], [7, 7, 7, 7, 5]
    assert numbered(sizes, 7, wanted, start=start) == numbered(sizes, 7, wanted)[start:]


def test_a_batch_is_read_once_even_where_a_block_ends_inside_it() -> None:
    reader = Numbered([10, 10])
    list(Blocks(reader, np.array([10, 10]), 4, 0).blocks(0, [4, 4, 4, 4, 4]))
    assert sorted(reader.reads) == [0, 1]


def test_activations_that_are_not_finite_or_all_the_same_are_refused() -> None:
    class Odd(Numbered):
        value = float("nan")

        def read(self, at: int) -> Mapping[Stream, torch.Tensor]:
            return {STREAM: torch.full((4, 2), self.value)}

    reader = Odd([4])
    with pytest.raises(LensError, match=r"Activations of the tuned model at blocks\.0\.hook_mlp_out are not finite"):
        next(Blocks(reader, np.array([4]), 4, 0).blocks(0, [4]))
    reader.value = 0.5
    with pytest.raises(LensError, match="are the same at every token: there is nothing to learn"):
        next(Blocks(reader, np.array([4]), 4, 0).blocks(0, [4]))


# --- from real models ---


def read_all(pair: Pair, streams: list[Stream], texts: list[str]) -> tuple[list[int], dict[Stream, torch.Tensor]]:
    """Every text's activations, batch after batch, and the order of the texts."""
    batches = batches_of(pair, texts)
    models = Models({"base": pair.base_hf, "tuned": pair.tuned_hf}, batches, streams)
    parts = [models.read(at) for at in range(len(batches.rows))]
    rows = [row for own in batches.rows for row in own]
    return rows, {stream: torch.cat([part[stream] for part in parts]) for stream in streams}


def batches_of(pair: Pair, texts: list[str]) -> Any:
    encoded = encode(pair.tokenizer, texts, max_tokens=40)
    width = pair.tuned_hf.config.hidden_size
    return text_batches(encoded, width=width, begin=pair.tokenizer.bos_token_id, device=torch.device("cpu"))


@pytest.mark.parametrize("kind", ["neox", "gpt2", "llama"])
def test_what_is_read_equals_hook_mlp_out_at_every_content_token(kind: str) -> None:
    """The public model is the HookedTransformer: 1e-5 of it, text by text, without padding and beginning-of-text."""
    pair, texts = tiny_pair(kind), tiny_texts(12)
    rows, found = read_all(pair, [("base", SITES[0]), ("tuned", SITES[1])], texts)
    begin = pair.tokenizer.bos_token_id
    wanted: dict[Stream, list[torch.Tensor]] = {("base", SITES[0]): [], ("tuned", SITES[1]): []}
    for row in rows:
        ids = encode(pair.tokenizer, [texts[row]], max_tokens=40)[0].ids
        for side, site in wanted:
            model = pair.base if side == "base" else pair.tuned
            with torch.no_grad():
                _, seen = model.run_with_cache(torch.tensor([ids]), names_filter=site)
            content = [at for at, token in enumerate(ids) if token != begin]
            wanted[side, site].append(seen[site][0, content])
    for stream, parts in wanted.items():
        torch.testing.assert_close(found[stream], torch.cat(parts), atol=1e-5, rtol=1e-5)


def test_difference_and_both_are_made_of_the_same_tokens_of_both_models() -> None:
    pair, site = tiny_pair(), SITES[0]
    streams: list[Stream] = [(side, site) for side in ("base", "tuned", "difference", "both")]
    _, found = read_all(pair, streams, tiny_texts(6))
    assert torch.equal(found["difference", site], found["tuned", site] - found["base", site])
    assert torch.equal(found["both", site], torch.cat([found["base", site], found["tuned", site]], dim=1))
    assert float(found["difference", site].abs().max()) > 0


def test_each_model_runs_once_per_batch_stops_after_the_deepest_site_and_computes_no_logits() -> None:
    pair = tiny_pair()
    calls = {"base": 0, "tuned": 0, "logits": 0, "after": 0}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    handles = [
        trunk(pair.base_hf).register_forward_pre_hook(count("base")),
        trunk(pair.tuned_hf).register_forward_pre_hook(count("tuned")),
        pair.tuned_hf.get_output_embeddings().register_forward_pre_hook(count("logits")),
        pair.tuned_hf.gpt_neox.layers[1].register_forward_pre_hook(count("after")),
    ]
    try:
        streams: list[Stream] = [("base", SITES[1]), ("tuned", SITES[0]), ("difference", SITES[0]), ("both", SITES[0])]
        batches = batches_of(pair, tiny_texts(5))
        Models({"base": pair.base_hf, "tuned": pair.tuned_hf}, batches, streams).read(0)
    finally:
        for handle in handles:
            handle.remove()
    assert calls == {"base": 1, "tuned": 1, "logits": 0, "after": 0}


def test_batches_do_not_mix_what_is_next_to_each_other_and_hold_every_text_with_content() -> None:
    """Neighbours in a file are often about one thing; a text of nothing but the first token is left out."""
    texts = [Encoded([9, at, 7], []) for at in range(1, 401)] + [Encoded([0], []), Encoded([], [])]
    found = text_batches(texts, width=2**10, begin=0, device=torch.device("cpu"))
    assert sorted(row for rows in found.rows for row in rows) == list(range(400))
    assert found.n_tokens.tolist() == [3 * len(rows) for rows in found.rows]
    first = found.rows[0]
    assert max(first) - min(first) > len(first), "a batch is drawn from all over the texts"


def test_the_last_tenth_is_held_out() -> None:
    texts = [Encoded([at], []) for at in range(25)]
    train, heldout = split(texts)
    assert [text.ids[0] for text in heldout] == [23, 24]
    assert len(train) == 23
