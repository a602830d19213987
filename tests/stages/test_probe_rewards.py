"""Words on a reward model: a planted head is found, one that knows no words is not, and nothing else is taken."""

from collections import Counter
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store
from lfp_lens.parts.activations import batches, encode, tokens_of_span
from lfp_lens.parts.heads import with_head
from lfp_lens.parts.reward_models import RewardModel, load_reward_model
from lfp_lens.parts.words import find_words
from lfp_lens.results import Learned
from lfp_lens.stages.probe import probe, rewards
from lfp_lens.stages.probe.measure import Measured
from lfp_lens.stages.probe.rewards import measure_rewards
from lfp_lens.stages.probe.words import Chosen
from tests.stages.test_probe import FLIPPED, LEXICON, WIDTH, base_model, saes, texts, tokenizer, triples, untaught
from tests.tiny import tiny_model, tiny_texts, tiny_tokenizer

TEXTS = [*tiny_texts(5), "1, 2, 3.", *tiny_texts(6, seed=1), "a marvellous film, sadly unwatchable and marvellous."]


def judge(model: Any, weight: torch.Tensor, words: Any, **options: Any) -> RewardModel:
    """A reward model in memory with this head."""
    made = with_head(model)
    made.score = torch.nn.Linear(len(weight), 1, bias=False)
    made.num_labels = made.config.num_labels = 1
    with torch.no_grad():
        made.score.weight.copy_(weight[None])
    return load_reward_model(made, tokenizer=words, **options)


@cache
def tiny(architecture: str = "neox", begins: bool = False) -> RewardModel:
    weight = torch.randn(16, generator=torch.Generator().manual_seed(1))
    return judge(tiny_model(architecture), weight, tiny_tokenizer(), begins=begins)


@cache
def taught() -> RewardModel:
    """The head reads one coordinate of the states, which the embedding of each rated word moves by three times its value."""
    model = base_model()
    with torch.no_grad():
        for word, value in LEXICON.items():
            row = tokenizer().get_vocab()[word]
            model.get_input_embeddings().weight[row, 3] += 3 * (-1 if word in FLIPPED else 1) * value
    return judge(model, torch.eye(WIDTH)[3], tokenizer())


def chosen() -> Chosen:
    """Every word of the texts, wherever it stands."""
    spots = find_words(TEXTS)
    spans: list[list[tuple[int, int]]] = [[] for _ in TEXTS]
    for spot in spots:
        spans[spot.text].append((spot.start, spot.end))
    encoded = encode(tiny_tokenizer(), TEXTS, max_tokens=64)
    return Chosen(TEXTS, encoded, spots, spans, Counter(spot.word for spot in spots))


def measured(model: RewardModel) -> Measured:
    return measure_rewards(model, chosen(), min_contexts=1, seed=0)


def at_end(model: RewardModel, ids: list[int]) -> float:
    with torch.no_grad():
        return float(model.hf(input_ids=torch.tensor([ids])).logits[0, 0])


def slow(model: RewardModel, score: Any) -> dict[str, float]:
    """The definition, one occurrence at a time, no batch and no padding."""
    found: dict[str, list[float]] = {}
    for spot in find_words(TEXTS):
        text = model.encode([TEXTS[spot.text]])[0]
        at = tokens_of_span(text, (spot.start, spot.end))
        if at and at[0] > 0:
            found.setdefault(spot.word, []).append(score(text.ids[: at[-1] + 1]) - score(text.ids[: at[0]]))
    return {word: float(np.mean(values)) for word, values in found.items()}


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("architecture", ["neox", "llama", "gpt2"])
def test_a_words_value_is_the_reward_with_it_less_the_reward_without(architecture: str, begins: bool) -> None:
    model = tiny(architecture, begins)
    found, wanted = measured(model), slow(model, lambda ids: at_end(model, ids))
    assert dict(zip(found.words, found.values)) == pytest.approx(wanted, abs=2e-5)
    assert found.tokens.max() > 3 and np.ptp(found.values) > 0.5
    words = [len(row) for row in chosen().spans]
    assert found.contexts.sum() == sum(words) - (0 if begins else np.count_nonzero(words)), (
        "without beginning-of-text the first word of a text has nothing before it"
    )


def test_a_word_is_read_as_the_reward_model_reads_the_text_that_ends_with_it() -> None:
    model, text = tiny(), TEXTS[-1]
    spot = next(spot for spot in find_words([text]) if spot.word == "unwatchable")
    # Its first piece does not hold the space before it.
    with_it, without = model([text[: spot.end], text[: spot.start]])
    found = measured(model)
    assert found.values[found.words.index("unwatchable")] == pytest.approx(with_it - without, abs=2e-5)


