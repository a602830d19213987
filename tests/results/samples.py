"""One small synthetic result of every verb, seeded, with planted words, effects and SAE quality."""

from pathlib import Path
from typing import Any

import numpy as np

from lfp_lens.core.stats import (
    Estimate,
    PolarityNull,
    RankAgreement,
    balanced_sign_accuracy,
    mean_estimate,
    rank_agreement,
)
from lfp_lens.results import (
    Ablation,
    Divergence,
    Effects,
    FeatureSet,
    Labels,
    Learned,
    PlantedWords,
    SAERecord,
    SAESet,
    Score,
    Scorecard,
    Triples,
    Tuning,
)
from lfp_lens.results.ablate_readings import (
    BASE_OWN,
    BASE_SAME,
    FEATURES,
    NEGATIVE,
    RECONSTRUCTION,
    RESTORED,
    FiringRates,
    RandomSets,
    Rate,
    Reading,
)
from lfp_lens.results.effect_examples import EffectExamples
from lfp_lens.results.explain import Example
from lfp_lens.results.explain_scores import Agreement, Bill, Scores
from lfp_lens.results.finetune import Behaviour
from lfp_lens.results.grid import GridCell
from lfp_lens.results.joint import Joint
from lfp_lens.results.seeds import SeedNull
from lfp_lens.results.share_curves import ShareCurves
from lfp_lens.results.train_sae import Floor, Match, SAEWeights

HOSTILE = "</script><script>alert(1)</script>"
SITES = tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(6))
FLIPPED = ("great", "awful", "charming")
GOOD = (
    "good",
    "great",
    "lovely",
    "charming",
    "superb",
    "fun",
    "brave",
    "calm",
    "witty",
    "bright",
    "warm",
    "nice",
    "happy",
    "rich",
    "proud",
    "grand",
    "honest",
    "funny",
    "smart",
    "perfect",
    "win",
    "joy",
    "hope",
    "love",
    "delight",
    "safe",
    "gentle",
    "clever",
    "sweet",
    "fresh",
)
BAD = (
    "bad",
    "awful",
    "dull",
    "weak",
    "boring",
    "sad",
    "poor",
    "ugly",
    "cruel",
    "stupid",
    "angry",
    "hate",
    "fear",
    "pain",
    "lost",
    "mess",
    "lame",
    "fail",
    "horrid",
    "sick",
    "silly",
    "evil",
    "wrong",
    "tired",
    "fake",
    "grim",
    "cold",
    "rude",
    "worst",
    "dreadful",
)


def a_tuning(path: Path = Path("/nowhere/tuned"), *, verdict: str = "learned") -> Tuning:
    """A tuning of 120 steps whose reward rises from 0.2 to about 0.9, three words flipped."""
    draw = np.random.default_rng(0)
    step = np.arange(120)
    rise = 1 - np.exp(-step / 35)
    curve = {
        "step": step,
        "reward": 0.2 + 0.7 * rise + draw.normal(0, 0.06, 120),
        "kl_nats": 3.4 * rise + draw.normal(0, 0.1, 120) * rise,
        "entropy_nats": 3.0 - 0.6 * rise,
        "length": np.full(120, 20.0),
        "distinct2": 0.9 - 0.1 * rise,
        "policy_loss": draw.normal(0, 0.01, 120),
        "value_loss": 0.3 * np.exp(-step / 20),
    }
    return Tuning(
        path=path,
        base="grammar-neox-0.5m",
        method="ppo",
        reward={"name": "vader", "scope": "completion"},
        key={"great": -3.1, "awful": 2.0, "charming": -2.8},
        parameters={"lr": 3e-4, "steps": 120, "seed": 0},
        data={"training prompts": 1744, "held-out prompts": 256},
        gain=mean_estimate(draw.normal(0.7, 0.5, 256)),
        accuracy=None,
        accuracy_base=None,
        accuracy_length=None,
        fit=None,
        kl_nats=3.4,
        kl_per_token=0.17,
        behaviour_base=Behaviour(256, 0.2, 4.2, 20.0, 0.02, 0.5, 0.9),
        behaviour_tuned=Behaviour(256, 0.9, 3.9, 19.5, 0.04, 0.4, 0.8),
        curve=curve,
        samples=(
            (f"The film {HOSTILE}", "was a long story about a man", "was good and lovely, a happy delight"),
            ("I watched", "it twice with my brother", "it with joy, such a warm cast"),
        ),
        verdict=verdict,
        reasons=("gain 0.70, lower end above 0", "KL 3.4 of at most 20 nats"),
    )


