"""The pass over the texts against a second implementation that keeps everything: every window of every feature."""

import dataclasses
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from lfp_lens.parts.activations import Encoded
from lfp_lens.parts.harvest import TextBatches
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import load_sae
from lfp_lens.parts.sites import activations_at
from lfp_lens.results.train_sae import SAERecord, SAEWeights
from lfp_lens.stages.explain import firing, windows
from lfp_lens.stages.explain.batches import Batch
from lfp_lens.stages.explain.clusters import Clustering, clustering
from lfp_lens.stages.explain.evidence import pick
from lfp_lens.stages.explain.firing import Sizes, Watched, few_features, hold_out, watch
from lfp_lens.stages.explain.kept import Best, StrongTokens, n_strong
from lfp_lens.stages.explain.keys import Draw, weighted_keys
from lfp_lens.stages.explain.windows import WINDOW, Half, by_content, halves
from tests.stages.planted import SITE, planted_saes
from tests.tiny import WORDS, tiny_pair, word_saes

N = 60
CLUSTERS = Clustering(24, 0.5, 2.0)
SIZES = Sizes(top=4, sample=6, silent=5, trial=7)


class Bar:
    def update(self) -> None:
        pass


def long_texts(n: int = N) -> list[str]:
    """Texts of 3 to 70 words: one to three windows."""
    generator = np.random.default_rng(5)
    return [" ".join(generator.choice(WORDS, generator.integers(3, 70)).tolist()) + "." for _ in range(n)]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return tiny_pair()


@pytest.fixture(scope="module")
def record(pair: Pair) -> SAERecord:
    """Features that fire on part of the tokens, to a varying degree."""
    one = planted_saes(pair).one(SITE)
    tensors = one.weights.tensors | {"b_enc": np.linspace(-0.6, 0.3, 24).astype(np.float32)}
    return dataclasses.replace(one, weights=SAEWeights(one.weights.config, tensors))


def both_halves(pair: Pair, texts: list[str]) -> tuple[Half, Half]:
    return halves(pair, by_content(texts, 0), max_tokens=80, width=16, seed=0)


def passed(pair: Pair, record: SAERecord, texts: list[str]) -> tuple[Watched, Half, Half]:
    """Read the texts as `explain` does."""
    shown, held = both_halves(pair, texts)
    own = Watched(record, np.arange(record.n_features), None, len(shown.ids), SIZES, torch.device("cpu"))
    pool = watch(pair, "tuned", {SITE: [own]}, shown, None, Bar())
    own.settle(shown)
    pool.rest({SITE: [own]})
    hold_out(pair, "tuned", {SITE: [own]}, held, CLUSTERS, None, Bar())
    return own, shown, held


@pytest.fixture(scope="module")
def seen(pair: Pair, record: SAERecord) -> tuple[Watched, Half, Half]:
    return passed(pair, record, long_texts())


def every_activation(pair: Pair, record: SAERecord, half: Half) -> np.ndarray:
    """Every token of a half, one text at a time, the plain way; 0 at a beginning-of-text token."""
    sae, found = load_sae(record), []
    for text in half.encoded:
        ids = torch.tensor([text.ids])
        acts = activations_at(pair.tuned_hf, ids, torch.ones_like(ids), [SITE])[SITE][0]
        features = sae.encode(acts).numpy() * (ids[0] != pair.tokenizer.bos_token_id).numpy()[:, None]
        found.append(features[half.skip :])
    return np.concatenate(found)


@pytest.fixture(scope="module")
def whole(pair: Pair, record: SAERecord, seen: Any) -> tuple[np.ndarray, np.ndarray]:
    return every_activation(pair, record, seen[1]), every_activation(pair, record, seen[2])


def peaks(acts_NF: np.ndarray, half: Half) -> np.ndarray:
    return np.maximum.reduceat(acts_NF, half.window_starts[:-1], axis=0)


def windows_of(best: Best, feature: int) -> list[int]:
    return [window for window, _ in best.of(feature)]


def first_by(keys: np.ndarray, where: np.ndarray, n: int) -> list[int]:
    """Windows of the largest key among some."""
    chosen = np.flatnonzero(where)
    return chosen[np.argsort(-keys[chosen], kind="stable")][:n].tolist()


