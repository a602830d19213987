"""Does any dictionary carry the learned feedback better than what needs no features? `imdb-neox-2m` tuned on VADER.

Shares of the tuned-minus-base gain at equal KL: tied and topk SAEs, dictionaries of the difference and crosscoders, three seeds
each, beside every floor; on other texts than the sets were chosen on, then on sampled training reward, and patched from tuned
into base. Needs the folder that LFP_LENS_DATA names. The tuning and the dictionaries are kept in `runs/carriers`. One JSON line
per figure.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lfp_lens.config import load_config
from lfp_lens.core.records import write_record
from lfp_lens.core.stats import Estimate
from lfp_lens.core.store import Store
from lfp_lens.parts.activations import batches, encode
from lfp_lens.parts.dictionaries import as_dictionary
from lfp_lens.parts.generation import prompt_ids, sample
from lfp_lens.parts.interventions import Edit, intervening
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.parts.rewards import make_reward
from lfp_lens.parts.share_curves import Contender, Ordered, Selection, floor_contenders, ordered, share_curves
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.parts.teacher_forced import TeacherForced
from lfp_lens.parts.texts import load_texts
from lfp_lens.parts.valence import token_values
from lfp_lens.results import SAESet
from lfp_lens.results.share_curves import ShareCurves
from lfp_lens.stages.finetune import finetune
from lfp_lens.stages.train_sae import train_sae
from tests.benchmarks.measure import Figure, one_thread

PRESET = "imdb-2m-vader"
SITES = tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(1, 6))
SETS: dict[str, dict[str, Any]] = {
    "topk": {"sides": ("tuned", "difference"), "sizes": (1, 2), "architecture": "topk", "k": 16},
    "dense": {"sides": ("difference",), "sizes": (1,), "architecture": "topk", "k": 32},
    "tied": {"sides": ("tuned",), "sizes": (2,), "architecture": "tied"},
    "crosscoder": {"sides": ("both",), "sizes": (2,), "architecture": "topk", "k": 16},
    "base topk": {"sides": ("base",), "sizes": (2,), "architecture": "topk", "k": 16},
    "base tied": {"sides": ("base",), "sizes": (2,), "architecture": "tied"},
}
OWN_FLOORS = ("untrained", "random directions")
"""Floors that every kind of dictionary has of its own; the others are the same for all."""
SIZES, DOSES, MODES = (10, 50, 150, 300, 500), (1.0, 2.0, 4.0), ("zero", "mean", "resample")
ANY_DOSE = 4.0
KL = 0.03
MAX_TOKENS = 64


@dataclass(frozen=True, eq=False)
class Scene:
    """What everything is measured on."""

    pair: Pair
    saes: Mapping[str, SAESet]
    selection: Selection
    forced: TeacherForced
    prompts: list[list[int]]

    @property
    def begin(self) -> int | None:
        """The beginning-of-text token."""
        return self.pair.tokenizer.bos_token_id


def carriers(
    *, seeds: int = 3, n_select: int = 600, n_texts: int = 200, n_prompts: int = 1000, home: str = "runs/carriers",
    sizes: tuple[int, ...] = SIZES, modes: tuple[str, ...] = MODES,
) -> Iterator[Figure]:  # fmt: skip
    """Tune and train (or find them), measure the curves, and give every figure."""
    config, folder = load_config(PRESET), Path(home)
    with one_thread():
        settings = config.finetune.model_dump()
        tuning = finetune(config.base, prompts=load_texts("imdb", split="train", n=config.n_texts), **settings,
                          store=Store(folder / "tuning"))  # fmt: skip
        pair = load_pair(config.base, tuning.path)
        train = load_texts("imdb", split="train", n=config.n_texts)
        saes = {
            name: train_sae(
                pair, SITES, train, replicates=seeds, random_twin=False, store=Store(folder / name), **options
            )
            for name, options in SETS.items()
        }
        scene = make_scene(pair, saes, n_select, n_texts, n_prompts)
        with fast_matmul():
            curves = share_curves(
                scene.forced, contenders(scene), scene.selection, modes=modes, sizes=sizes, doses=DOSES
            )
        (folder / "curves").mkdir(exist_ok=True)
        write_record(curves, folder / "curves")
        yield from of_curves(curves)
        yield from of_samples(scene, curves)


def make_scene(pair: Pair, saes: Mapping[str, SAESet], n_select: int, n_texts: int, n_prompts: int) -> Scene:
    """Read texts: the first to measure on, others to choose sets on, yet others to begin prompts with."""
    pool = load_texts("imdb", split="test", n=n_texts + n_select + n_prompts)
    begin, tokenizer = pair.tokenizer.bos_token_id, pair.tokenizer
    values = token_values(
        tokenizer, load_lexicon("vader"), pool, vocabulary=pair.tuned_hf.config.vocab_size, device="cpu"
    )
    measured = encode(tokenizer, pool[:n_texts], max_tokens=MAX_TOKENS)
    chosen = encode(tokenizer, pool[n_texts : n_texts + n_select], max_tokens=MAX_TOKENS)
    base = TeacherForced(pair.base_hf, measured, values, begin=begin)
    return Scene(
        pair, saes, Selection(list(batches(chosen, device="cpu", max_batch_tokens=4096)), values, n_select),
        TeacherForced(pair.tuned_hf, measured, values, other=base, begin=begin),
        prompt_ids(tokenizer, pool[n_texts + n_select :], (2, 9), seed=0),
    )  # fmt: skip


def contenders(scene: Scene) -> Iterator[Contender]:
    """Give every dictionary and every floor."""
    for kind, saes in scene.saes.items():
        for side, size in sorted({(one.side, one.size) for one in saes.saes}):
            name = f"{kind} {side} x{size:g}"
            for seed in sorted({one.seed for one in saes.saes}):
                records = saes.select(side=side, size=size, seed=seed)
                made = {one.site: as_dictionary(one) for one in records}
                yield Contender(name, made, seed=seed, is_floor=side == "base")
    asked: set[str] = set()
    for kind, saes in scene.saes.items():
        for side in sorted({one.side for one in saes.saes} - {"base"}):
            size = min(one.size for one in saes.saes if one.side == side)
            records = saes.select(side=side, size=size, seed=0)
            for floor in floor_contenders(
                scene.pair.tuned_hf, scene.pair.base_hf, records, scene.selection, begin=scene.begin
            ):
                name = f"{floor.name}, {kind} {side}" if floor.name in OWN_FLOORS else floor.name
                if floor.name == "pca" and side == "difference":
                    name = "pca of the difference"
                if name not in asked:
                    asked.add(name)
                    yield replace(floor, name=name)


def of_curves(curves: ShareCurves) -> Iterator[Figure]:
    """Give shares and leads at equal KL, as ablation and at any dose."""
    yield _figure("gain per token", Estimate(curves.gain, np.nan, np.nan, len(curves.tokens)))
    for doses, most in (("ablated once", 1.0), ("any dose", ANY_DOSE)):
        for mode in dict.fromkeys(curves.mode):
            shares = {name: curves.share(name, mode=mode, kl=KL, most_dose=most) for name in curves.names}
            for name, share in shares.items():
                kind = "floor" if name in curves.floors else "dictionary"
                yield _figure(f"{mode}, {doses}: share within KL {KL}, {kind} {name}", share)
            for name in (name for name in shares if name not in curves.floors):
                leads = curves.lead(name, mode=mode, kl=KL, most_dose=most)
                if leads:
                    floor = min(leads, key=lambda floor: leads[floor].value)
                    what = f"{mode}, {doses}: lead of {name} over the best floor, {floor}"
                    yield _figure(what, leads[floor], "0.10, interval above 0")


def of_samples(scene: Scene, curves: ShareCurves) -> Iterator[Figure]:
    """Give the share of the training reward's gain that goes in sampled text, and the share that patching restores."""
    pair, reward = scene.pair, make_reward("vader")
    draw = {"max_new_tokens": 20, "seed": 0}

    def rewards(model: Any, edits: Mapping[str, Edit], base: Any = None) -> np.ndarray:
        with intervening(model, edits, begin=scene.begin, base=base):
            return np.asarray(reward(sample(model, pair.tokenizer, scene.prompts, **draw).texts))

    before, of_base = rewards(pair.tuned_hf, {}), rewards(pair.base_hf, {})
    yield _figure("sampled reward gained by tuning", _mean(before - of_base))
    for mode, doses, most in (
        ("zero", "ablated once", 1.0),
        ("zero", "any dose", ANY_DOSE),
        ("mean", "any dose", ANY_DOSE),
    ):
        shares = {name: _or_low(curves.share(name, mode=mode, kl=KL, most_dose=most)) for name in curves.names}
        best = max((name for name in shares if name not in curves.floors), key=shares.__getitem__)
        floor = max(curves.floors, key=shares.__getitem__)
        lost = {}
        for name in (best, floor):
            ready = next(_ready(scene, one, mode) for one in contenders(scene) if one.name == name)
            k, dose = curves.best_set(name, mode=mode, kl=KL, most_dose=most)
            edits = ready.edits(mode, k, dose)
            needs_base = any(one.needs_base for one in ready.contender.dictionaries.values())
            lost[name] = before - rewards(pair.tuned_hf, edits, pair.base_hf if needs_base else None)
            label = f"{mode}, {doses}: {name} (first {k} features, dose {dose:.2f})"
            yield _figure(f"sampled share removed, {label}", _ratio(lost[name], before - of_base))
            yield _figure(f"teacher-forced share restored in the base, {label}", restored(scene, ready, mode, k, dose))
        yield _figure(f"sampled lead, {mode}, {doses}: {best} over {floor}", _ratio(lost[best] - lost[floor], before - of_base),
                      "0.10, interval above 0")  # fmt: skip