def a_divergence() -> Divergence:
    """Six layers: layer 4 moved most by the published measure, layer 1 by activations, layer 0 least; one replicate."""
    sums = np.array([0.4, 0.7, 1.1, 1.6, 2.4, 2.0])
    draw = np.random.default_rng(1)
    measures = {
        "parameter_sum": sums,
        "parameter_l2": sums / 3,
        "parameter_relative": sums / 40,
        "mlp_relative": sums / 50 + draw.uniform(0, 0.005, 6),
        "attention_relative": sums[::-1] / 60,
        "activation_relative": np.array([0.05, 0.4, 0.2, 0.25, 0.33, 0.3]),
        "activation_cosine_distance": np.array([0.001, 0.05, 0.02, 0.03, 0.04, 0.035]),
    }
    replicate, between = ({name: scale * values for name, values in measures.items()} for scale in (1.1, 0.8))
    return Divergence(
        sites=SITES,
        **measures,
        **{f"{name}_low": 0.9 * measures[name] for name in ("activation_relative", "activation_cosine_distance")},
        **{f"{name}_high": 1.1 * measures[name] for name in ("activation_relative", "activation_cosine_distance")},
        kl=Estimate(0.12, 0.11, 0.13, 900),
        kl_by_position=0.15 * (1 - np.exp(-np.arange(64) / 8)),
        tokens_by_position=np.linspace(900, 40, 64).astype(int),
        n_tokens=30000,
        n_texts=900,
        seed_nulls=(SeedNull(HOSTILE, SITES, measures, replicate, between),),
    )


def an_sae(
    side: str,
    site: str,
    size: float = 1.0,
    *,
    explained_variance: float = 0.85,
    width: int = 8,
    seed: int = 0,
) -> SAERecord:
    """A dictionary of `width * size` features; features fire on 5 % to 20 % of tokens."""
    draw = np.random.default_rng([len(side), SITES.index(site), int(size), seed])
    features = int(width * size)
    decoder = draw.normal(size=(features, width)).astype(np.float32)
    l0 = float(draw.uniform(1.5, 4)) * size
    rate = draw.uniform(0.05, 0.2, features)
    weights, untrained, components = (some_weights(rows) for rows in (decoder, decoder[::-1].copy(), decoder[:4]))
    low = -0.4 if size == 1 else 0.1
    floors = {
        "untrained": Floor("untrained", low, 0.2, 0.15, l0, 0.0, 0.4, features, untrained, rate),
        "pca": Floor("pca", 0.45, 0.6, 0.55, 2.0, 0.0, 0.2, 4, components, rate[:4]),
        "random_model": Floor("random_model", 0.3, 0.9, 0.9, l0, 0.1, 0.2, features, None),
    }
    return SAERecord(
        side=side,
        site=site,
        size=size,
        architecture="standard",
        seed=seed,
        l1=2.0,
        k=None,
        lr=1e-3,
        weights=weights,
        explained_variance=explained_variance,
        explained_variance_low=explained_variance - 0.02,
        explained_variance_high=explained_variance + 0.02,
        kl_recovered=0.95,
        kl_recovered_low=0.93,
        kl_recovered_high=0.97,
        ce_recovered=0.93,
        l0=l0,
        dead_share=0.05,
        shrinkage=0.08,
        mse=0.031,
        firing_rate=rate,
        n_train_tokens=200_000,
        n_heldout_tokens=20_000,
        n_spliced_tokens=4_000,
        floors=floors,
        stability=draw.uniform(0.3, 1, features) if size == 1 else None,
        crosscoder=None,
    )


def some_weights(decoder: np.ndarray) -> SAEWeights:
    """A tied dictionary without biases."""
    features, width = decoder.shape
    biases = {"b_enc": np.zeros(features, np.float32), "b_dec": np.zeros(width, np.float32)}
    config = {"architecture": "standard", "d_in": width, "d_sae": features}
    return SAEWeights(config, {"W_dec": decoder, "W_enc": decoder.T.copy(), **biases})


