"""Words alone, without SAEs and triples; other signals; what batches, company and number format may not change."""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.store import Store
from lfp_lens.parts import readings, word_passes
from lfp_lens.parts.activations import batches, encode
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.parts.signals import SIGNALS, Seen, Signal
from lfp_lens.results import Learned
from lfp_lens.stages.probe import probe
from lfp_lens.stages.probe.measure import measure
from lfp_lens.stages.probe.words import Chosen, choose
from tests.stages.test_probe import (
    FLIPPED,
    LEXICON,
    NEUTRAL,
    STATED,
    WORDS,
    base_model,
    noise,
    probed,
    saes,
    taught,
    texts,
    tokenizer,
    triples,
    untaught,
)  # fmt: skip


def log_p_change(seen: Seen) -> torch.Tensor:
    """The plain change of log p, not centred by the context."""
    return (seen.other_NV - seen.base_NV).gather(-1, seen.ids_N[:, None])[:, 0]


def alone(pair: Pair, **options: Any) -> Learned:
    return probe(pair, texts=options.pop("texts", texts()), lexicon=LEXICON, **options)


@pytest.fixture(scope="module")
def learned() -> Learned:
    return alone(taught())


# --- without dictionaries ---


def test_words_are_measured_without_any_dictionary(learned: Learned) -> None:
    full = probed(taught())
    assert learned.words == full.words and learned.neutral_words == full.neutral_words
    np.testing.assert_allclose(learned.measured, full.measured, atol=1e-5)
    assert set(learned.wrong()["word"]) == set(FLIPPED)


def test_what_needs_a_dictionary_is_empty_and_stops_nothing(learned: Learned, tmp_path: Any) -> None:
    assert learned.grid == () and learned.n_triples == 0
    for name in ("predicted", "predicted_low", "predicted_high", "rescaled"):
        assert np.isnan(getattr(learned, name)).all()
    assert learned.grid_frame().empty
    assert learned.plot_frequency_error().layout.title.text
    assert learned._repr_html_() and learned.dashboard(tmp_path / "words.html").exists()


def test_every_word_is_told_its_exposure_and_the_sweep_holds_every_token(learned: Learned) -> None:
    sweep = learned.sweep
    assert sweep is not None
    rows = [sweep.tokens.index(word) for word in learned.words]
    np.testing.assert_allclose(learned.exposure, sweep.exposure[rows])
    assert float(sweep.exposure.sum()) == pytest.approx(float(sweep.contexts), rel=1e-4)
    assert len(sweep.tokens) == len(sweep.value) == len(tokenizer())
    assert sweep.stated[rows].tolist() == learned.stated.tolist()
    assert np.isfinite(sweep.stated).sum() == len(STATED)
    assert not set(sweep.surprising(50)["token"]) & set(STATED)


def test_a_token_of_the_sweep_moves_as_the_word_does(learned: Learned) -> None:
    """Every context counts for every token there, so that it is less noisy than the word's own eight contexts."""
    sweep = learned.sweep
    assert sweep is not None
    rows = np.array([sweep.tokens.index(word) for word in learned.words])
    assert np.corrcoef(sweep.value[rows], learned.raw)[0, 1] > 0.98
    order = np.argsort(-np.abs(sweep.value))
    assert {sweep.tokens[row] for row in order[:20]} <= set(STATED)
    wrong = [row for row in order[:40] if sweep.tokens[row] in FLIPPED]
    assert all(np.sign(sweep.value[row]) == -np.sign(LEXICON[sweep.tokens[row]]) for row in wrong)


# --- other signals ---


def test_a_function_is_a_signal_and_its_values_are_centred_like_any_other(learned: Learned) -> None:
    found = alone(taught(), signal=log_p_change)
    assert found.signal == "log_p_change"
    np.testing.assert_allclose(np.median(found.neutral), 0, atol=0.15)
    assert set(found.wrong()["word"]) == set(FLIPPED)
    assert np.abs(found.raw - learned.raw).max() > 0.3, "it is not centred by its context"
    assert np.corrcoef(found.raw, learned.raw)[0, 1] > 0.98


