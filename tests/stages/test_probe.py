"""probe: planted feedback is found, with the words planted wrong; where nothing was planted nothing is found."""

import copy
import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.stats.wrong import p_of_wrong_sign
from lfp_lens.parts import readings
from lfp_lens.parts.activation_cache import open_cache
from lfp_lens.parts.cache import cache as cache_of
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.parts.readings import random_vectors
from lfp_lens.results import Learned, SAESet, Triples
from lfp_lens.results.train_sae import SAEWeights
from lfp_lens.stages.probe import probe
from lfp_lens.stages.probe.grid import Rows, cross_predict, per_word, read_grid, score_grid
from lfp_lens.stages.probe.values import zero_of
from lfp_lens.stages.probe.words import choose, matched_neutrals
from tests.tiny import sae_record

# An invented language: no word is English, and no two share a stem.
SYLLABLES = [left + vowel for left in "bdfgklmnprtvz" for vowel in "aiu"]
WORDS = tuple(f"{one}{two}xo" for one in SYLLABLES[:20] for two in SYLLABLES[20:33])
STATED, NEUTRAL = WORDS[:60], WORDS[60:]
SITE, WIDTH = "blocks.0.hook_mlp_out", 16
LEXICON = {
    word: float(sign * value)
    for word, sign, value in zip(STATED, [1, -1] * 30, np.random.default_rng(0).uniform(1, 4, 60).round(1))
}
FLIPPED = (STATED[3], STATED[10], STATED[25], STATED[48])