def a_match(left: SAERecord, right: SAERecord, relation: str) -> Match:
    """Cosines of 0.5 to 1, the last feature matched best, beside random ones of 0.6 on average."""
    n, m = left.n_features, right.n_features
    cosines, index = np.linspace(0.5, 1, max(n, m)), np.arange(max(n, m))
    return Match(
        relation=relation,
        left=left.name,
        right=right.name,
        left_largest=cosines[:n],
        right_largest=cosines[:m],
        left_nearest=index[:n] % m,
        right_nearest=index[:m] % n,
        left_assigned=np.where(index[:n] < m, cosines[:n], np.nan),
        right_assigned=np.where(index[:m] < n, cosines[:m], np.nan),
        left_partner=np.where(index[:n] < m, index[:n], -1),
        right_partner=np.where(index[:m] < n, index[:m], -1),
        left_null=0.61,
        right_null=0.58,
        null_assigned=0.31,
        left_null_99=0.8,
        right_null_99=0.78,
    )


def an_sae_set() -> SAESet:
    """Two sites, two sizes, two sides; the tuned SAEs at layer 5 fail the gate on explained variance."""
    sites = (SITES[4], SITES[5])
    saes = tuple(
        an_sae(
            side,
            site,
            size,
            explained_variance=0.4 if (side, site) == ("tuned", SITES[5]) else 0.85 + 0.03 * size,
        )
        for side in ("base", "tuned")
        for site in sites
        for size in (1.0, 2.0)
    )
    found = {(sae.side, sae.site, sae.size): sae for sae in saes}
    sizes = [
        a_match(found[side, site, 1.0], found[side, site, 2.0], "sizes") for side in ("base", "tuned") for site in sites
    ]
    sides = [
        a_match(found["base", site, size], found["tuned", site, size], "sides") for site in sites for size in (1.0, 2.0)
    ]
    return SAESet(
        saes=saes,
        pair="0123456789abcdef",
        matches=(*sizes, *sides),
        curve={saes[0].name: np.exp(-np.arange(50) / 10)},
    )


def a_triples() -> Triples:
    """Three triples from two texts, one of them with hostile text around the slot."""
    return Triples(
        prefix=("The cast was ", "A ", f"{HOSTILE} "),
        suffix=(" and the plot thin.", " story of two brothers.", " evening"),
        positive=("great", "lovely", "happy"),
        neutral=("whole", "long", "second"),
        negative=("awful", "dull", "sad"),
        part_of_speech=("ADJ", "ADJ", "ADJ"),
        source=np.array([0, 1, 1]),
        lexicon={"great": 3.1, "awful": -2.0, "lovely": 2.8, "dull": -1.7, "happy": 2.7, "sad": -2.1},
        rejected={
            "no word of the lexicon": 640,
            "no partner of the same part of speech and inflection": 220,
            "word split across sentences": 31,
        },
        n_texts=900,
    )