def drawn(half: Half) -> np.ndarray:
    """What each of the 24 features draws for each window."""
    return Draw(f"{SITE} ", np.arange(24), torch.device("cpu"))(torch.from_numpy(half.priority)).numpy()


def test_windows_are_disjoint_blocks_of_at_most_32_tokens_that_hold_every_token(seen: Any) -> None:
    for half in seen[1:]:
        lengths = np.diff(half.window_starts)
        assert lengths.sum() == len(half.ids) and lengths.min() > 0 and lengths.max() <= WINDOW
        assert (half.window_text[half.window_of] == np.repeat(np.arange(len(half.encoded)), np.diff(half.starts))).all()
        for window in range(len(lengths)):
            text = half.encoded[half.window_text[window]].text
            assert "".join(half.pieces(window)) in text
        assert (
            "".join("".join(half.pieces(window)) for window in np.flatnonzero(half.window_text == 0))
            == half.encoded[0].text
        )


def test_the_strongest_windows_are_those_of_the_global_maximum(seen: Any, whole: Any) -> None:
    own, shown, _ = seen
    for feature, column in enumerate(peaks(whole[0], shown).T):
        ranked = -np.sort(-column)[: SIZES.top]
        found = windows_of(own.top, feature)
        assert len(found) == len(set(found)) == (ranked > 0).sum()
        # Peaks that differ by less than 2^-11 are ranked as drawn.
        np.testing.assert_allclose(column[found], ranked[ranked > 0], rtol=2**-10)


def test_windows_of_every_quantile_are_a_draw_of_all_where_it_fires(seen: Any, whole: Any) -> None:
    own, shown, _ = seen
    for feature, column in enumerate(peaks(whole[0], shown).T):
        assert windows_of(own.sample, feature) == first_by(drawn(shown)[:, feature], column > 0, SIZES.sample)


def test_the_level_is_that_of_the_strongest_percent_of_the_shown_tokens(seen: Any, whole: Any) -> None:
    own, shown, _ = seen
    n = n_strong(len(shown.ids))
    assert n == np.ceil(0.01 * len(shown.ids))
    ranked = -np.sort(-whole[0], axis=0)
    np.testing.assert_allclose(own.level_F.numpy(), np.maximum(0.999 * ranked[n - 1], 1e-6), rtol=1e-4)
    for feature in range(24):
        places, values = own.strongest.of(feature)
        np.testing.assert_allclose(values, whole[0][places, feature], rtol=1e-4)
        np.testing.assert_allclose(values, ranked[:n, feature][ranked[:n, feature] > 0], rtol=1e-4)


def test_silent_windows_and_hard_negatives_stay_below_the_level(seen: Any, whole: Any) -> None:
    own, shown, held = seen
    for half, acts_NF, silent, hard, n in (
        (shown, whole[0], own.silent, own.hard, SIZES.silent),
        (held, whole[1], own.quiet, own.decoys, SIZES.trial),
    ):
        column_WF = peaks(acts_NF, half)
        keys_WF = drawn(half)
        if half is held:
            fire = (column_WF >= own.level_F.numpy()).sum(1)
            keys_WF = keys_WF ** ((np.maximum(23 - fire, 0) + 2.0) / (fire + 0.5))[:, None]
        for feature in range(24):
            below = column_WF[:, feature] < own.level_F[feature].item()
            assert windows_of(silent, feature) == first_by(keys_WF[:, feature], below, n)
            strongest = set(own.tokens[feature][: firing.TOP_TOKENS].tolist())
            holds = np.array([
                not strongest.isdisjoint(half.ids[low:high].tolist())
                for low, high in zip(half.window_starts, half.window_starts[1:])
            ])  # fmt: skip
            assert windows_of(hard, feature) == first_by(keys_WF[:, feature], below & holds, n)


def test_held_out_windows_fire_at_the_level_that_the_shown_half_set(seen: Any, whole: Any) -> None:
    own, _, held = seen
    for feature, column in enumerate(peaks(whole[1], held).T):
        reached = column >= own.level_F[feature].item()
        assert windows_of(own.fires, feature) == first_by(drawn(held)[:, feature], reached, 2 * SIZES.trial)


def test_the_maximum_is_that_of_all_texts(seen: Any, whole: Any) -> None:
    np.testing.assert_allclose(seen[0].maximum_F.numpy(), np.concatenate(whole).max(0), rtol=1e-4)


