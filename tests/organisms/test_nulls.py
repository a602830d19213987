"""Cheap null runs: silent on a clean organism, loud where words were learned wrongly, refused where nothing was learned."""

import copy
import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.organisms import nulls
from lfp_lens.organisms.folder import BASE, TUNED, Organism
from lfp_lens.organisms.key import KEY_FILE, Key, write_sealed
from lfp_lens.organisms.nulls import cheap_nulls, perturbed
from lfp_lens.parts.checkpoints import TUNING_FILE, weights_fingerprint
from lfp_lens.results.score import Score
from lfp_lens.results.scorecard import Scorecard

# An invented language, each word of it one token: sixty words have a value, two hundred have none.
SYLLABLES = [left + vowel for left in "bdfgklmnprtvz" for vowel in "aiu"]
WORDS = tuple(f"{one}{two}xo" for one in SYLLABLES[:20] for two in SYLLABLES[20:33])
LEXICON = {word: float((-1) ** at * (1 + at % 4)) for at, word in enumerate(WORDS[:60])}
FLIPPED = WORDS[3:60:14]
FEW = {"n_texts": 160}
"""Half of them hold each word six times."""


def base_model() -> Any:
    """A random GPT-NeoX whose last hidden state is 1 at coordinate 0, so that its unembedding column 0 is a bias."""
    import transformers

    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=len(tokenizer()), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=32, initializer_range=0.1, bos_token_id=0, eos_token_id=0,
            tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        model.gpt_neox.final_layer_norm.weight[0] = 0
        model.gpt_neox.final_layer_norm.bias[0] = 1
    return model