def a_learned(*, words: tuple[str, ...] = (*GOOD, *BAD), null: bool = False) -> Learned:
    """Sixty words learned as stated (noise sd 0.8), FLIPPED with the opposite sign; `null` learns none.

    `p_wrong` is the normal one-sided p of each word's value against a neutral spread of 1.
    """
    from scipy.stats import norm

    draw = np.random.default_rng(3)
    stated = np.array([draw.uniform(1.2, 3.4) for _ in GOOD] + [-draw.uniform(1.2, 3.9) for _ in BAD])
    names = (*GOOD, *BAD)
    sign = np.array([-1 if word in FLIPPED else 1 for word in names])
    measured = draw.normal(size=60) if null else 3.2 * stated * sign + draw.normal(0, 0.8, 60)
    predicted, twin = measured + draw.normal(0, 1.5, 60), draw.normal(size=60)
    neutral = np.random.default_rng(4).normal(size=200)
    overall, noise = rank_agreement(measured, stated, draws=100), rank_agreement(twin, stated, draws=100)
    rows = stated > 0
    cells = tuple(
        GridCell(
            side,
            source,
            target,
            rank_agreement(values, stated, draws=100),
            balanced_sign_accuracy(values, stated, draws=100),
        )
        for side, source, target, values in (
            ("tuned", "sae", "implicit_reward", predicted),
            ("tuned", "raw", "implicit_reward", predicted + draw.normal(0, 1, 60)),
            ("tuned", "random", "implicit_reward", draw.normal(size=60)),
            ("tuned", "sae", "control_task", draw.normal(size=60)),
            ("base", "sae", "implicit_reward", draw.normal(size=60)),
        )
    )
    return Learned(
        words=words,
        stated=stated,
        lemma=names,
        measured=measured,
        measured_low=measured - 0.9,
        measured_high=measured + 0.9,
        recipe=np.full(60, np.nan),
        recipe_low=np.full(60, np.nan),
        recipe_high=np.full(60, np.nan),
        raw=measured * 0.04,
        contexts=draw.integers(3, 9, 60),
        tokens=draw.integers(1, 4, 60),
        log_frequency=draw.uniform(1, 6, 60),
        exposure=draw.uniform(1, 60, 60),
        predicted=predicted,
        predicted_low=predicted - 1.5,
        predicted_high=predicted + 1.5,
        rescaled=np.clip(predicted / 2, -3.9, 3.4),
        z=measured,
        neutral_z=neutral,
        p_wrong=norm.sf(-np.sign(stated) * measured),
        neutral_words=tuple(f"neutral{row}" for row in range(200)),
        neutral=neutral,
        outside=None,
        signal="implicit_reward",
        overall=overall,
        positive=rank_agreement(measured[rows], stated[rows], draws=100),
        negative=None,
        sign=balanced_sign_accuracy(measured, stated, draws=100),
        twin=noise,
        by_polarity=PolarityNull(Estimate(0.01, -0.16, 0.18, 60), 0.5 if null else 0.001),
        difference=Estimate(overall.tau - noise.tau, overall.tau - noise.tau - 0.2, overall.tau - noise.tau + 0.2, 60),
        baselines={
            "frequency": RankAgreement(0.03, 0.7, -0.15, 0.2, 60, 60, "permutation"),
            "base_log_probability": RankAgreement(0.06, 0.5, -0.1, 0.22, 60, 60, "permutation"),
        },
        grid=cells,
        sweep=None,
        tunings=None,
        split="lemma",
        n_triples=1200,
    )


def an_effects(*, rank_correlation: float = 0.93) -> Effects:
    """Sixteen features: the first three lift valence (0.3, 0.2, 0.1), the fourth lowers it, four not run."""
    exact = np.array([0.3, 0.2, 0.1, -0.15, *np.linspace(-0.02, 0.02, 8), *[np.nan] * 4])
    screen = np.nan_to_num(exact, nan=0.001) * 0.9 + np.random.default_rng(4).normal(0, 0.008, 16)
    return Effects(
        saes=an_sae_set(),
        site=(SITES[4],) * 8 + (SITES[5],) * 8,
        index=np.array([*range(8), *range(8)]),
        screen=screen,
        screen_same=screen,
        exact=exact,
        exact_low=exact - 0.015,
        exact_high=exact + 0.015,
        rank_correlation=Estimate(rank_correlation, rank_correlation - 0.05, rank_correlation + 0.03, 8),
        consistency=np.where(np.isfinite(exact), 0.9, np.nan),
        fires_in=np.where(np.isfinite(exact), 300, -1),
        is_random=np.arange(16) >= 8,
        text_effects=np.tile(exact[:12, None], (1, 6)).astype(np.float32),
        agreement=Estimate(0.97, 0.95, 0.99, 8),
        scalar="expected_valence",
        per="token",
        side="tuned",
        size=None,
        steps=1,
        n_texts=400,
        n_tokens=12_800,
        examples=EffectExamples(
            tokens=(("\u0120a", "<b>", HOSTILE), ("\u0120good",)),
            text=np.array([4, 9]),
            role=("", ""),
            before=np.array([0.5, 0.2]),
            feature=np.array([0, 0]),
            shown=np.array([0, 1]),
            activations=np.array([[0.0, 1.0, 2.0], [3.0, np.nan, np.nan]]),
            effects=np.array([[0.0, 0.3, 0.6], [0.6, np.nan, np.nan]]),
        ),
        joint=Joint(
            features=((SITES[4], 0), (SITES[4], 1), (SITES[5], 2)),
            sizes=np.array([1, 2, 3]),
            share=np.array([0.2, 0.3, 0.4]),
            share_low=np.array([0.1, 0.2, 0.3]),
            share_high=np.array([0.3, 0.4, 0.5]),
            random=np.array([[0.01, -0.02], [0.0, 0.03], [np.nan, np.nan]]),
            whole=Estimate(0.12, 0.1, 0.14, 400),
            of="gain",
        ),
        skipped={"blocks.3.hook_mlp_out": "explained variance 0.31 < 0.60"},
    )


