"""The verb: sample before and after from the same prompts and seeds, then ask what chance, the SAE and the base would give."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.stats import Estimate, mean_estimate
from lfp_lens.core.store import Store, keep
from lfp_lens.parts.activations import Encoded
from lfp_lens.parts.generation import OPENINGS, Completions, sample
from lfp_lens.parts.interventions import MODES, Edit, feature_edit, intervening, reconstruction_edit
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.rewards import REWARDS, Reward, make_reward
from lfp_lens.parts.saes import load_sae
from lfp_lens.parts.sites import layer_of
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.parts.valence import token_values
from lfp_lens.results.ablate import Ablation
from lfp_lens.results.features import FeatureSet
from lfp_lens.stages.ablate.cheap import Reading, matched_random_sets, read
from lfp_lens.stages.ablate.reference import reference_features
from lfp_lens.stages.ablate.subject import Subject, subject_of

N_SAMPLES, N_CHEAP_TEXTS = 8, 128


def ablate(
    model: Any,
    features: FeatureSet,
    *,
    reward: Any = None,
    prompts: Sequence[str] | None = None,
    n: int = 256,
    max_new_tokens: int = 20,
    mode: str = "zero",
    scale: float = 0.0,
    controls: int = 200,
    seed: int = 0,
    store: Store | None = None,
) -> Ablation:
    """Ablate features at every step of generation, score the reward again, and set the controls beside it.

    Args:
        model: a pair (its tuned side is ablated, its base compared), a `HookedTransformer`, or a Hugging Face causal LM.
        features: what to ablate: `labels.relevant`, `effects.top(k)`, or `FeatureSet(saes, [(site, index), ...])`.
        reward: a name, lexicon file or callable; None takes the one in the tuning record, else VADER with a note.
        prompts: texts to continue; None takes a shipped list of neutral openings. They are repeated to make `n`.
        n: completions sampled before, and after.
        max_new_tokens: longest completion.
        mode: `zero`, `mean`, `resample` or `scale`.
        scale: the factor of mode `scale` (0 zeroes, 2 doubles).
        controls: random feature sets, matched on site, firing rate and decoder norm, measured on the cheap metric.
        seed: of sampling and of every control.
        store: a run's store, or None.

    Returns:
        Reward before, after and paired difference; valence (teacher-forced) with reconstruction, base and random
        controls; KL, perplexity, distinct bigrams and length, so that broken text is visible as such.

    Raises:
        LensError: for an empty model, features of another pair, or an unknown mode.
        GateError: if too few lexicon words occur in the completions for the cheap metric.

    Source: arXiv 2310.08164, section 4.2, with the error term kept and the controls added (docs/validity.md).

    >>> ablate(pair, labels.relevant)  # doctest: +SKIP
    """
    inputs = dict(locals())
    if mode not in MODES:
        raise unknown("ablation mode", mode, MODES)
    if scale != 0.0 and mode != "scale":
        raise LensError(f"scale={scale} has no meaning in mode {mode!r}; use mode='scale'.")
    if n < 2:
        raise LensError(f"At least 2 completions are needed for an interval; n={n}.")
    subject = subject_of(model)
    if subject.pair and features.saes.pair != subject.pair:
        raise LensError("These features belong to the SAEs of another pair.")
    _check_widths(subject, features)
    given, scope, notes = _reward(reward, subject)
    ids = _prompts(subject, OPENINGS if prompts is None else prompts, n, max_new_tokens)

    def make(folder: Path | None) -> Ablation:
        with fast_matmul():
            return _ablate(subject, features, given, ids, inputs | {"scope": scope}, notes)

    return keep(store, "ablate", inputs | {"model": subject, "reward": given, "scope": scope}, make)


def _check_widths(subject: Subject, features: FeatureSet) -> None:
    for site in features.by_site():
        if layer_of(site) >= subject.n_layers:
            raise LensError(f"{site!r} does not exist: the model has layers 0 to {subject.n_layers - 1}.")
        width = features.sae(site).weights.tensors["W_dec"].shape[1]
        if width != subject.width:
            raise LensError(
                f"The SAE at {site} reads {width} dimensions, the model has {subject.width}: another model."
            )


def _reward(reward: Any, subject: Subject) -> tuple[Reward, str, list[str]]:
    """Give the reward asked for, else that of the tuning record, else VADER with a note; and what the tuning scored."""
    scope, recorded = subject.tuning.get("scope", "completion"), subject.tuning.get("reward")
    if reward is not None:
        return make_reward(reward), scope, []
    if recorded is None:
        missing = "the tuning record names no reward" if subject.tuning else "no tuning record"
        return make_reward("vader"), scope, [f"{missing}: scored by VADER"]
    if recorded not in REWARDS:
        raise LensError(
            f"This model was tuned on the reward {recorded!r}, which its record names but cannot hold: pass `reward=`, the "
            "lexicon file or callable it was tuned on."
        )
    return make_reward(recorded), scope, []


def _ablate(
    subject: Subject,
    features: FeatureSet,
    reward: Reward,
    ids: list[list[int]],
    given: Mapping[str, Any],
    notes: list[str],
) -> Ablation:
    seed = given["seed"]
    draw = {"max_new_tokens": given["max_new_tokens"], "seed": seed}
    device = next(subject.model.parameters()).device
    saes = {site: load_sae(features.sae(site), device=device) for site in features.by_site()}
    before = sample(subject.model, subject.tokenizer, ids, **draw)
    texts = [Encoded(prompt + done, []) for prompt, done in zip(ids, before.ids) if len(prompt) + len(done) > 1]
    texts = texts[:N_CHEAP_TEXTS]
    begin = subject.tokenizer.bos_token_id
    is_compared = given["mode"] in ("mean", "resample")
    reference = reference_features(subject.model, texts, saes, begin=begin) if is_compared else {}

    def edits(chosen: Mapping[str, Sequence[int]]) -> dict[str, Edit]:
        return {
            site: feature_edit(
                saes[site], chosen[site], mode=given["mode"], scale=given["scale"], reference_MF=reference.get(site), seed=seed
            )
            for site in chosen
        }  # fmt: skip

    with intervening(subject.model, edits(features.by_site()), begin=begin):
        after = sample(subject.model, subject.tokenizer, ids, **draw)
    scored = lambda done: reward(done.whole if given["scope"] == "text" else done.texts)  # noqa: E731
    rewards = [scored(done) for done in (before, after)]
    base = sample(subject.base, subject.tokenizer, ids, **draw) if subject.base is not None else None
    if base is None:
        notes = [*notes, "one model given: nothing to say about the base or the share of the gain"]
    base_rewards = scored(base) if base is not None else None
    lexicon = getattr(reward, "lexicon", None) or load_lexicon("vader")
    cheap = _cheap(subject, features, texts, saes, edits, lexicon, given["controls"], seed)
    return Ablation(
        features=features,
        mode=given["mode"],
        reward=reward.name,
        before=mean_estimate(rewards[0], seed=seed),
        after=mean_estimate(rewards[1], seed=seed),
        difference=mean_estimate(rewards[1] - rewards[0], seed=seed),
        gain_share=_gain_share(rewards[0], rewards[1], base_rewards, seed),
        reward_base=None if base_rewards is None else mean_estimate(base_rewards, seed=seed),
        samples=tuple(zip(before.prompts, before.texts, after.texts))[:N_SAMPLES],
        notes=tuple(notes),
        **_shape(before, "before"),
        **_shape(after, "after"),
        **cheap,
    )


def _prompts(subject: Subject, prompts: Sequence[str], n: int, max_new_tokens: int) -> list[list[int]]:
    """Tokenise the prompts, beginning-of-text first, repeated in order to n."""
    if isinstance(prompts, str) or not len(prompts):
        raise LensError("prompts must be a list of texts to continue; leave it out for the shipped openings.")
    begin = [] if subject.tokenizer.bos_token_id is None else [subject.tokenizer.bos_token_id]
    encoded = subject.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    ids = [begin + [token for token in row if token not in begin] for row in encoded]
    ids = [row for row in ids if row]
    if not ids:
        raise LensError("No prompt holds a token.")
    longest = max(map(len, ids))
    if max_new_tokens < 1 or (subject.context is not None and longest + max_new_tokens > subject.context):
        raise LensError(
            f"max_new_tokens={max_new_tokens} after a prompt of {longest} tokens does not fit the model's context of "
            f"{subject.context} tokens: shorten the prompts, or ask for fewer (1 at least)."
        )
    return [ids[at % len(ids)] for at in range(n)]


def _cheap(
    subject: Subject,
    features: FeatureSet,
    texts: Sequence[Encoded],
    saes: Mapping[str, Any],
    edits: Callable[[Mapping[str, Sequence[int]]], dict[str, Edit]],
    lexicon: Mapping[str, float],
    controls: int,
    seed: int,
) -> dict[str, Any]:
    """Measure the edit, its controls and the no-op on the untouched model's own completions."""
    begin, chosen = subject.tokenizer.bos_token_id, features.by_site()
    model = subject.model
    vocabulary = model.cfg.d_vocab_out if hasattr(model, "hook_dict") else model.config.vocab_size
    written = subject.tokenizer.batch_decode([text.ids for text in texts], skip_special_tokens=True)
    values_V = token_values(
        subject.tokenizer, lexicon, written, vocabulary=vocabulary, device=next(model.parameters()).device
    )

    def look(model: Any, what: Mapping[str, Edit], **options: Any) -> Reading:
        return read(model, texts, values_V, what, begin=begin, **options)

    clean = look(subject.model, {})
    empty = look(subject.model, edits(dict.fromkeys(chosen, ())))
    assert np.array_equal(empty.log_p, clean.log_p), "an empty set of features changed the predictions"
    ablated = look(subject.model, edits(chosen), with_kl=True)
    rebuilt = look(subject.model, {site: reconstruction_edit(saes[site]) for site in chosen})
    random = [
        float((look(subject.model, edits(drawn)).valence - clean.valence).mean())
        for drawn in tqdm(matched_random_sets(features, controls, seed=seed), desc="ablate")
    ]
    base_difference = None
    if subject.base is not None:
        base_clean, base_ablated = look(subject.base, {}), look(subject.base, edits(chosen))
        base_difference = mean_estimate(base_ablated.valence - base_clean.valence, seed=seed)
    effect = ablated.valence - clean.valence
    return {
        "valence_before": float(clean.valence.mean()),
        "valence_difference": mean_estimate(effect, seed=seed),
        "random_differences": np.array(random),
        "percentile": float(np.mean(np.array(random) > effect.mean())) if random else float("nan"),
        "reconstruction_difference": mean_estimate(rebuilt.valence - clean.valence, seed=seed),
        "base_difference": base_difference,
        "kl_nats": float(ablated.kl.sum() / ablated.tokens.sum()),
        "perplexity_before": float(np.exp(-clean.log_p.sum() / clean.tokens.sum())),
        "perplexity_after": float(np.exp(-ablated.log_p.sum() / ablated.tokens.sum())),
    }


def _gain_share(
    before: np.ndarray, after: np.ndarray, base: np.ndarray | None, seed: int, draws: int = 2000
) -> Estimate | None:
    """Give (before - after) / (before - base) of the means, prompts resampled; None without a base or without a gain."""
    if base is None:
        return None
    rows = np.random.default_rng(seed).integers(len(before), size=(draws, len(before)))
    removed, gain = ((before - part)[rows].mean(1) for part in (after, base))
    if np.quantile(gain, 0.025) <= 0:
        return None
    low, high = np.quantile(removed / gain, (0.025, 0.975))
    return Estimate(float((before - after).mean() / (before - base).mean()), float(low), float(high), len(before))


def _shape(done: Completions, when: str) -> dict[str, Any]:
    return {f"distinct2_{when}": done.distinct2, f"length_{when}": done.mean_length}