def _ready(scene: Scene, contender: Contender, mode: str) -> Ordered:
    return ordered(scene.forced, contender, scene.selection, modes=(mode,), most=max(SIZES))


def restored(scene: Scene, ready: Ordered, mode: str, k: int, dose: float) -> Estimate:
    """Give the share of the gain that appears when what the edit takes from the tuned model's activation is put into the base.

    At each site the base's activation, as it is by then, gets (tuned - edited tuned activation); the tuned one is clean.
    """
    forced = scene.forced
    base = forced.other
    assert base is not None
    edits = ready.edits(mode, k, dose)

    def put(edit: Edit) -> Edit:
        return lambda acts, tuned, place: acts + (tuned - edit(tuned, acts, place))

    read = base.read({site: put(edit) for site, edit in edits.items()}, other=forced)
    return _ratio(read.valence - base.clean.valence, forced.clean.valence - base.clean.valence)


def _ratio(part: np.ndarray, whole: np.ndarray, draws: int = 2000) -> Estimate:
    """Give sum(part) / sum(whole), units resampled."""
    rows = np.random.default_rng(0).integers(len(part), size=(draws, len(part)))
    low, high = np.quantile(part[rows].sum(1) / whole[rows].sum(1), (0.025, 0.975))
    return Estimate(float(part.sum() / whole.sum()), float(low), float(high), len(part))


def _mean(values: np.ndarray) -> Estimate:
    return _ratio(values, np.ones(len(values)))


def _or_low(share: Estimate) -> float:
    return share.value if np.isfinite(share.value) else -np.inf


def _figure(what: str, found: Estimate, aim: str = "") -> Figure:
    return Figure("carriers", what, found.value, found.low, found.high, found.n, aim)