def test_the_twin_reads_the_same_states_with_a_random_head_of_the_same_length() -> None:
    model, found = tiny(), measured(tiny())
    head = rewards._random_head(model.hf.score, 0)
    assert float(head.weight.norm().detach()) == pytest.approx(float(model.hf.score.weight.norm().detach()), rel=1e-5)
    other = judge(tiny_model(), head.weight.detach()[0], tiny_tokenizer(), begins=False)
    np.testing.assert_allclose(found.twin, measured(other).values, atol=2e-5)
    again = measure_rewards(model, chosen(), min_contexts=1, seed=1)
    assert np.abs(again.twin - found.twin).max() > 0.1, "another seed is another direction"


def test_batches_of_any_size_change_nothing_and_rare_words_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(tiny())
    monkeypatch.setattr(rewards, "batches", partial(batches, max_batch_tokens=1))
    np.testing.assert_allclose(measured(tiny()).values, found.values, atol=2e-5)
    twice = measure_rewards(tiny(), chosen(), min_contexts=2, seed=0)
    assert set(twice.words) == {word for word, n in zip(found.words, found.contexts) if n > 1}


# --- through the verb ---


def probed(model: Any, **options: Any) -> Learned:
    return probe(model, texts=texts(), signal="reward_head", lexicon=LEXICON, contexts=25, **options)


@pytest.fixture(scope="module")
def learned() -> Learned:
    return probed(taught())


def test_a_planted_head_is_found_with_the_words_that_are_planted_wrong(learned: Learned) -> None:
    given = {word: -value if word in FLIPPED else value for word, value in LEXICON.items()}
    assert learned.agreement(given).tau > 0.7
    # The states vary most along what the embeddings were moved by, so that a random head reads some of it too.
    assert learned.difference.low > 0.1
    found = set(learned.wrong()["word"])
    assert found <= set(FLIPPED)
    assert len(found) >= 3, "one of the four is rated -1 only"
    assert learned.signal == "reward_head"


def test_a_head_that_reads_something_else_has_learned_nothing() -> None:
    found = probed(judge(base_model(), torch.eye(WIDTH)[3], tokenizer()))
    # The s.d. of tau over 60 unrelated words is 0.088.
    assert abs(found.overall.tau) < 0.25
    assert found.wrong().empty
    assert found.difference.low < 0


def test_what_a_reward_model_has_not_is_left_out_and_the_rest_shows_itself(learned: Learned, tmp_path: Any) -> None:
    assert learned.grid == () and learned.sweep is None and learned.tunings is None
    assert set(learned.baselines) == {"frequency"}
    assert np.isnan(learned.predicted).all() and np.isnan(learned.exposure).all()
    assert learned.grid_frame().empty
    with pytest.raises(LensError, match="reward_head was measured without exposure"):
        learned.by("exposure")
    assert "reward_head" in learned._repr_html_()
    assert learned.plot().data and learned.plot_neutral().data
    assert learned.dashboard(tmp_path / "words.html", texts()[:2]).stat().st_size > 10_000


def test_it_is_kept_in_the_store_and_found_again(
    learned: Learned, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lfp_lens.stages.probe import verb

    first = probed(taught(), store=Store(tmp_path))
    monkeypatch.setattr(verb, "measure_rewards", None)
    again = probed(taught(), store=Store(tmp_path))
    assert np.array_equal(first.measured, again.measured)
    np.testing.assert_allclose(first.measured, learned.measured, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signal": "implicit_reward"}, "a reward model has no other; signal='implicit_reward' and a RewardModel"),
        ({"texts": None}, "A reward model is measured in texts alone: give texts"),
        ({"replicates": ["a"]}, "replicates not taken"),
        ({"shuffled": "a"}, "shuffled not taken"),
        ({"cache": "folder"}, "cache not taken"),
        ({"triples": triples(12), "saes": saes(untaught())}, "saes, triples not taken"),
        ({"texts": texts()[:20]}, "lexicon words occur at least 3 times in the 20 texts"),
        ({"lexicon": dict.fromkeys(LEXICON, 1.0)}, "60 positive and 0 negative words"),
    ],
)
def test_what_a_reward_model_cannot_be_asked_is_refused(changes: dict[str, Any], message: str) -> None:
    given = {"texts": texts(), "signal": "reward_head", "lexicon": LEXICON} | changes
    with pytest.raises(LensError) as caught:
        probe(taught(), given.pop("saes", None), given.pop("triples", None), given.pop("texts"), **given)
    assert message in str(caught.value)


def test_a_pair_has_no_reward_head() -> None:
    with pytest.raises(LensError, match=r"is read from a reward model .* and a Pair were given"):
        probe(untaught(), texts=texts(), signal="reward_head", lexicon=LEXICON)