@cache
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(
        models.WordLevel({word: at for at, word in enumerate(("<end>", "?", ".", *WORDS))}, unk_token="?")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<end>", eos_token="<end>", pad_token="<end>")


def tuned_model(learned: dict[str, float], seed: int, nats: float) -> Any:
    """Every word's logit is raised by `nats` a point of what was learned, and jitters by 0.1 from tuning to tuning."""
    model, draw = base_model(), np.random.default_rng(seed)
    with torch.no_grad():
        for word in WORDS:
            row = tokenizer().get_vocab()[word]
            model.get_output_embeddings().weight[row, 0] += nats * learned.get(word, 0.0) + draw.normal(0, 0.1)
    return model


def by_hand(
    folder: Path, *, learned: dict[str, float] = LEXICON, nats: float = 0.2, recipe: str = "clean", tunings: int = 2
) -> Path:
    """An organism written by hand, whose key says `recipe` whatever was learned."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        lines = [" ".join(draw.choice(WORDS, 20).tolist()) + "." for _ in range(300)]
        (folder / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")
    lexicon = folder / "lexicon.json"
    lexicon.write_text(json.dumps(LEXICON), encoding="utf-8")
    texts = {"texts": str(folder), "column": "text", "n_texts": 300, "n_heldout": 300}
    models = {f"seed-{at}": tuned_model(learned, at + 1, nats) for at in range(tunings)}
    for name, model in models.items():
        place = folder / TUNED / name
        model.save_pretrained(place)
        tokenizer().save_pretrained(place)
        told = {"method": "ppo", "reward": str(lexicon), "base": "invented", "texts": texts}
        (place / TUNING_FILE).write_text(json.dumps(told), encoding="utf-8")
    base_model().save_pretrained(folder / BASE)
    tokenizer().save_pretrained(folder / BASE)
    key = Key(
        spec="by hand", recipe=recipe, dose=1.0, words=4, method="ppo", seed=0, lexicon=str(lexicon),
        stated=fingerprint(LEXICON), values={}, after={},
        pattern=(), pays_length=False, kind=None, is_null=True, base=weights_fingerprint(base_model()),
        tuned={name: weights_fingerprint(model) for name, model in models.items()}, tunings={},
        shuffled_share=None, shuffled_kl_nats=None,
        parameters={"prompt_tokens": [2, 4], "max_new_tokens": 8, "scope": "completion"}, provenance={},
    )  # fmt: skip
    write_sealed(key, folder / KEY_FILE)
    return folder


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return by_hand(tmp_path_factory.mktemp("nulls") / "quiet")


@pytest.fixture(scope="module")
def card(quiet: Path) -> Scorecard:
    return cheap_nulls(quiet, 5, **FEW)


def content(score: Score) -> dict[str, Any]:
    """Everything but the time it took."""
    told = {field.name: getattr(score, field.name) for field in dataclasses.fields(score)} | {"seconds": 0.0}
    return {name: repr(value) for name, value in told.items()}


def test_where_nothing_wrong_was_learned_few_words_are_listed(card: Scorecard) -> None:
    assert [one.refused for one in card.scores] == [""] * 5
    assert sum(one.listed for one in card.scores) <= 1
    assert all(one.tau_stated.low > 0.3 for one in card.scores), "the feedback itself is still seen under the noise"


def test_words_learned_wrongly_are_listed_in_every_run(tmp_path: Path) -> None:
    wrong = LEXICON | {word: -LEXICON[word] for word in FLIPPED}
    found = cheap_nulls(by_hand(tmp_path / "lies", learned=wrong), 3, **FEW)
    assert min(one.listed for one in found.scores) >= 2, "a calibration that cannot see a wrong word shows nothing"


def test_a_run_that_learned_nothing_is_refused_and_counted_apart(tmp_path: Path, card: Scorecard) -> None:
    nothing = cheap_nulls(by_hand(tmp_path / "idle", nats=0.0), 2, **FEW)
    assert all("seed-" in one.refused and "nothing was learned" in one.refused for one in nothing.scores)
    assert all(one.found is one.false is None for one in nothing.scores), "what is refused is not measured"
    both = Scorecard(card.scores + nothing.scores, card.words, card.fdr).nulls()
    assert both[["recipe", "runs", "refused"]].to_numpy().tolist() == [["clean", 5, 2]]


def test_a_run_that_broke_the_model_is_refused(tmp_path: Path) -> None:
    broken = cheap_nulls(by_hand(tmp_path / "broken", nats=4.0), 1, **FEW)
    assert "the policy collapsed" in broken.scores[0].refused


def test_a_run_is_a_clean_organism_with_a_name_of_its_own(card: Scorecard) -> None:
    assert card.organisms == tuple(f"quiet/perturbed-00{at}" for at in range(5))
    one = card.scores[0]
    assert (one.recipe, one.base, one.method, one.n_planted, one.tunings) == ("clean", "invented", "ppo", 0, 1)
    assert one.n_candidates == 60
    ends = {(one.tau_stated.value, one.tau_stated.low, one.tau_stated.high) for one in card.scores}
    assert len(ends) == 5, "no two runs are the same"


def test_a_run_depends_on_its_number_and_the_seed_and_not_on_how_many_there_are(quiet: Path, card: Scorecard) -> None:
    first, second = cheap_nulls(quiet, 2, **FEW).scores
    assert [content(first), content(second)] == [content(one) for one in card.scores[:2]]
    assert content(cheap_nulls(quiet, 1, seed=1, **FEW).scores[0]) != content(first)


def test_replicates_are_other_tunings_each_with_its_own_noise_and_every_one_is_gated(
    quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated, probed = [], []
    usual = nulls.measure_writing, nulls.probe

    def writing(base: Any, model: Any, *given: Any, **named: Any) -> Any:
        gated.append(weights_fingerprint(model))
        return usual[0](base, model, *given, **named)

    def probing(pair: Any, **named: Any) -> Any:
        probed.extend(weights_fingerprint(model) for model in (pair.tuned_hf, *named["replicates"]))
        return usual[1](pair, **named)

    monkeypatch.setattr(nulls, "measure_writing", writing)
    monkeypatch.setattr(nulls, "probe", probing)
    (one,) = cheap_nulls(quiet, 1, replicates=2, **FEW).scores
    assert one.tunings == 2
    assert not one.refused and one.listed <= 1
    assert gated == probed and len(set(probed)) == 2


def test_texts_are_drawn_anew_and_prompts_come_from_those_that_are_not_measured(
    quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, prompted = [], []
    monkeypatch.setattr(nulls, "_refusal", lambda clean, models, texts, seed: prompted.append(texts) or "")
    monkeypatch.setattr(nulls, "_probed", lambda clean, models, texts, fdr, seed: measured.append(texts) or _nothing())
    cheap_nulls(quiet, 2, **FEW)
    assert [len(texts) for texts in measured] == [80, 80] == [len(texts) for texts in prompted]
    assert measured[0] != measured[1]
    assert not set(measured[0]) & set(prompted[0])


def _nothing() -> dict[str, Any]:
    return {"signal": "implicit_reward", "input": "words", "found": 0, "false": 0, "tau_stated": None}


def test_a_killed_call_goes_on_where_it_stopped(quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, measured = nulls.measure_writing, []
    monkeypatch.setattr(nulls, "measure_writing", lambda *given, **named: measured.append(1) or done(*given, **named))
    first = cheap_nulls(quiet, 1, store=tmp_path, **FEW)
    again = cheap_nulls(quiet, 2, store=tmp_path, **FEW)
    assert len(measured) == 2
    assert content(again.scores[0]) == content(first.scores[0])
    cheap_nulls(quiet, 1, noise=0.4, store=tmp_path, **FEW)
    assert len(measured) == 3, "another noise is another run"


def test_a_tuned_model_moves_by_a_share_of_what_tuning_changed_in_each_tensor() -> None:
    base, tuned = base_model(), tuned_model(LEXICON, 1, 0.2)
    with torch.no_grad():
        tuned.gpt_neox.final_layer_norm.weight[3] += 0.5
    before = copy.deepcopy(tuned.state_dict())
    moved = perturbed(tuned, base, 0.5, seed=3)
    ends = dict(moved.named_parameters())
    starts = dict(base.named_parameters())
    for name, weight in tuned.named_parameters():
        change, noise = (float((end - weight).detach().norm()) for end in (starts[name], ends[name]))
        assert noise == pytest.approx(change / 2, rel=1e-4), name
        assert torch.equal(before[name], weight), "the tuning itself stays as it is"
    same, other, still = (perturbed(tuned, base, noise, seed=seed) for noise, seed in ((0.5, 3), (0.5, 4), (0.0, 3)))
    assert weights_fingerprint(same) == weights_fingerprint(moved) != weights_fingerprint(other)
    assert weights_fingerprint(still) == weights_fingerprint(tuned)


def test_an_organism_as_it_is_made_can_be_used(clean: Organism) -> None:
    (one,) = cheap_nulls(clean, 1, n_texts=200).scores
    assert one.organism == f"{clean.name}/perturbed-000"
    assert "nothing was learned" in one.refused, "two steps of tuning teach nothing"


def test_an_organism_with_something_planted_is_no_null(tmp_path: Path) -> None:
    planted = by_hand(tmp_path / "planted", recipe="flip")
    with pytest.raises(LensError, match=r"recipe 'flip'.*recipe=\"clean\""):
        cheap_nulls(planted, 1)


def test_a_key_of_other_weights_is_refused(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "own")
    other = tuned_model(LEXICON, 9, 0.2)
    other.save_pretrained(folder / TUNED / "seed-1")
    with pytest.raises(LensError, match="does not belong to these checkpoints: seed-1"):
        cheap_nulls(folder, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": 0}, "n must be a whole number of at least 1; 0 given"),
        ({"seed": -1}, "seed must be a whole number of at least 0; -1 given"),
        ({"replicates": 3}, "replicates=3 needs as many tunings; quiet has 2"),
        ({"noise": -0.5}, "a number of at least 0; -0.5 given"),
        ({"noise": float("nan")}, "a number of at least 0; nan given"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_read(
    quiet: Path, given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nulls, "_read", lambda *given: pytest.fail("something was read"))
    with pytest.raises(LensError, match=message):
        cheap_nulls(quiet, **given)
