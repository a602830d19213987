"""restart: what is run again equals a whole run, whatever is left out, and nothing stays on the model."""

from typing import Any

import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activations import Batch, encode, hidden_states, pad
from lfp_lens.parts.restart import CleanRun, clean_run, restarted
from lfp_lens.parts.sites import editing
from tests.tiny import ARCHITECTURES, tiny_pair, tiny_texts

SITES = ["blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out", "blocks.1.hook_resid_post"]


def a_batch(pair: Any, n: int = 6) -> Batch:
    return pad(encode(pair.tokenizer, tiny_texts(n), max_tokens=64), list(range(n)), device="cpu")


def changed(acts: torch.Tensor) -> torch.Tensor:
    return 0.3 * acts + 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("site", SITES)
def test_a_run_that_begins_at_a_site_equals_a_whole_one(architecture: str, site: str) -> None:
    pair = tiny_pair(architecture)
    model, batch = pair.tuned_hf, a_batch(pair)
    content_BS = batch.content(0)
    edit = lambda acts: torch.where(content_BS[..., None], changed(acts), acts)  # noqa: E731
    with torch.no_grad():
        with editing(model, {site: edit}):
            whole = hidden_states(model, batch)
        run = clean_run(model, batch, [site])
        clean = hidden_states(model, batch)
        part = restarted(model, run, site, edit(run.acts[site]))
        after = hidden_states(model, batch)
    assert torch.equal(part[content_BS], whole[content_BS])
    assert not torch.allclose(part[content_BS], clean[content_BS], atol=1e-3)
    assert torch.equal(run.hidden_BSD, clean) and torch.equal(after, clean)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("start", [1, 6])
def test_texts_may_be_repeated_and_begun_later(architecture: str, site: str, start: int) -> None:
    """Rows of one text with different changes, none of them before `start`, as so many whole runs give them."""
    pair = tiny_pair(architecture)
    model, batch = pair.tuned_hf, a_batch(pair)
    rows, strength = torch.tensor([4, 0, 0, 2]), torch.tensor([0.5, -1.0, 2.0, 0.0])
    with torch.no_grad():
        run = clean_run(model, batch, [site], keep_past=True)
        picked_RSD = run.acts[site][rows, start:] * (1 + strength[:, None, None])
        part = restarted(model, run, site, picked_RSD, rows=rows, start=start)
        for row, (text, factor) in enumerate(zip(rows.tolist(), strength.tolist())):

            def edit(acts: torch.Tensor, factor: float = factor) -> torch.Tensor:
                return torch.cat([acts[:, :start], acts[:, start:] * (1 + factor)], dim=1)

            with editing(model, {site: edit}):
                whole = hidden_states(model, batch)[text, start:]
            real = batch.mask_BS[text, start:].bool()
            # The same numbers in products of other shapes: fp32 rounding.
            assert part[row][real] == pytest.approx(whole[real], abs=2e-5)


def test_keeping_keys_and_values_changes_no_bit_of_the_clean_run() -> None:
    pair = tiny_pair()
    batch = a_batch(pair)
    with torch.no_grad():
        kept = clean_run(pair.tuned_hf, batch, SITES, keep_past=True)
        plain = clean_run(pair.tuned_hf, batch, SITES)
    assert torch.equal(kept.hidden_BSD, plain.hidden_BSD)
    assert all(torch.equal(kept.acts[site], plain.acts[site]) for site in SITES)
    assert len(kept.past) == 3 and not plain.past


def test_what_comes_before_the_site_is_not_run_and_nothing_stays_when_a_block_fails() -> None:
    pair = tiny_pair()
    model, batch, site = pair.tuned_hf, a_batch(pair, 2), "blocks.2.hook_mlp_out"
    ran: list[int] = []

    def note(at: int) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            ran.append(at)
            if len(ran) == 5:
                raise RuntimeError("inside")

        return hook

    handles = [layer.attention.register_forward_hook(note(at)) for at, layer in enumerate(model.gpt_neox.layers)]
    before = [dict(vars(module)) for module in model.modules()]
    with torch.no_grad():
        run = clean_run(model, batch, [site])
        assert ran == [0, 1, 2]
        restarted(model, run, site, run.acts[site])
        assert ran == [0, 1, 2, 2]
        with pytest.raises(RuntimeError, match="inside"):
            restarted(model, run, site, run.acts[site])
    for handle in handles:
        handle.remove()
    assert all("forward" not in vars(module) or "forward" in old for module, old in zip(model.modules(), before))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_site_that_does_not_exist_is_refused_and_leaves_no_hook() -> None:
    pair = tiny_pair()
    with pytest.raises(LensError, match="the model has layers 0 to 2"):
        clean_run(pair.tuned_hf, a_batch(pair), [SITES[0], "blocks.7.hook_mlp_out"])
    assert not any(module._forward_hooks for module in pair.tuned_hf.modules())


def test_a_later_start_needs_the_keys_and_values() -> None:
    pair = tiny_pair()
    with torch.no_grad():
        run: CleanRun = clean_run(pair.tuned_hf, a_batch(pair), SITES)
        with pytest.raises(AssertionError, match="keep_past=True"):
            restarted(pair.tuned_hf, run, SITES[0], run.acts[SITES[0]][:, 3:], start=3)