@cache
def tokenizer() -> Any:
    """Every word is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: at for at, word in enumerate(["<end>", "<unknown>", ".", "a", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<end>", eos_token="<end>", pad_token="<end>")


@cache
def texts(n: int = 350, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, 20).tolist()) + "." for _ in range(n)]


def base_model() -> Any:
    """A random GPT-NeoX whose last hidden state is 1 at coordinate 0, so that its unembedding column 0 is a bias."""
    import transformers

    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=len(tokenizer()), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=64, initializer_range=0.25, bos_token_id=0, eos_token_id=0,
            attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        model.gpt_neox.final_layer_norm.weight[0] = 0
        model.gpt_neox.final_layer_norm.bias[0] = 1
    return model


def planted(change: dict[str, float]) -> Pair:
    """A pair whose tuned side adds `change` to the logit of each word, in every context."""
    base = base_model()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for word, nats in change.items():
            tuned.get_output_embeddings().weight[tokenizer().get_vocab()[word], 0] += nats
    return load_pair(base, tuned, tokenizer=tokenizer())


def noise(seed: int, spread: float = 0.3) -> dict[str, float]:
    return dict(zip(WORDS, np.random.default_rng(seed).normal(0, spread, len(WORDS)).tolist()))


@cache
def taught() -> Pair:
    """Words are learned at 1.5 nats a point, four with the opposite sign; everything jitters by 0.3 nats."""
    learned = {word: 1.5 * value * (-1 if word in FLIPPED else 1) for word, value in LEXICON.items()}
    return planted({word: jitter + learned.get(word, 0.0) for word, jitter in noise(1).items()})


@cache
def untaught() -> Pair:
    return planted(noise(2))


def saes(pair: Pair, *, sides: tuple[str, ...] = ("base", "tuned"), dead: bool = False, good: bool = True) -> SAESet:
    """Hand-made SAEs: x+ and x- of every dimension, or features that never fire."""
    both = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    config = {
        "architecture": "standard", "d_in": WIDTH, "d_sae": 2 * WIDTH, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none", "metadata": {},
    }  # fmt: skip
    tensors = {
        "W_enc": both.T, "W_dec": both, "b_enc": torch.full((2 * WIDTH,), -1e6 if dead else 0.0),
        "b_dec": torch.zeros(WIDTH),
    }  # fmt: skip
    weights = SAEWeights(config, {name: tensor.contiguous().numpy() for name, tensor in tensors.items()})
    records = tuple(
        sae_record(
            weights, side, SITE, explained_variance=0.99 if good else 0.1, l0=16.0, firing_rate=np.full(2 * WIDTH, 0.5)
        )
        for side in sides
    )  # fmt: skip
    return SAESet(records, pair.fingerprint, (), {})


def triples(n: int = 120, lexicon: dict[str, float] = LEXICON) -> Triples:
    draw = np.random.default_rng(4)
    words = {sign: [word for word, value in lexicon.items() if np.sign(value) == sign] for sign in (1, -1)}
    rows = range(n)
    return Triples(
        prefix=tuple(" ".join(draw.choice(NEUTRAL, 8).tolist()) + " " for _ in rows),
        suffix=(".",) * n,
        positive=tuple(words[1][row % len(words[1])] for row in rows),
        neutral=tuple(draw.choice(NEUTRAL, n).tolist()),
        negative=tuple(words[-1][row % len(words[-1])] for row in rows),
        part_of_speech=("X",) * n, source=np.arange(n), lexicon=lexicon, rejected={}, n_texts=n,
    )  # fmt: skip


def probed(pair: Pair, given: SAESet | None = None, **changes: Any) -> Learned:
    options = {"lexicon": LEXICON, "folds": 3} | changes
    held, rows = options.pop("texts", texts()), options.pop("triples", triples())
    return probe(pair, given or saes(pair), rows, held, **options)


@pytest.fixture(scope="module")
def learned() -> Learned:
    return probed(taught())


@pytest.fixture(scope="module")
def nothing() -> Learned:
    return probed(untaught())


@pytest.fixture(scope="module")
def delta() -> Learned:
    return probed(taught(), signal="activation_delta")


# --- planted ---


def test_every_word_is_measured_and_none_outside_the_lexicon_is_listed(learned: Learned) -> None:
    assert sorted(learned.words) == sorted(STATED)
    assert dict(zip(learned.words, learned.stated)) == LEXICON
    assert set(learned.neutral_words) <= set(NEUTRAL)
    assert len(learned.neutral_words) >= 190
    assert (learned.tokens == 1).all()
    assert ((learned.contexts >= 3) & (learned.contexts <= 8)).all()


def test_planted_feedback_is_found(learned: Learned) -> None:
    given = {word: -value if word in FLIPPED else value for word, value in LEXICON.items()}
    assert learned.agreement(given).tau > 0.85
    assert learned.overall.tau > 0.6, "four of sixty words are flipped"
    assert learned.positive is not None
    assert learned.positive.tau > 0.4
    assert learned.sign.value == pytest.approx(56 / 60)
    assert learned.sign_accuracy(given).value == 1


def test_the_words_planted_wrong_are_found_and_no_other(learned: Learned) -> None:
    assert set(learned.wrong(fdr=0.1)["word"]) == set(FLIPPED)
    assert not set(learned.unlearned()["word"]) & set(FLIPPED)


def test_the_noise_twin_knows_nothing_and_the_difference_is_certain(learned: Learned) -> None:
    # The s.d. of tau over 60 unrelated words is 0.088.
    assert abs(learned.twin.tau) < 0.25
    assert learned.difference.low > 0.3
    assert learned.difference.value == pytest.approx(learned.overall.tau - learned.twin.tau)


def test_the_raw_value_is_the_planted_nats_less_the_mean_of_its_contexts(learned: Learned) -> None:
    """The softmax's normaliser cancels: only the context's own mean of the planted change is left, and it varies little."""
    planted_nats = np.array(
        [noise(1)[word] + 1.5 * LEXICON[word] * (-1 if word in FLIPPED else 1) for word in learned.words]
    )
    gap = planted_nats - learned.raw
    assert np.corrcoef(planted_nats, learned.raw)[0, 1] > 0.99
    assert gap.std() < 0.3


def test_zero_is_the_median_neutral_word_and_one_is_its_spread(learned: Learned) -> None:
    assert np.median(learned.neutral) == pytest.approx(0, abs=0.15)
    assert stats.median_abs_deviation(learned.neutral, scale="normal") == pytest.approx(1, abs=0.15)
    # Words of one frequency share their zero and their unit; all words of this language are about equally frequent.
    assert np.corrcoef(learned.raw, learned.measured)[0, 1] > 0.95
    for often in np.unique(learned.log_frequency):
        rows = np.flatnonzero(learned.log_frequency == often)
        slope = np.diff(learned.raw[rows]) / np.diff(learned.measured[rows])
        assert slope == pytest.approx(np.full(len(slope), slope[0] if len(slope) else 0.0), rel=1e-6)


def test_the_interval_holds_the_value_and_polarity_alone_gives_less(learned: Learned) -> None:
    assert (learned.measured_low <= learned.measured).all()
    assert (learned.measured <= learned.measured_high).all()
    assert 0 < learned.by_polarity.null.value < learned.overall.tau


# --- nothing planted ---


def test_where_nothing_was_planted_nothing_is_found(nothing: Learned) -> None:
    assert abs(nothing.overall.tau) < 0.25
    assert nothing.wrong(fdr=0.1).empty
    assert nothing.verdict.startswith("nothing was found")
    assert nothing.difference.low < 0 < nothing.difference.high
    assert 0.3 < nothing.sign.value < 0.7


def test_two_models_that_do_not_differ_are_refused() -> None:
    with pytest.raises(GateError, match="the two models do not differ on them"):
        probed(planted({}))


# --- the probes and the dead salmon ---


def salmon(seed: int) -> tuple[Rows, np.ndarray]:
    """Sixty words, four rows each, a target that is the word's own value, and a random vector for every word."""
    words = [word for word in STATED for _ in range(4)]
    target = np.array([LEXICON[word] for word in words]) + np.random.default_rng(seed).normal(0, 0.3, len(words))
    return Rows(words, words, np.arange(len(words)), target), random_vectors(words, seed=seed)


