"""The oracle against the model run plainly, one context at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts import harvest
from lfp_lens.parts.labellers import Evidence
from lfp_lens.parts.labellers.oracle import FeatureOracle, SiteReader, ask_all
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import load_sae
from lfp_lens.parts.sites import activations_at
from tests.stages.planted import OTHER_SITE, SITE, planted_saes
from tests.tiny import tiny_pair

CONTEXTS = [[5, 9, 300], [7], [5, 9, 300], [12, 0, 44, 8], [], [0]]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return tiny_pair()


def reader(pair: Pair, site: str = SITE, side: str = "tuned") -> SiteReader:
    record = planted_saes(pair, sites=(site,)).one(site, side=side)
    return SiteReader(pair.hf(side), load_sae(record), site, pair.tokenizer.bos_token_id)


def evidence(oracle: Any) -> Evidence:
    return Evidence("7", (), (), (), np.zeros(0), np.zeros(0, int), oracle=oracle)


def plainly(made: SiteReader, ids: Sequence[int], index: int, maximum: float) -> np.ndarray:
    """Beginning-of-text first; 0 where that token stands in the context."""
    whole = torch.tensor([[0, *ids]])
    acts = activations_at(made.model, whole, torch.ones_like(whole), [made.site])[made.site][0]
    found = made.sae.encode(acts)[1:, index].numpy() / maximum
    return np.where(np.array(ids) == 0, 0, found)


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_an_oracle_says_what_the_model_does(pair: Pair, side: str) -> None:
    made = reader(pair, side=side)
    for ids, said in zip(CONTEXTS, FeatureOracle(made, 3, 2.5)(CONTEXTS), strict=True):
        assert said.dtype == np.float32
        np.testing.assert_allclose(said, plainly(made, ids, 3, 2.5), rtol=1e-4, atol=1e-6)


def test_many_features_of_several_sites_are_asked_together(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    readers = [reader(pair), reader(pair, OTHER_SITE)]
    asked = [FeatureOracle(readers[at % 2], at, 1.0 + at) for at in range(8)]
    contexts = [CONTEXTS[at % 3 :] for at in range(8)]
    wanted = [[plainly(one.reader, ids, one.index, one.maximum) for ids in own] for one, own in zip(asked, contexts)]
    passes: list[tuple[int, ...]] = []
    original = harvest.activations_at

    def counted(model: Any, ids_BS: torch.Tensor, *rest: Any) -> Any:
        passes.append(tuple(ids_BS.shape))
        return original(model, ids_BS, *rest)

    monkeypatch.setattr(harvest, "activations_at", counted)
    found = ask_all([evidence(one) for one in asked], contexts)
    # Of six contexts two are equal, one is empty and one holds no token that is read.
    assert [shape[0] for shape in passes] == [3, 3]
    for said, right in zip(found, wanted, strict=True):
        for one, other in zip(said, right, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_any_function_may_be_an_oracle(pair: Pair) -> None:
    def length(contexts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return [np.full(len(ids), float(len(ids))) for ids in contexts]

    found = ask_all([evidence(length), evidence(FeatureOracle(reader(pair), 0, 1.0))], [[[1, 2]], [[3]]])
    assert found[0][0].tolist() == [2.0, 2.0] and len(found[1][0]) == 1


def test_evidence_without_a_model_cannot_be_asked_about() -> None:
    with pytest.raises(LensError, match="There is no model to ask about 7"):
        ask_all([evidence(None)], [[[1]]])