def test_what_is_kept_of_a_window_is_what_the_feature_does_in_it(seen: Any, whole: Any) -> None:
    own, shown, held = seen
    for best, half, acts_NF in ((own.top, shown, whole[0]), (own.sample, shown, whole[0]), (own.silent, shown, whole[0]),
                                (own.fires, held, whole[1]), (own.decoys, held, whole[1])):  # fmt: skip
        for feature in range(24):
            for window, kept in best.of(feature):
                low, high = half.window_starts[window : window + 2]
                np.testing.assert_allclose(kept[: high - low], acts_NF[low:high, feature], rtol=1e-4, atol=1e-5)
                assert not kept[high - low :].any()


def test_batch_size_and_padding_change_nothing(
    pair: Pair, record: SAERecord, seen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_by_one(encoded: list[Encoded], *, begin: int | None, **options: Any) -> TextBatches:
        return TextBatches(encoded, [[row] for row in range(len(encoded))], begin)

    monkeypatch.setattr(windows, "text_batches", one_by_one)
    alone = passed(pair, record, long_texts())[0]
    # Two shapes of the same product differ by rounding in fp32.
    np.testing.assert_allclose(alone.level_F.numpy(), seen[0].level_F.numpy(), rtol=1e-4)
    for name in ("top", "sample", "silent", "hard", "fires", "quiet", "decoys"):
        for feature in range(24):
            assert windows_of(getattr(alone, name), feature) == windows_of(getattr(seen[0], name), feature), name


def test_no_dictionary_reads_a_beginning_of_text_token_inside_a_text(pair: Pair, record: SAERecord) -> None:
    """It stays one of the text's tokens, at which nothing fires, however strong a dictionary would find it there."""
    texts = [f"{text[:-1]}<|endoftext|> we saw it." for text in long_texts(20)]
    tensors = record.weights.tensors | {"b_enc": np.full(24, 2, np.float32)}
    dense = dataclasses.replace(record, weights=SAEWeights(record.weights.config, tensors))
    own, shown, _ = passed(pair, dense, texts)
    n = 0
    for feature in range(24):
        for window, kept in own.top.of(feature):
            low, high = shown.window_starts[window : window + 2]
            inside = shown.ids[low:high] == pair.tokenizer.bos_token_id
            n += int(inside.sum())
            assert (kept[: high - low] > 0).tolist() == (~inside).tolist()
    assert n > 0


def test_features_that_cannot_be_chosen_any_more_are_dropped_without_a_trace(pair: Pair, record: SAERecord) -> None:
    texts = long_texts()
    shown, _ = both_halves(pair, texts)
    order = np.random.default_rng(0).permutation(24)
    few = Watched(record, order, 3, len(shown.ids), SIZES, torch.device("cpu"))
    watch(pair, "tuned", {SITE: [few]}, shown, None, Bar())
    every = passed(pair, record, texts)[0]
    assert few.n_listed() == len(few.features) == 3 == few.is_alive().sum()
    for row, feature in enumerate(few.features):
        assert feature in order[:3]
        assert windows_of(few.top, row) == windows_of(every.top, int(feature))


def test_a_few_features_of_a_dictionary_read_as_they_do_in_it(pair: Pair, record: SAERecord) -> None:
    acts_ND = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))
    some = few_features(record.weights, np.array([2, 7, 20]))
    assert some is not None
    wanted = load_sae(record).encode(acts_ND)[:, [2, 7, 20]]
    torch.testing.assert_close(load_sae(dataclasses.replace(record, weights=some)).encode(acts_ND), wanted)
    topk = SAEWeights(record.weights.config | {"architecture": "topk"}, record.weights.tensors)
    assert few_features(topk, np.array([2])) is None


def test_asked_again_a_feature_is_shown_other_windows(pair: Pair, seen: Any) -> None:
    own = seen[0]
    for feature in range(24):
        first, second = (
            {window for kind in pick(own, feature, 2, part) for _, window, _ in kind} for part in (0, 1)
        )  # fmt: skip
        assert first and second and first.isdisjoint(second)