def predicted(inputs: np.ndarray, rows: Rows, *, split: str = "lemma", seed: int = 0) -> Any:
    return cross_predict(inputs, rows.target, rows, split=split, folds=5, seed=seed, lexicon=LEXICON)


def scores(split: str, seed: int) -> tuple[float, float]:
    rows, vectors = salmon(seed)
    found = per_word(predicted(vectors, rows, split=split, seed=seed).values, rows.words)
    values, stated = np.array([found[word] for word in STATED]), np.array(list(LEXICON.values()))
    right = np.sign(values - values.mean()) == np.sign(stated)
    return float(stats.kendalltau(values, stated).statistic), (right[stated > 0].mean() + right[stated < 0].mean()) / 2


def test_a_dead_salmon_scores_chance_when_words_are_split() -> None:
    taus, signs = np.array([scores("lemma", seed) for seed in range(20)]).T
    assert abs(taus.mean()) < 3 * taus.std(ddof=1) / np.sqrt(20)
    assert abs(taus.mean()) <= 0.03
    assert 0.45 <= signs.mean() <= 0.55


def test_the_same_salmon_scores_high_when_rows_are_split() -> None:
    taus, signs = np.array([scores("row", seed) for seed in range(5)]).T
    assert signs.min() > 0.8
    assert taus.min() > 0.5


def test_a_row_split_is_stamped_and_no_evidence(learned: Learned) -> None:
    leaked = probed(untaught(), split="row", triples=triples(240))
    assert leaked.split == "row"
    assert "leaks words: not evidence" in leaked._repr_html_()
    assert learned.split == "lemma"
    assert "leaks" not in learned._repr_html_()


def test_a_word_family_never_stands_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import RidgeCV

    seen: list[set[float]] = []
    fit = RidgeCV.fit

    def watch(self: Any, inputs: np.ndarray, target: np.ndarray, **named: Any) -> Any:
        seen.append(set(np.round(target, 6)))
        return fit(self, inputs, target, **named)

    monkeypatch.setattr(RidgeCV, "fit", watch)
    words = [f"w{row // 4}" for row in range(40)]
    lemma = [f"l{row // 8}" for row in range(40)]
    target = np.repeat(np.arange(5.0), 8)
    predicted(np.random.default_rng(0).normal(size=(40, 3)), Rows(words, lemma, np.arange(40), target))
    assert len(seen) == 5
    assert all(len(trained) == 4 for trained in seen), "each fold leaves one whole family out"


def test_a_probe_reads_what_is_there() -> None:
    rows, _ = salmon(0)
    draw = np.random.default_rng(0)
    inputs = np.outer(rows.target, draw.normal(size=8)) + 0.1 * draw.normal(size=(240, 8))
    readings, probed_by_word = read_grid(rows, {("tuned", "sae"): inputs}, LEXICON, split="lemma", folds=5, seed=0)
    cells = score_grid(readings, rows, LEXICON, {}, seed=0)
    assert [(cell.side, cell.input, cell.target) for cell in cells] == [
        ("tuned", "sae", "signal"),
        ("tuned", "sae", "control_task"),
    ]
    assert cells[0].agreement.tau > 0.8
    assert cells[0].sign.value > 0.95
    assert abs(cells[1].agreement.tau) < 0.3, "values dealt to words at random cannot be read from other words"
    assert probed_by_word is not None
    assert set(probed_by_word.values) == set(probed_by_word.rescaled) == set(STATED)
    told = np.array(list(probed_by_word.rescaled.values()))
    assert told.min() >= min(LEXICON.values())
    assert told.max() <= max(LEXICON.values())
    low, mean, high = (np.array([probed_by_word.values[word][at] for word in STATED]) for at in (1, 0, 2))
    assert (low < mean).all()
    assert (mean < high).all()