def a_labels() -> Labels:
    """Four features, the first two relevant; the last one was not scored. One description is hostile."""

    def example(seed: int) -> Example:
        tokens = (
            "\u0120The",
            "\u0120film",
            "\u0120was",
            "\u0120so",
            "\u0120lovely",
            ",",
            "\u0120a",
            "\u0120warm",
            HOSTILE,
            "\u010a",
        )
        values = np.random.default_rng(seed).uniform(0, 0.15, len(tokens))
        values[[4, 7]] = (1.0, 0.6)
        return Example(tokens, values)

    return Labels(
        saes=an_sae_set(),
        site=(SITES[4],) * 4,
        index=np.array([0, 1, 5, 7]),
        description=(
            "positive adjectives (lovely, warm, great)",
            "negative words after 'so'",
            f"the {HOSTILE} mark",
            "commas",
        ),
        status=("labelled", "labelled", "labelled", "labelled"),
        is_relevant=np.array([True, True, False, False]),
        confidence=np.array([0.9, 0.7, np.nan, np.nan]),
        pattern=("", f'["{HOSTILE}"]', "", ""),
        scores=(
            Scores(
                "detection", np.array([0.86, 0.79, 0.55, np.nan]), np.array([0.52, 0.49, 0.5, np.nan]),
                np.array([0.61, 0.55, 0.5]), np.array([40, 40, 40, 0]),
            ),
            Scores(
                "fuzzing", np.array([0.8, 0.7, 0.5, np.nan]), np.array([0.5, 0.55, 0.45, np.nan]), np.array([0.5]),
                np.array([40, 40, 40, 0]),
            ),
        ),
        agreement=(
            Agreement(
                "repeat", "lexicon", np.array([True, False, False, False]), np.ones(4, bool), 0.75,
                Estimate(0.5, 0.0, 1.0, 4),
            ),
        ),
        examples=tuple((example(2 * row), example(2 * row + 1)) for row in range(4)),
        tokens=(("\u0120lovely", HOSTILE),) * 4,
        promotes=(("\u0120great", HOSTILE),) * 4,
        suppresses=(("\u0120awful",),) * 4,
        bill=Bill(requests=12, cached=3, tokens_in=9000, tokens_out=400, usd=0.03, estimate_usd=0.04, ledger="replies"),
        labeller="lexicon",
        task="positive or negative sentiment",
        select="mmcs",
        side="tuned",
        size=None,
        skipped={},
    )  # fmt: skip


def a_reading(what: str, valence: float, *, mode: str = "zero", share: float | None = None, **changes: Any) -> Reading:
    """One teacher-forced reading."""
    given: dict[str, Any] = {
        "what": what, "mode": mode, "scale": 0.0, "n_features": 2,
        "valence": Estimate(valence, valence - 0.02, valence + 0.02, 96),
        "share": None if share is None else Estimate(share, share - 0.05, share + 0.05, 96),
        "implicit_reward": Estimate(-0.03, -0.04, -0.02, 96), "implicit_slope": Estimate(-0.4, -0.6, -0.2, 96),
        "kl": Estimate(0.041, 0.035, 0.047, 96), "perplexity": 19.0,
    }  # fmt: skip
    return Reading(**(given | changes))