def test_a_function_is_kept_in_the_store_by_what_it_computes(tmp_path: Any) -> None:
    store = Store(tmp_path)
    for signal in (log_p_change, log_p_change, Signal(log_p_change, place="after"), "implicit_reward"):
        alone(taught(), signal=signal, store=store)
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("probe-")]) == 3


def test_valence_shift_of_a_model_that_came_to_like_everything_good_is_the_same_after_every_word() -> None:
    """Good words gained wherever one stands: what is expected next rises after all words, and no word is told by it."""
    found = alone(taught(), signal="valence_shift")
    assert found.signal == "valence_shift"
    assert found.raw.min() > 0
    assert abs(found.overall.tau) < 0.25
    assert found.wrong().empty


def test_valence_shift_finds_after_which_words_the_model_expects_otherwise() -> None:
    """The tuned model reads each word's value off its embedding, and expects good words after good ones."""
    base = base_model()
    with torch.no_grad():
        for word, value in LEXICON.items():
            base.get_input_embeddings().weight[tokenizer().get_vocab()[word], 3] += value
    import copy

    tuned = copy.deepcopy(base)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for word, value in LEXICON.items():
            tuned.get_output_embeddings().weight[tokenizer().get_vocab()[word], 3] += 0.3 * value
        tuned.get_output_embeddings().weight += 0.02 * torch.randn(len(tokenizer()), 16, generator=draw)
    found = alone(load_pair(base, tuned, tokenizer=tokenizer()), signal="valence_shift")
    assert found.overall.tau > 0.5
    assert found.difference.low > 0.2
    assert found.wrong().empty


def test_a_signal_that_is_constant_defines_no_zero_and_one_that_is_no_number_is_refused() -> None:
    with pytest.raises(GateError, match="all have the same value"):
        alone(taught(), signal=lambda seen: torch.ones(len(seen.ids_N)))
    with pytest.raises(LensError, match=r"The signal is no finite number at \d+ of the \d+ occurrences"):
        alone(taught(), signal=lambda seen: torch.where(seen.ids_N == 9, torch.nan, 1.0))


# --- what may not change a number ---


@cache
def few() -> tuple[str, ...]:
    return tuple(texts()[:200])


def numbers(found: Learned) -> dict[str, np.ndarray]:
    """Every stored array of a result, its grid and its sweep."""
    held = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    arrays = {name: part for name, part in held.items() if isinstance(part, np.ndarray)}
    taus = [[cell.agreement.tau, cell.sign.value] for cell in found.grid]
    whole = [found.overall.tau, found.twin.tau, found.difference.value, found.sign.value]
    assert found.sweep is not None
    return arrays | {
        "grid": np.array(taus), "whole": np.array(whole), "sweep": found.sweep.value, "sweep error": found.sweep.error,
        "sweep exposure": found.sweep.exposure,
    }  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> dict[str, np.ndarray]:
    return numbers(probed(taught(), texts=list(few()), triples=triples(60)))