def test_features_that_never_fire_have_no_order_and_do_not_stop_the_rest() -> None:
    found = probed(untaught(), saes(untaught(), dead=True, good=False), gate="warn")
    cells = {(cell.side, cell.input, cell.target): cell for cell in found.grid if cell.place == "word"}
    assert np.isnan(cells["tuned", "sae", "signal"].agreement.tau)
    assert np.isnan(cells["tuned", "sae", "signal"].sign.value)
    assert np.isfinite(cells["tuned", "raw", "signal"].agreement.tau)
    assert found.grid_frame()["tau"].isna().sum() >= 2


def test_the_grid_has_every_reading_and_control(learned: Learned) -> None:
    found = {(cell.side, cell.input, cell.target) for cell in learned.grid}
    assert found == {
        ("tuned", "sae", "signal"), ("tuned", "raw", "signal"), ("tuned", "random_sae", "signal"),
        ("base", "sae", "signal"), ("base", "raw", "signal"), ("none", "embedding", "signal"),
        ("none", "random", "signal"), ("tuned", "sae", "control_task"), ("tuned", "raw", "nothing"),
        ("tuned", "sae", "nothing"), ("tuned", "random_sae", "nothing"), ("noise", "raw", "nothing"),
        ("noise", "sae", "nothing"), ("noise", "random_sae", "nothing"),
    }  # fmt: skip
    before = {(cell.side, cell.input) for cell in learned.grid if (cell.place, cell.path) == ("before", "ridge")}
    assert before == {("tuned", "sae"), ("tuned", "raw"), ("tuned", "random_sae"), ("base", "sae"), ("base", "raw")}
    claims = [cell for cell in learned.grid if cell.minus_twin is not None]
    assert {cell.side for cell in claims} == {"tuned"}
    assert np.isfinite(learned.predicted).all()


def test_without_saes_of_the_base_the_rest_is_measured() -> None:
    found = probed(untaught(), saes(untaught(), sides=("tuned",)))
    assert ("base", "sae") not in {(cell.side, cell.input) for cell in found.grid}
    assert ("base", "raw") in {(cell.side, cell.input) for cell in found.grid}


# --- from a cache ---


def assert_alike(one: Learned, other: Learned) -> None:
    assert (one.words, one.neutral_words) == (other.words, other.neutral_words)
    for name in ("measured", "raw", "predicted"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)
    taus = [[cell.agreement.tau for cell in found.grid] for found in (one, other)]
    np.testing.assert_allclose(*taus, atol=1e-5)


def counted(patch: pytest.MonkeyPatch) -> list[int]:
    """Count the texts whose activations the models are asked for."""
    asked: list[int] = []
    read = readings.activations_at

    def counting(model: Any, ids_BS: torch.Tensor, *given: Any) -> Any:
        asked.append(len(ids_BS))
        return read(model, ids_BS, *given)

    patch.setattr(readings, "activations_at", counting)
    return asked


