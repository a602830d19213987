"""Random feature sets that are like the chosen ones in all that a lost reward might be due to but the features' meaning."""

import numpy as np

from lfp_lens.results.features import FeatureSet


def matched_random_sets(features: FeatureSet, n: int, *, seed: int) -> list[dict[str, tuple[int, ...]]]:
    """Draw n sets of other features, each member matched to one of `features` on site, firing rate and decoder norm.

    A match is drawn from the ten unused features of the same site nearest in log firing rate and log decoder norm, both in
    units of their spread at that site. Where the set takes most of a site, members may be drawn again.
    """
    generator = np.random.default_rng(seed)
    near = {site: _neighbours(features, site, own) for site, own in features.by_site().items()}
    sets = []
    for _ in range(n):
        drawn: dict[str, tuple[int, ...]] = {}
        for site, candidates in near.items():
            picked: list[int] = []
            for options in candidates:
                free = [index for index in options if index not in picked][:10] or list(options[:10])
                picked.append(int(generator.choice(free)))
            drawn[site] = tuple(picked)
        sets.append(drawn)
    return sets


def _neighbours(features: FeatureSet, site: str, own: tuple[int, ...]) -> list[np.ndarray]:
    """Give, for each chosen feature, the site's other features from nearest to furthest."""
    record = features.sae(site)
    norms = np.linalg.norm(record.weights.tensors["W_dec"], axis=1)
    traits = np.stack([np.log(record.firing_rate + 1e-4), np.log(norms + 1e-8)], axis=1)
    traits = traits / np.maximum(traits.std(axis=0), 1e-6)
    others = np.array([index for index in range(record.n_features) if index not in own])
    if not len(others):
        others = np.arange(record.n_features)
    return [others[np.argsort(((traits[others] - traits[index]) ** 2).sum(1), kind="stable")] for index in own]