@pytest.mark.parametrize("tokens", [30, 500])
def test_the_size_of_batches_changes_no_number(
    tokens: int, plain: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (word_passes, readings):
        monkeypatch.setattr(module, "batches", partial(batches, max_batch_tokens=tokens))
    monkeypatch.setattr(word_passes, "CHUNK_VALUES", 5000)
    found = numbers(probed(taught(), texts=list(few()), triples=triples(60)))
    assert set(found) == set(plain)
    for name, values in found.items():
        # fp32 sums in another order, in units of a neutral spread; a rank can change only at a tie.
        np.testing.assert_allclose(values, plain[name], atol=2e-3, rtol=1e-3, err_msg=name)


def measured(pair: Pair, change: Callable[[Chosen], Chosen] = lambda chosen: chosen) -> Any:
    chosen = choose(few(), tokenizer(), LEXICON, contexts=100, min_contexts=3, max_tokens=64, seed=0)
    return measure(pair, change(chosen), LEXICON, SIGNALS["implicit_reward"], min_contexts=3, seed=0)[:2]


def turned(chosen: Chosen, order: np.ndarray) -> Chosen:
    """The same words of the same texts, the texts in another order."""
    by_text = [[spot for spot in chosen.spots if spot.text == text] for text in range(len(chosen.texts))]
    spots = [dataclasses.replace(spot, text=at) for at, row in enumerate(order) for spot in by_text[row]]
    return dataclasses.replace(
        chosen, texts=[chosen.texts[row] for row in order], encoded=[chosen.encoded[row] for row in order], spots=spots,
        spans=[chosen.spans[row] for row in order],
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_texts_changes_no_word(seed: int) -> None:
    (one, sweep), (other, swept) = (
        measured(taught(), lambda chosen, order=order: turned(chosen, order))
        for order in (np.arange(200), np.random.default_rng(seed).permutation(200))
    )
    assert one.words == other.words
    for name in ("values", "low", "high", "contexts", "base_log_p", "twin", "exposure"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-4, err_msg=name)
    np.testing.assert_allclose(sweep.value, swept.value, atol=1e-4)


def test_text_after_a_word_and_long_company_change_no_word() -> None:
    """What follows the last measured word is cut, and a text three times as long brings padding to all others."""
    chosen = choose(few(), tokenizer(), LEXICON, contexts=100, min_contexts=3, max_tokens=64, seed=0)
    longer = [f"{text} {' '.join(NEUTRAL[:12])}." if row % 5 == 0 else text for row, text in enumerate(few())]
    grown = dataclasses.replace(chosen, texts=longer, encoded=encode(tokenizer(), longer, max_tokens=64))
    one, other = (
        measure(taught(), given, LEXICON, SIGNALS["implicit_reward"], min_contexts=3, seed=0)[0]
        for given in (chosen, grown)
    )
    np.testing.assert_allclose(one.values, other.values, atol=1e-4)
    np.testing.assert_allclose(one.base_log_p, other.base_log_p, atol=1e-4)


def test_half_precision_moves_values_by_less_than_it_rounds() -> None:
    """bfloat16 keeps 8 bits: logits of order 10 round by 0.03, and a word's value is the mean of eight contexts."""
    change = {word: 1.5 * LEXICON.get(word, 0.0) + nats for word, nats in noise(1).items()}
    base, tuned = base_model(), base_model()
    with torch.no_grad():
        for word, nats in change.items():
            tuned.get_output_embeddings().weight[tokenizer().get_vocab()[word], 0] += nats
    exact = load_pair(base, tuned, tokenizer=tokenizer())
    found = {"float32": alone(exact), "bfloat16": alone(halved(exact))}
    one, other = found["float32"], found["bfloat16"]
    assert one.words == other.words and one.neutral_words == other.neutral_words
    assert np.abs(one.raw - other.raw).max() < 0.25
    assert np.corrcoef(one.raw, other.raw)[0, 1] > 0.999
    assert one.overall.tau == pytest.approx(other.overall.tau, abs=0.03)


def halved(pair: Pair) -> Pair:
    import copy

    return load_pair(
        *(copy.deepcopy(pair.hf(side)).to(torch.bfloat16) for side in ("base", "tuned")), tokenizer=tokenizer()
    )


# --- words that do not align ---


def glued() -> Any:
    """A tokenizer that cuts at white space alone, so that a word with a star is no token of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(dict(tokenizer().get_vocab()), unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<end>", eos_token="<end>", pad_token="<end>")


def test_a_tokenizer_that_aligns_no_word_of_the_lexicon_is_refused_with_the_counts() -> None:
    base = base_model()
    tuned = load_pair(base, taught().tuned_hf, tokenizer=glued())
    for of, n in ((STATED, "[0-9]{3}"), (WORDS, "0")):
        starred = {word: f"{word}*" for word in of}
        given = [" ".join(starred.get(word, word) for word in text[:-1].split()) for text in texts()]
        for dictionaries in ({}, {"saes": saes(tuned), "triples": triples()}):
            with pytest.raises(GateError, match=f"0 lexicon words and {n} others align with whole tokens"):
                alone(tuned, texts=given, folds=3, **dictionaries)


def test_words_that_align_nowhere_in_the_triples_are_refused() -> None:
    tuned = load_pair(base_model(), taught().tuned_hf, tokenizer=glued())
    rows = triples()
    stuck = dataclasses.replace(rows, prefix=tuple(f"{left.strip()}*" for left in rows.prefix))
    with pytest.raises(GateError, match="The words of 0 of 120 triples align with whole tokens; 10 are needed"):
        probed(tuned, triples=stuck)


# --- what else cannot be measured ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ["axo bexo " * 12] * 20}, "0 lexicon words occur at least 3 times in the 20 texts; 30 are needed"),
        ({"lexicon": {word: -abs(value) for word, value in LEXICON.items()}}, "0 positive and 60 negative words"),
        ({"texts": None}, "give held-out texts"),
        ({"triples": triples()}, "give both saes and triples, or neither"),
        ({"signal": "activation_delta"}, "is a distance between SAE features: give saes and triples"),
        ({"lexicon": {"Good": 1.0}}, "'Good' must be lower-case"),
        ({"lexicon": {"good": float("nan")}}, "'good'"),
        ({"lexicon": {}}, "empty"),
        ({"texts": "one text"}, "texts must be a list of strings"),
        ({"contexts": 2}, "min_contexts must lie between 1 and contexts=2; 3 given"),
        ({"min_contexts": 0}, "min_contexts must lie between 1 and contexts=8; 0 given"),
    ],
)
def test_what_words_alone_cannot_say_is_refused(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"texts": texts(), "lexicon": LEXICON} | changes
    with pytest.raises(LensError) as caught:
        probe(untaught(), **given)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("bamuxo,2\nbanaxo,-2\nbamuxo,3\n", "line 3: 'bamuxo' is there already (line 1)"),
        ("bamuxo,2\nbanaxo,much\n", "line 2: the value of 'banaxo' is 'much'"),
    ],
)
def test_a_bad_lexicon_file_is_refused_with_its_line(written: str, message: str, tmp_path: Any) -> None:
    path = tmp_path / "words.csv"
    path.write_text(written, encoding="utf-8")
    with pytest.raises(LensError) as caught:
        probe(untaught(), texts=texts(), lexicon=str(path))
    assert message in str(caught.value)


def test_triples_of_a_single_lemma_are_fewer_than_the_folds() -> None:
    rows = triples()
    single = dataclasses.replace(rows, positive=(STATED[0],) * 120, negative=(STATED[1],) * 120)
    with pytest.raises(LensError, match="3 folds need as many lemmas; the triples have 2"):
        probed(untaught(), triples=single)


def test_features_that_are_no_numbers_are_refused() -> None:
    broken = saes(untaught())
    for record in broken.saes:
        record.weights.tensors["b_enc"][3] = np.nan
    with pytest.raises(LensError, match="finite"):
        probed(untaught(), broken)


def test_words_are_counted_once_whatever_their_case() -> None:
    """Only lower-case occurrences are measured; capitals count towards how often a word occurs."""
    loud = [text.replace(WORDS[5], WORDS[5].upper()) if row % 2 else text for row, text in enumerate(texts())]
    options = {"contexts": 8, "min_contexts": 3, "max_tokens": 64, "seed": 0}
    one, other = (choose(given, tokenizer(), LEXICON, **options) for given in (texts(), loud))
    assert one.counts[WORDS[5]] == other.counts[WORDS[5]]