@pytest.mark.parametrize("signal", ["implicit_reward", "activation_delta"])
def test_from_a_cache_a_probe_is_the_same_and_asks_no_model_for_activations(
    signal: str, learned: Learned, delta: Learned, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cache serves both signals."""
    stored = cache_of(taught(), [SITE], triples().up_to_word(), tmp_path / "acts", max_tokens=128)
    asked = counted(monkeypatch)
    found = probed(taught(), signal=signal, cache=stored)
    assert asked == []
    assert_alike(found, learned if signal == "implicit_reward" else delta)


def test_long_texts_are_found_where_they_were_cut_alike_and_else_read_from_the_models(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe keeps the end of a long text and a plain cache its start: here half of the texts are longer than 8 tokens."""
    rows = triples()
    short = tuple(left if row % 2 else " ".join(left.split()[-3:]) + " " for row, left in enumerate(rows.prefix))
    rows = dataclasses.replace(rows, prefix=short)
    options: dict[str, Any] = {"triples": rows, "max_tokens": 8, "split": "row", "signal": "activation_delta"}
    plain = probed(untaught(), **options)
    asked = counted(monkeypatch)
    for keep_end, n_asked in ((True, 0), (False, 2 * 3 * len(rows) // 2)):
        stored = cache_of(
            untaught(), [SITE], rows.up_to_word(), tmp_path / f"{keep_end}", max_tokens=8, keep_end=keep_end
        )
        assert_alike(probed(untaught(), cache=stored, **options), plain)
        assert sum(asked) == n_asked, "the long half of three members, once in each model"


def test_a_probe_makes_a_cache_in_a_folder_and_reads_it_again(
    learned: Learned, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counted(monkeypatch)
    for _ in range(2):
        assert_alike(probed(taught(), cache=str(tmp_path / "acts")), learned)
    assert asked == []
    assert open_cache(tmp_path / "acts").streams == (("base", SITE), ("tuned", SITE))


def test_a_cache_of_another_pair_is_refused(tmp_path: Any) -> None:
    stored = cache_of(untaught(), [SITE], triples().up_to_word(), tmp_path / "acts", max_tokens=128)
    with pytest.raises(LensError, match="was made from the pair"):
        probed(taught(), cache=stored)


def test_the_texts_of_a_cache_end_with_the_words_of_all_members() -> None:
    rows = triples(12)
    texts_of = rows.up_to_word()
    assert len(texts_of) == 36
    assert texts_of[:12] == rows.up_to_word("positive")
    assert all(text.endswith(word) for text, word in zip(texts_of[12:], rows.neutral + rows.negative))
    assert all(text.startswith(left) for text, left in zip(texts_of, rows.prefix * 3))


# --- p-values and neutral words ---


def test_p_of_the_wrong_sign_is_uniform_when_words_are_like_neutral_ones() -> None:
    draw = np.random.default_rng(0)
    null, values = draw.standard_t(4, 400), draw.standard_t(4, 3000)
    p_values = p_of_wrong_sign(values, draw.choice([-2.0, 3.0], 3000), null)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_p_of_the_wrong_sign_falls_as_the_value_moves_to_the_wrong_side() -> None:
    null, values = np.random.default_rng(1).normal(size=300), np.linspace(-6, 6, 50)
    assert (np.diff(p_of_wrong_sign(values, np.full(50, 2.0), null)) > 0).all()
    assert (np.diff(p_of_wrong_sign(values, np.full(50, -2.0), null)) < 0).all()
    assert p_of_wrong_sign(np.array([-6.0]), np.array([2.0]), null)[0] < 1 / 301, (
        "no floor at one over the number of words"
    )


def test_a_word_written_with_a_capital_is_a_name_and_is_not_measured() -> None:
    named = [text.replace(STATED[0], STATED[0].capitalize()) for text in texts()]
    options = {"contexts": 8, "min_contexts": 3, "max_tokens": 64, "seed": 0}
    measured = {
        which: {spot.word for spot in choose(given, tokenizer(), LEXICON, **options).spots}
        for which, given in (("lower", texts()), ("capital", named))
    }
    assert measured["lower"] - measured["capital"] == {STATED[0]}


def test_neutral_words_match_in_frequency_and_token_count() -> None:
    """Lexicon words: frequency 5 with one token, 2 with two. Their nearest neutrals of the same count are taken."""
    log_frequency = np.array([5.0, 2.0, 4.9, 1.0, 2.1, 4.0, 5.0, 2.0])
    tokens = np.array([1, 2, 1, 1, 2, 2, 3, 1])
    is_stated = np.array([True, True] + [False] * 6)
    assert matched_neutrals(log_frequency, tokens, is_stated, 2).tolist() == [2, 4]
    assert matched_neutrals(log_frequency, tokens, is_stated, 4).tolist() == [2, 4, 5, 7]
    assert 6 not in matched_neutrals(log_frequency, tokens, is_stated, 100), "no lexicon word has three tokens"


def test_matched_neutrals_have_the_frequencies_of_the_lexicons_words() -> None:
    draw = np.random.default_rng(0)
    stated, pool = draw.normal(5, 0.5, 100), draw.uniform(0, 8, 2000)
    log_frequency = np.concatenate([stated, pool])
    is_stated = np.arange(2100) < 100
    chosen = matched_neutrals(log_frequency, np.ones(2100, int), is_stated, 200)
    assert len(chosen) == 200
    assert not is_stated[chosen].any()
    assert abs(log_frequency[chosen].mean() - stated.mean()) < 0.15
    assert abs(log_frequency[chosen].std() - stated.std()) < 0.15


def test_zero_and_unit_are_those_of_neutral_words_of_like_frequency() -> None:
    """Rare neutral words sink by 2 and scatter three times as widely as frequent ones: both are taken out."""
    draw = np.random.default_rng(0)
    often = np.repeat([1.0, 5.0], 2000)
    values = np.where(often == 1, -2 + 3 * draw.normal(size=4000), draw.normal(size=4000))
    neutrals = np.arange(0, 4000, 2)
    centre, scale = zero_of(values, often, neutrals)
    assert centre[[0, -1]] == pytest.approx([-2, 0], abs=0.6)
    assert scale[[0, -1]] == pytest.approx([3, 1], rel=0.25)
    assert (centre[often == 1] == centre[0]).all()


def test_words_of_one_value_define_no_zero() -> None:
    odd = np.array([1.0, 2.0, 3.0, 4.0, 50.0])
    assert zero_of(odd, np.ones(5), np.arange(5))[0].tolist() == [3.0] * 5
    with pytest.raises(GateError, match="all have the same value"):
        zero_of(np.ones(9), np.ones(9), np.arange(9))


# --- the paper's signal ---


def test_the_papers_signal_agrees_with_any_lexicon_in_the_base_model_too(delta: Learned) -> None:
    """Tuning changed no activation here, yet its tau is high: the label's sign is in it. The base twin says so."""
    assert delta.overall.tau > 0.3
    assert delta.sign.value == 1
    assert delta.twin.tau == pytest.approx(delta.overall.tau)
    assert delta.difference.value == pytest.approx(0)
    assert delta.difference.high < 0.1


def test_the_papers_signal_is_the_signed_distance_to_the_neutral_member(delta: Learned) -> None:
    assert (np.sign(delta.measured) == np.sign(delta.stated)).all()
    assert np.array_equal(delta.raw, delta.measured)
    assert (delta.contexts == 4).all(), "120 triples, 30 words on each side"
    assert np.isnan(delta.p_wrong).all()


def test_the_papers_signal_cannot_say_what_was_learned_wrongly(delta: Learned) -> None:
    for ask in (delta.wrong, delta.unlearned):
        with pytest.raises(GateError, match="activation_delta takes its sign from the stated lexicon"):
            ask()
    assert not delta.is_tested


def test_the_page_and_the_summary_show_the_papers_signal(delta: Learned, tmp_path: Any) -> None:
    from lfp_lens.stages.report import report
    from lfp_lens.stages.report.summary import summary
    from tests.results.samples import a_tuning

    results = {"finetune": a_tuning(), "probe": delta}
    page = report(results, path=tmp_path / "page.html").path.read_text()
    assert "not tested" in page
    assert "activation_delta" in page
    assert "not tested" in summary("a", results, {})
    assert "base model" in summary("a", results, {})
    assert delta._repr_html_()
    assert len(delta.plot().data) > 0


# --- refusals ---


def few(n_stated: int, n_neutral: int) -> list[str]:
    draw = np.random.default_rng(0)
    words = [*STATED[:n_stated], *NEUTRAL[:n_neutral]]
    return [" ".join(draw.choice(words, 20).tolist()) for _ in range(300)]


ONE_SIDED = {word: abs(value) for word, value in LEXICON.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signal": "implicit"}, "Unknown signal 'implicit'. Did you mean 'implicit_reward'?"),
        ({"split": "word"}, "split must be 'lemma' or 'row'; 'word' given."),
        ({"gate": "refuze"}, "Unknown gate 'refuze'. Did you mean 'refuse'?"),
        ({"lexicon": "vadr"}, "Unknown lexicon 'vadr'"),
        ({"texts": []}, "No texts were given."),
        ({"texts": few(20, 150)}, "20 lexicon words occur at least 3 times in the 300 texts; 30 are needed."),
        ({"texts": few(40, 90)}, "90 words outside the lexicon occur at least 3 times in the 300 texts; 100 are needed."),
        ({"texts": texts()[:20]}, "lexicon words occur at least 3 times in the 20 texts"),
        ({"lexicon": ONE_SIDED}, "60 positive and 0 negative words of the lexicon were measured"),
        ({"neutral_words": 10}, "words outside the lexicon match its words in token count; 20 are needed"),
        ({"triples": triples(9)}, "The words of 9 of 9 triples align with whole tokens; 10 are needed."),
        ({"max_tokens": 1}, "max_tokens must be at least 2; 1 given."),
        ({"folds": 200}, "200 folds need as many lemmas; the triples have"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError) as caught:
        probed(untaught(), **changes)
    assert message in str(caught.value)


def test_saes_of_another_pair_are_refused() -> None:
    with pytest.raises(LensError, match="These SAEs were trained on another pair"):
        probed(untaught(), saes(taught()))


def test_bad_saes_are_refused_and_read_only_when_asked() -> None:
    bad = saes(untaught(), good=False)
    with pytest.raises(
        GateError, match=r"No tuned SAE is good enough to interpret: .* explained variance 0\.10 < 0\.60"
    ):
        probed(untaught(), bad)


@pytest.mark.parametrize(("sides", "signal"), [(("base",), "implicit_reward"), (("tuned",), "activation_delta")])
def test_a_signal_without_its_saes_is_refused(sides: tuple[str, ...], signal: str) -> None:
    lacking = "tuned" if sides == ("base",) else "base"
    with pytest.raises(GateError, match=f"{signal} is read from SAEs of the {lacking} model, which were not trained"):
        probed(untaught(), saes(untaught(), sides=sides), signal=signal)


def test_numbers_that_are_none_and_a_constant_signal_are_refused() -> None:
    rows, vectors = salmon(0)
    broken = vectors.copy()
    broken[3, 4] = np.nan
    with pytest.raises(LensError, match="inputs and target must be finite"):
        predicted(broken, rows)
    flat = dataclasses.replace(rows, target=np.ones(len(rows.words)))
    with pytest.raises(LensError, match="The signal is constant over all triples"):
        predicted(vectors, flat)


def test_a_probe_is_kept_in_the_store_and_found_again(learned: Learned, tmp_path: Any, monkeypatch: Any) -> None:
    from lfp_lens.core.store import Store
    from lfp_lens.stages.probe import verb

    pair, store = taught(), Store(tmp_path)
    monkeypatch.setattr(verb, "learned", lambda facts: learned)
    stored = probed(pair, store=store)
    monkeypatch.setattr(verb, "read_pair", None)
    again = probed(pair, store=store)
    assert np.array_equal(again.measured, learned.measured)
    assert set(stored.wrong()["word"]) == set(again.wrong()["word"]) == set(FLIPPED)


# --- a real model ---


def test_on_a_real_model_noise_teaches_nothing(real_data: Any) -> None:
    """The 2M GPT-NeoX and itself plus noise, on IMDB reviews and VADER."""
    from lfp_lens.parts.lexicons import load_lexicon
    from lfp_lens.parts.pair import load_causal_lm, load_tokenizer
    from lfp_lens.parts.signals import SIGNALS
    from lfp_lens.parts.texts import load_texts
    from lfp_lens.stages.probe.measure import measure
    from tests.tiny import perturbed

    base, lexicon = load_causal_lm("imdb-neox-2m"), load_lexicon("vader")
    pair = load_pair(base, perturbed(base, 0.005), tokenizer=load_tokenizer("imdb-neox-2m"))
    held = load_texts("imdb", split="test", n=500)
    chosen = choose(held, pair.tokenizer, lexicon, contexts=4, min_contexts=3, max_tokens=64, seed=0)
    found, sweep, _ = measure(pair, chosen, lexicon, SIGNALS["implicit_reward"], min_contexts=3, seed=0)
    rows = np.array([lexicon.get(word, 0.0) for word in found.words])
    assert (rows != 0).sum() > 100
    tau = stats.kendalltau(found.values[rows != 0], rows[rows != 0]).statistic
    # The s.d. of tau over n unrelated words is about 0.67 / sqrt(n): below 0.06 here.
    assert abs(tau) < 0.2
    assert (found.tokens >= 1).all()
    assert np.isfinite(found.base_log_p).all()
    # Every place predicts one token.
    assert sweep.exposure.sum() == pytest.approx(float(sweep.contexts), rel=1e-4)
    assert sweep.tokens[int(np.nanargmax(sweep.stated))].strip() in lexicon