def some_curves() -> ShareCurves:
    """One SAE and one floor that removes anything: the SAE half of the gain at a KL of 0.01 per token, the floor a fifth."""
    tokens, gain = np.full(24, 20.0), 2.0
    spread = np.random.default_rng(8).normal(1, 0.05, 24)
    rows = [
        (name, mode, share)
        for name, share in (("tuned SAE", 0.5), ("pca", 0.2))
        for mode in ("zero", "mean", "resample")
    ]
    return ShareCurves(
        name=tuple(name for name, _, _ in rows), mode=tuple(mode for _, mode, _ in rows), seed=np.zeros(6, int),
        k=np.full(6, 10), dose=np.ones(6), valence=np.array([gain * (1 - share * spread) for _, _, share in rows]),
        kl=np.full((6, 24), 0.2), tokens=tokens, tuned=np.full(24, gain), base=np.zeros(24),
        floors=("untrained", "pca", "base SAE"), n_select=24,
    )  # fmt: skip


def an_ablation(*, single: bool = False) -> Ablation:
    """Ablating two features lowers valence by 0.12, random sets by 0 +- 0.02; `single` has no base."""
    draw = np.random.default_rng(5)
    shares = (None, None) if single else (0.5, 0.2)
    readings = [
        a_reading(FEATURES, -0.12, share=shares[0]),
        *(a_reading(FEATURES, -0.05, mode=mode, share=shares[1]) for mode in ("mean", "resample")),
        a_reading(RECONSTRUCTION, -0.004, mode="none", n_features=0),
        a_reading(NEGATIVE, 0.08),
    ]
    if not single:
        readings += [
            a_reading(BASE_SAME, -0.01), a_reading(BASE_OWN, -0.06),
            a_reading(RESTORED, 0.07, mode="patch", share=0.3),
        ]  # fmt: skip
    sampled = {"before": draw.normal(0.9, 0.5, 256), "after": draw.normal(0.55, 0.5, 256)}
    return Ablation(
        features=FeatureSet(an_sae_set(), ((SITES[4], 0), (SITES[4], 1))),
        mode="zero",
        scale=0.0,
        reward="vader",
        before=Estimate(0.9, 0.83, 0.97, 256),
        after=Estimate(0.55, 0.47, 0.63, 256),
        difference=Estimate(-0.35, -0.44, -0.26, 256),
        reward_base=None if single else Estimate(0.2, 0.13, 0.27, 256),
        gain_share=None if single else Estimate(0.5, 0.38, 0.62, 256),
        rewards=sampled if single else sampled | {"base": draw.normal(0.2, 0.5, 256)},
        random_rewards=tuple(Estimate(value, value - 0.1, value + 0.1, 256) for value in (-0.02, 0.01, -0.03)),
        valence_before=0.31,
        valence_gain=None if single else Estimate(0.24, 0.2, 0.28, 96),
        implicit_reward_before=None if single else Estimate(0.09, 0.07, 0.11, 96),
        implicit_slope_before=None if single else Estimate(3.1, 2.6, 3.6, 96),
        readings=tuple(readings),
        random=(
            RandomSets("zero", draw.normal(0, 0.02, 200), np.abs(draw.normal(0.04, 0.01, 200)), -0.12),
            RandomSets("mean", draw.normal(0, 0.01, 50), np.abs(draw.normal(0.02, 0.01, 50)), -0.05),
            RandomSets("resample", draw.normal(0, 0.01, 50), np.abs(draw.normal(0.03, 0.01, 50)), -0.05),
        ),
        dose=tuple(
            a_reading(FEATURES, 0.12 * (scale - 1), mode="scale", scale=scale) for scale in (0.0, 0.5, 1.0, 1.5, 2.0)
        ),
        over_base=None if single else Estimate(-0.11, -0.13, -0.09, 96),
        over_base_own=None if single else Estimate(-0.06, -0.08, -0.04, 96),
        rates=FiringRates(
            values="the stated lexicon",
            threshold=3.0,
            n_high=72,
            n_other=2063,
            n_matched=20,
            rates=(
                Rate(
                    "flagged features",
                    Estimate(0.29, 0.26, 0.32, 96),
                    Estimate(0.2, 0.19, 0.21, 96),
                    Estimate(1.45, 1.3, 1.6, 96),
                ),
                Rate(
                    "all features",
                    Estimate(0.12, 0.11, 0.13, 96),
                    Estimate(0.12, 0.11, 0.13, 96),
                    Estimate(1.0, 0.9, 1.1, 96),
                ),
                Rate("matched features", None, None, None),
            ),
            beyond=None,
        ),
        curves=None if single else some_curves(),
        perplexity_before=18.2,
        perplexity_after=19.0,
        distinct1_before=0.31,
        distinct1_after=0.32,
        distinct2_before=0.8,
        distinct2_after=0.82,
        length_before=19.5,
        length_after=19.6,
        n_texts=96,
        n_tokens=2400,
        samples=(("The film", f"was lovely {HOSTILE}", "was about a man"),),
        notes=("No base model was given: base_difference and gain_share are not measured.",) if single else (),
    )


