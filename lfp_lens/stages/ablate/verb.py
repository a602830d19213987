"""The verb: sample before and after from the same prompts and seeds, then ask what chance, the SAE, the base and other
dictionaries would give."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.stats import Estimate
from lfp_lens.core.store import Store, keep
from lfp_lens.parts.activations import Encoded
from lfp_lens.parts.generation import OPENINGS, Completions, sample
from lfp_lens.parts.interventions import MODES, intervening
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.rewards import REWARDS, Reward, make_reward
from lfp_lens.results.ablate import Ablation
from lfp_lens.results.features import FeatureSet
from lfp_lens.results.probe import Learned
from lfp_lens.stages.ablate.changes import per_token, share
from lfp_lens.stages.ablate.chosen import check_features, feature_set
from lfp_lens.stages.ablate.edits import Chosen
from lfp_lens.stages.ablate.matched import matched_random_sets
from lfp_lens.stages.ablate.measure import forced_half
from lfp_lens.stages.ablate.rates import word_values
from lfp_lens.stages.ablate.subject import Subject, is_run, open_of_run, subject_of

N_SAMPLES, N_SAMPLED_SETS = 8, 5
"""Completions shown, and random sets that completions are sampled under."""


def ablate(
    model: Any,
    features: Any = None,
    *,
    saes: Any = None,
    reward: Any = None,
    prompts: Sequence[str] | None = None,
    n: int = 256,
    max_new_tokens: int = 20,
    mode: str = "zero",
    scale: float = 0.0,
    controls: int = 200,
    floors: bool = True,
    learned: Any = None,
    seed: int = 0,
    store: Store | None = None,
) -> Ablation:
    """Ablate features at every step of generation, score the reward again, and set the controls beside it.

    Args:
        model: a pair (its tuned side is ablated, its base compared), a `HookedTransformer`, a Hugging Face causal LM, or a run
            (`lfp.open_run`), which brings its pair, reward, labels and learned values.
        features: what to ablate: labels (those related to the task), `effects.top(k)`, a `FeatureSet`, or (site, index) pairs
            with `saes`. Of any side: a set of `difference` or `both` needs a pair. None takes the labels of a run.
        saes: the dictionaries of (site, index) pairs, tuned side, smallest size; for others make a `FeatureSet`.
        reward: a name, lexicon file or callable; None takes the one in the tuning record, else VADER with a note.
        prompts: texts to continue; None takes a shipped list of neutral openings. They are repeated to make `n`.
        n: completions sampled before, after, and by each control that samples.
        max_new_tokens: longest completion.
        mode: `zero`, `mean`, `resample` or `scale`, for the sampled completions; teacher-forced, the first three are always
            shown together.
        scale: the factor of mode `scale` (0 zeroes, 2 doubles).
        controls: random feature sets, matched on site, firing rate and decoder norm, measured teacher-forced under `mode`; a
            quarter of them under the other modes, and 5 at most on sampled completions.
        floors: whether to measure curves of share against KL for dictionaries of this kind and for every floor (a pair only).
        learned: what `probe` gave: whose values say which words are strongly positive in Table 7; None takes the lexicon's.
        seed: of sampling and of every control.
        store: a run's store, or None.

    Returns:
        Reward before, after and paired difference; teacher-forced readings of every mode and control, doses, random sets,
        curves, firing rates; KL, perplexity, distinct n-grams and length, so that broken text is visible as such.

    Raises:
        LensError: for features that do not exist or are another model's, an unknown mode, a reward that gives no number.
        GateError: if none of the features fires in the completions, or too few lexicon words occur in them.

    Source: arXiv 2310.08164, section 4.2, with the error term kept and the controls added (docs/ablate.md).

    >>> ablate(pair, labels.relevant)  # doctest: +SKIP
    """
    inputs = dict(locals())
    _check(mode, scale, n, controls)
    if is_run(model):
        opened = open_of_run(model)
        model = opened.pair
        features = opened.features if features is None else features
        reward = opened.reward if reward is None else reward
        learned = opened.learned if learned is None and isinstance(opened.learned, Learned) else learned
    subject = subject_of(model)
    chosen = feature_set(features, saes)
    check_features(chosen, subject)
    given, scope, notes = _reward(reward, subject)
    ids = _prompts(subject, OPENINGS if prompts is None else prompts, n, max_new_tokens)
    lexicon = getattr(given, "lexicon", None) or load_lexicon("vader")
    values = word_values(learned, lexicon)
    inputs |= {"scope": scope, "features": chosen, "saes": None, "learned": learned}

    def make(folder: Path | None) -> Ablation:
        return _ablate(subject, chosen, given, ids, inputs | {"lexicon": lexicon, "values": values}, notes)

    return keep(store, "ablate", inputs | {"model": subject, "reward": given}, make)


def _check(mode: str, scale: float, n: int, controls: int) -> None:
    if mode not in MODES:
        raise unknown("ablation mode", mode, MODES)
    if not np.isfinite(scale):
        raise LensError(f"scale is a finite factor; {scale} given.")
    if scale != 0.0 and mode != "scale":
        raise LensError(f"scale={scale} has no meaning in mode {mode!r}; use mode='scale'.")
    if n < 2:
        raise LensError(f"At least 2 completions are needed for an interval; n={n}.")
    if controls < 0:
        raise LensError(f"controls counts random sets, 0 or more; {controls} given.")


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


def _ablate(
    subject: Subject, features: FeatureSet, reward: Reward, ids: list[list[int]], given: Mapping[str, Any], notes: list[str]
) -> Ablation:  # fmt: skip
    seed, draw = given["seed"], {"max_new_tokens": given["max_new_tokens"], "seed": given["seed"]}

    def scored(done: Completions) -> np.ndarray:
        return reward(done.whole if given["scope"] == "text" else done.texts)

    before = sample(subject.model, subject.tokenizer, ids, **draw)
    rewards = {"before": scored(before)}
    if subject.base is not None:
        rewards["base"] = scored(sample(subject.base, subject.tokenizer, ids, **draw))
    if not len(features):
        notes = [*notes, "no features were given: nothing is ablated, and every change is exactly 0"]
    groups = _prompt_numbers(ids)
    n_prompts = int(groups.max()) + 1
    if n_prompts == 1:
        notes = [
            *notes,
            "one prompt: intervals are over its completions, and screens choose on the texts that are measured",
        ]
        groups = np.arange(len(ids))
    texts = _encoded(subject, ids, before)
    # Every other prompt measures; what a screen chooses is chosen on completions of the others.
    order = np.argsort(groups % 2 if n_prompts > 1 else np.zeros(len(ids)), kind="stable")
    n_apart = int((groups % 2 == 0).sum()) if n_prompts > 1 else len(ids)
    half = forced_half(
        subject, features, [texts[row] for row in order], rewards["before"][order], given, n_apart=n_apart
    )

    def mean(values: np.ndarray) -> Estimate:
        return per_token(np.bincount(groups, values), np.bincount(groups).astype(float), seed=seed)

    def sampled(chosen: Chosen) -> Completions:
        edits = half.edits(chosen, given["mode"], given["scale"])
        base = subject.base if half.edits.needs_base else None
        with intervening(subject.model, edits, begin=subject.tokenizer.bos_token_id, base=base):
            return sample(subject.model, subject.tokenizer, ids, **draw)

    after = sampled(features.by_site())
    rewards["after"] = scored(after)
    random = matched_random_sets(features, min(given["controls"], N_SAMPLED_SETS), seed=seed)
    random_rewards = [mean(scored(sampled(drawn)) - rewards["before"]) for drawn in random]
    gained = None if "base" not in rewards else rewards["before"] - rewards["base"]
    return Ablation(
        features=features, mode=given["mode"], scale=given["scale"], reward=reward.name, rewards=rewards,
        before=mean(rewards["before"]), after=mean(rewards["after"]), difference=mean(rewards["after"] - rewards["before"]),
        reward_base=mean(rewards["base"]) if "base" in rewards else None, random_rewards=tuple(random_rewards),
        gain_share=None if gained is None else share(
            np.bincount(groups, rewards["before"] - rewards["after"]), np.bincount(groups, gained), seed=seed
        ),
        samples=tuple(zip(before.prompts, before.texts, after.texts))[:N_SAMPLES],
        notes=(*notes, *half.notes), **half.fields, **_shape(before, "before"), **_shape(after, "after"),
    )  # fmt: skip


def _encoded(subject: Subject, ids: Sequence[list[int]], done: Completions) -> list[Encoded]:
    """Give prompt and completion as one text each, with the characters of every token."""
    whole = [prompt + rest for prompt, rest in zip(ids, done.ids)]
    starts = [row[:at] for row in whole for at in range(len(row) + 1)]
    ends = iter([len(text) for text in subject.tokenizer.batch_decode(starts, skip_special_tokens=True)])
    found = []
    for row, text, n_prompt in zip(whole, done.whole, map(len, ids)):
        edges = [next(ends) for _ in range(len(row) + 1)]
        found.append(Encoded(row, list(itertools.pairwise(edges)), text, n_prompt=n_prompt))
    return found


def _prompt_numbers(ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Number the prompts in order; a prompt that is repeated keeps its number."""
    number = {prompt: at for at, prompt in enumerate(dict.fromkeys(map(tuple, ids)))}
    return np.array([number[tuple(prompt)] for prompt in ids])


def _shape(done: Completions, when: str) -> dict[str, Any]:
    return {
        f"distinct1_{when}": done.distinct1,
        f"distinct2_{when}": done.distinct2,
        f"length_{when}": done.mean_length,
    }
