"""The draw of held-out windows at full number: 120 planted features whose firing clusters, each with a known rule."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.parts.activations import Encoded
from lfp_lens.parts.labellers import LexiconLabeller
from lfp_lens.results.explain import Explanation
from lfp_lens.results.explain_scores import Scores
from lfp_lens.results.train_sae import SAEWeights
from lfp_lens.stages.explain import firing
from lfp_lens.stages.explain.evidence import Feature
from lfp_lens.stages.explain.firing import Sizes, Watched, hold_out, watch
from lfp_lens.stages.explain.scoring import Tried, deranged, score_all
from lfp_lens.stages.explain.trials import MAX_WINDOWS, detection_trial, fuzzing_trial
from lfp_lens.stages.explain.windows import Half, _half
from tests.tiny import sae_record, tiny_pair

SITE = "blocks.0.hook_mlp_out"
N, PLAIN, TOKENS = 120, 60, 32
"""Features, words that no feature fires on, and words in a text."""
WORDS = [f"word{at}" for at in range(N + PLAIN)]


class Bar:
    def update(self) -> None:
        pass


class OneHot:
    """Stands in for a cache: a token's activation is its word alone."""

    def reader(self, texts: Any, streams: Any, pair: Any, models: Any) -> Any:
        def read(at: int) -> dict[Any, torch.Tensor]:
            ids = [token for row in texts.rows[at] for token in texts.encoded[row].ids]
            acts_ND = torch.nn.functional.one_hot(torch.tensor(ids), len(WORDS)).float()
            return dict.fromkeys(streams, acts_ND)

        return SimpleNamespace(read=read)


def half(n: int, seed: int) -> Half:
    """Texts of 32 words: each feature's word comes with a chance that is the text's own, independently of the others'."""
    generator = np.random.default_rng(seed)
    made = []
    for share in generator.beta(0.7, 9, n).clip(max=0.18):
        planted = generator.permutation(np.flatnonzero(generator.random(N) < share))[:TOKENS]
        ids = generator.permutation([*planted, *(N + generator.integers(PLAIN, size=TOKENS - len(planted)))])
        ends = np.cumsum([len(WORDS[at]) + 1 for at in ids]).tolist()
        offsets = list(zip([0, *ends], ends))
        made.append(Encoded(ids.tolist(), offsets, "".join(f" {WORDS[at]}" for at in ids)))
    return _half(made, SimpleNamespace(bos_token_id=None), torch.device("cpu"), len(WORDS), seed)


def scores(draw: int) -> dict[str, Scores]:
    """Score 120 right explanations and as many of other features, as `explain` does."""
    encoder_DF = np.zeros((len(WORDS), N), np.float32)
    encoder_DF[np.arange(N), np.arange(N)] = np.linspace(0.5, 2.0, N)
    tensors = {
        "W_enc": encoder_DF, "W_dec": np.ascontiguousarray(encoder_DF.T), "b_enc": np.zeros(N, np.float32),
        "b_dec": np.zeros(len(WORDS), np.float32),
    }  # fmt: skip
    config = {
        "architecture": "standard", "d_in": len(WORDS), "d_sae": N, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"hook_name": SITE, "model_name": "planted", "prepend_bos": False},
    }  # fmt: skip
    pair: Any = tiny_pair()
    cache: Any = OneHot()
    shown, held = half(400, 2 * draw), half(1600, 2 * draw + 1)
    sizes = Sizes(top=5, sample=5, silent=5, trial=MAX_WINDOWS)
    record = sae_record(SAEWeights(config, tensors), "tuned", SITE)
    own = Watched(record, np.arange(N), None, len(shown.ids), sizes, torch.device("cpu"))
    pool = watch(pair, "tuned", {SITE: [own]}, shown, cache, Bar())
    own.settle(shown)
    busy = hold_out(pair, "tuned", {SITE: [own]}, held, pool.rest({SITE: [own]}), cache, Bar())
    said = [Explanation(f"fires on: {WORDS[at]}", False, float("nan")) for at in range(N)]
    features = [Feature(f"{SITE} {at}", own, at) for at in range(N)]
    tried = [
        Tried(one.name, said[at], said[other], detection_trial(one, held, 0), fuzzing_trial(one, held, busy, 0))
        for at, (one, other) in enumerate(zip(features, deranged(N, 0)))
    ]
    made: Sequence[Scores] = score_all(LexiconLabeller({"good": 1.0}), ("detection", "fuzzing"), tried, [], Bar())
    return {one.kind: one for one in made}


@pytest.mark.parametrize("draw", [0, 1])
def test_explanations_of_other_features_are_at_chance_and_own_ones_far_above(draw: int) -> None:
    detection, fuzzing = scores(draw).values()
    control = detection.mean_shuffled
    assert control.n == N and control.low < 0.5 < control.high, control
    assert detection.mean.low > 0.95 and detection.lead.low > 0.4
    # No two features share a word here, so another's explanation never finds rightly marked ones: just below one half.
    assert fuzzing.mean.low > 0.95 and abs(fuzzing.mean_shuffled.value - 0.5) < 0.01


@pytest.mark.parametrize("draw", [0, 1])
def test_windows_drawn_without_regard_to_other_features_would_not_be_at_chance(
    draw: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted firing clusters, so the test above can fail."""
    monkeypatch.setattr(firing, "weighted_keys", lambda drawn_WF, weights_W: drawn_WF)
    found = scores(draw)["detection"].mean_shuffled
    assert found.low > 0.505, found