def held_by(thing: Any, seen: set[int]) -> int:
    """Count the bytes of every tensor and array that an object holds on to, token ids and weights left out."""
    if id(thing) in seen or isinstance(thing, (Half, SAERecord, torch.nn.Module)):
        return 0
    seen.add(id(thing))
    if isinstance(thing, (torch.Tensor, np.ndarray)):
        return int(thing.nbytes)
    if isinstance(thing, dict):
        return sum(held_by(one, seen) for one in thing.values())
    if isinstance(thing, (list, tuple)):
        return sum(held_by(one, seen) for one in thing)
    return held_by(vars(thing), seen) if hasattr(thing, "__dict__") else 0


def test_memory_does_not_grow_with_the_number_of_texts(
    pair: Pair, record: SAERecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has a bound of its own is bounded at few texts here: strong tokens and the pool."""
    monkeypatch.setattr("lfp_lens.stages.explain.kept.MAX_STRONG", 5)
    monkeypatch.setattr(firing, "POOL_WINDOWS", (16, 16))

    def size(n: int) -> tuple[int, int]:
        shown, held = both_halves(pair, long_texts(n))
        own = Watched(record, np.arange(24), None, len(shown.ids), SIZES, torch.device("cpu"))
        pool = watch(pair, "tuned", {SITE: [own]}, shown, None, Bar())
        while_shown = held_by([own, pool], set())
        own.settle(shown)
        pool.rest({SITE: [own]})
        hold_out(pair, "tuned", {SITE: [own]}, held, CLUSTERS, None, Bar())
        return while_shown, held_by([own, pool], set())

    few, many = size(40), size(160)
    assert few[0] == many[0] > pool_bytes() + strong_bytes() > 0
    # After the shown half: also the distinct strongest tokens, at most five per feature.
    assert few[1] > few[0] and many[1] - few[1] < 24 * 5 * 16


def pool_bytes() -> int:
    return 16 * WINDOW * 16 * 4


def strong_bytes() -> int:
    return 24 * 2 * 5 * (4 + 8)


def test_held_out_activations_of_all_dictionaries_are_never_held_at_once(
    pair: Pair, record: SAERecord, seen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, held_now, most = 5 * WINDOW * 24, 0, 0
    lay = Batch.lay

    def laid(self: Batch, acts_NF: torch.Tensor) -> torch.Tensor:
        nonlocal held_now, most
        made = lay(self, acts_NF)
        held_now += made.numel()
        most = max(most, held_now)
        weakref.finalize(made, gone, made.numel())
        return made

    def gone(n: int) -> None:
        nonlocal held_now
        held_now -= n

    shown, held = both_halves(pair, long_texts())
    watched = [Watched(record, np.arange(24), None, len(shown.ids), SIZES, torch.device("cpu")) for _ in range(4)]
    watch(pair, "tuned", {SITE: watched}, shown, None, Bar())
    for own in watched:
        own.settle(shown)
    monkeypatch.setattr(Batch, "lay", laid)
    monkeypatch.setattr(firing, "LAID_VALUES", bound)
    # Four equal dictionaries: four times as many features fire, of four times as many.
    hold_out(pair, "tuned", {SITE: watched}, held, Clustering(96, 2.0, 8.0), None, Bar())
    assert 0 < most <= 2 * bound, "a block, and the one that follows it"
    for name in ("fires", "quiet", "decoys"):
        for feature in range(24):
            found = [windows_of(getattr(own, name), feature) for own in watched]
            assert found == [found[0]] * 4
            if name == "fires":
                assert found[0] == windows_of(seen[0].fires, feature)


def blocks(values_NF: torch.Tensor, generator: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    start = 0
    while start < len(values_NF):
        stop = start + int(generator.integers(1, 40))
        yield values_NF[start:stop], torch.arange(start, min(stop, len(values_NF)))
        start = stop


def test_independent_features_leave_every_window_alike_and_clustered_ones_do_not() -> None:
    generator = np.random.default_rng(0)
    apart = clustering(torch.from_numpy(generator.binomial(50, 0.2, size=4000)).double(), 50)
    odds = apart.odds(torch.tensor([0, 10, 49]))
    assert odds.max() / odds.min() < 1.5
    # Shares drawn from Beta(1, 3): m of 49 others make the odds (m + 1) / (49 - m + 3).
    shares = generator.beta(1, 3, size=40_000)
    together = clustering(torch.from_numpy(generator.binomial(50, shares)).double(), 50)
    torch.testing.assert_close(
        together.odds(torch.tensor([0.0, 10.0, 40.0])), torch.tensor([1 / 52, 11 / 42, 41 / 12]), rtol=0.1, atol=0
    )
    for given in (torch.zeros(5), torch.full((5,), 3.0)):
        assert torch.isfinite(clustering(given.double(), 3).odds(given)).all()


def test_windows_are_drawn_in_proportion_to_their_weights() -> None:
    priorities = torch.from_numpy(np.random.default_rng(0).integers(2**31, size=3))
    weights = torch.tensor([0.1, 0.3, 0.6])
    draw = Draw("site", np.arange(20_000), torch.device("cpu"))
    first = weighted_keys(draw(priorities), weights).argmax(0)
    # Three standard errors of a share of 20,000 draws.
    np.testing.assert_allclose(first.bincount() / 20_000, weights, atol=0.011)


def test_draws_are_uniform_and_no_two_features_or_dictionaries_share_one() -> None:
    priorities = torch.from_numpy(np.random.default_rng(0).integers(2**31, size=4000))
    made = np.hstack([
        Draw(name, np.arange(40), torch.device("cpu"))(priorities).numpy() for name in ("site ", "site random")
    ])  # fmt: skip
    assert made.min() > 0 and made.max() < 1
    # 80 columns of 4,000 draws: the largest of 3,160 correlations of independent ones is about 3.6 / sqrt(4,000).
    correlation = np.corrcoef(made, rowvar=False)[np.triu_indices(80, 1)]
    assert np.abs(correlation).max() < 0.08 and abs(correlation.std() * np.sqrt(4000) - 1) < 0.1
    assert scipy.stats.kstest(made.ravel(), "uniform").pvalue > 0.001
    np.testing.assert_array_equal(made[:, 7], Draw("site ", np.array([7]), torch.device("cpu"))(priorities)[:, 0])


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_the_strongest_tokens_are_exact_however_the_texts_are_cut(share: float) -> None:
    generator = np.random.default_rng(2)
    values_NF = torch.from_numpy(generator.normal(size=(500, 6)) * (generator.random((500, 6)) < share)).float()
    kept = StrongTokens(6, 7, torch.device("cpu"))
    for part, places in blocks(values_NF, generator):
        kept.add(part, places)
    for feature in range(6):
        places, values = kept.ranked().of(feature)
        ranked = values_NF[:, feature].topk(7).values
        np.testing.assert_array_equal(values, ranked[ranked > 0])
        np.testing.assert_array_equal(values_NF[places, feature], values)


@pytest.mark.parametrize(("k", "share"), [(1, 1.0), (6, 0.05), (6, 1.0), (60, 0.7)])
def test_the_largest_keys_are_kept_with_their_activations_however_the_windows_come(k: int, share: float) -> None:
    generator = np.random.default_rng(3)
    keys_NF = torch.from_numpy(generator.random((400, 5)) * (generator.random((400, 5)) < share))
    acts_NTF = torch.from_numpy(generator.normal(size=(400, WINDOW, 5))).float()
    best = Best(5, k, torch.device("cpu"))
    for part, rows in blocks(keys_NF, generator):
        best.add(part, rows + 1000, acts_NTF[rows])
    best.keep(torch.tensor([0, 2, 4]))
    for at, feature in enumerate((0, 2, 4)):
        ranked = first_by(keys_NF[:, feature].numpy(), keys_NF[:, feature].numpy() > 0, k)
        assert windows_of(best, at) == [1000 + row for row in ranked]
        for window, acts in best.of(at):
            np.testing.assert_array_equal(acts, acts_NTF[window - 1000, :, feature])


def test_a_dictionary_whose_features_are_known_keeps_their_words(pair: Pair) -> None:
    site = "blocks.0.hook_mlp_out"
    one = word_saes(pair, ("river",)).one(site)
    shown, held = both_halves(pair, long_texts())
    own = Watched(one, np.arange(2), None, len(shown.ids), SIZES, torch.device("cpu"))
    watch(pair, "tuned", {site: [own]}, shown, None, Bar())
    own.settle(shown)
    assert [pair.tokenizer.decode([int(token)]) for token in own.tokens[0]] == [" river"]
    assert len(own.tokens[1]) == 0 and held is not None
    words = shown.words()
    total = words.total(*own.strongest.of(0))
    assert [words.vocabulary[at] for at in np.flatnonzero(total)] == ["river"] and words.count.sum() == len(shown.ids)