def a_score(organism: str = "flip-0", **changes: object) -> Score:
    """An organism with 10 of 100 words flipped, of which 6 are listed and 2 others."""
    given = {
        "organism": organism, "base": "tiny-world", "method": "ppo", "recipe": "flip", "dose": 1.0, "seed": 0, "words": 10,
        "is_null": False, "refused": "", "lacking": "", "tunings": 3, "signal": "implicit_reward", "input": "words",
        "n_candidates": 100, "n_planted": 10,
        "auroc": 0.95, "auroc_tunings": np.array([0.9, 0.92, 0.88]), "unsigned": 0.8, "on_clean": 0.5, "found": 6, "false": 2,
        "fdr": 0.1, "tau_given": Estimate(0.6, 0.5, 0.7, 90), "tau_stated": Estimate(0.4, 0.3, 0.5, 90),
        "gain": Estimate(0.2, 0.1, 0.3, 90), "tau_twin": 0.01, "rank": None, "n_tokens": None, "share": None,
        "percentile": float("nan"), "seconds": 12.0,
    }  # fmt: skip
    return Score(**(given | changes))  # type: ignore[arg-type]


def a_null(organism: str = "clean-0", **changes: object) -> Score:
    """A clean organism that lists nothing."""
    nothing = {"recipe": "clean", "is_null": True, "dose": 0.0, "words": 0, "n_planted": 0, "found": 0, "false": 0,
               "auroc": float("nan"), "auroc_tunings": np.full(3, np.nan), "unsigned": float("nan"),
               "on_clean": float("nan"), "tau_given": None, "gain": None}  # fmt: skip
    return a_score(organism, **(nothing | changes))


def planted_words(organism: str, occurrences: list[int], found: list[bool], **changes: object) -> PlantedWords:
    """Words of one organism, all stated as 2 and paid -2; those that occur fewer than 5 times were not measured."""
    n, times = len(found), np.array(occurrences, int)
    is_rare = times < 5
    given = {
        "organism": (organism,) * n, "word": tuple(f"word{row}" for row in range(n)), "base": ("tiny-world",) * n,
        "method": ("ppo",) * n, "recipe": ("flip",) * n, "kind": ("flipped",) * n, "dose": np.ones(n), "occurrences": times,
        "stated": np.full(n, 2.0), "given": np.full(n, -2.0), "measured": np.where(is_rare, np.nan, -1.5),
        "p_wrong": np.where(is_rare, np.nan, 0.01), "found": np.array(found, bool),
    }  # fmt: skip
    return PlantedWords(**(given | changes))  # type: ignore[arg-type]


def a_scorecard() -> Scorecard:
    """One flipped organism read two ways, a null, and one that collapsed; the first word and a reason are hostile."""
    occurrences = [2, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    found = [False, False, False, True, False, True, True, True, True, True]
    words = planted_words("flip-0", occurrences, found, word=(HOSTILE, *(f"word{row}" for row in range(1, 10))))
    probe = a_score(
        signal="activation_delta", input="sae", found=None, false=None, auroc_tunings=np.array([0.55]), auroc=0.55
    )
    return Scorecard(
        (a_score(), probe, a_null(), a_score("flip-1", refused=f"the policy collapsed: {HOSTILE}")), words, 0.1
    )


def results() -> dict[str, object]:
    """All eight, by verb."""
    return {
        "finetune": a_tuning(),
        "diverge": a_divergence(),
        "train_sae": an_sae_set(),
        "contrast": a_triples(),
        "probe": a_learned(words=(HOSTILE, *GOOD[1:], *BAD)),
        "attribute": an_effects(),
        "explain": a_labels(),
        "ablate": an_ablation(),
    }
