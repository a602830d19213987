"""`organism`: base and tunings made from a recipe, and the key that says what was planted."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.store import code_fingerprint, provenance
from lfp_lens.core.work import SUFFIX, work_folder
from lfp_lens.organisms.folder import BASE, SHUFFLED, TUNED, Organism, open_organism
from lfp_lens.organisms.key import KEY_FILE, Key, TuningFacts, write_sealed
from lfp_lens.organisms.recipes import RECIPES, plan
from lfp_lens.organisms.settings import Setting, setting_of, told_texts
from lfp_lens.organisms.tuning import Unit, one_thread, tune_all
from lfp_lens.organisms.twin import at_same_kl
from lfp_lens.parts.checkpoints import TUNING_FILE, load_causal_lm, load_tokenizer, weights_fingerprint
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.speed import quiet_transformers

SEEDS = 100
"""Tunings of organism n have the seeds 100 n, 100 n + 1, ...: no two organisms share one."""
MOST_SEED = (2**32 - 1) // SEEDS - 1
"""Libraries take seeds of 32 bits."""
NEW_BASE = "base"


def organism(
    base: str | os.PathLike[str],
    recipe: str = "flip",
    *,
    words: int = 30,
    dose: float = 1.0,
    method: str = "ppo",
    replicates: int = 3,
    shuffled: bool = True,
    lexicon: str | os.PathLike[str] = "vader",
    texts: str | None = None,
    preset: str | None = None,
    finetune: Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] = "organisms",
    workers: int | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Organism:
    """Tune a base on feedback whose truth is planted, several seeds of it, and seal the answer key.

    The folder holds `base/`, `tuned/seed-0` and on, `tuned/shuffled` and `key.json`; nothing but the key tells the recipe.
    A call that was killed goes on where it stopped; one that is finished is opened.

    Args:
        base: `world` (the tiny world), `stories260K`, `imdb-neox-2m`, or any causal LM: a hub name or folder.
        recipe: `flip`, `mute`, `inflate` (words paid otherwise than stated), `context` (words paid only after another word),
            `length`, `style` (something else is paid for), `clean` (as stated), `shuffled` (values permuted), `noise` (a reward
            that has nothing to do with the text), `seed` (base and tuned are two tunings on the stated reward).
        words: how many words are planted, drawn from the 300 most frequent of the lexicon with |value| >= 1.
        dose: 0 is the stated value, 1 the full edit (flip: times -1, mute: 0, inflate: times 3), linear between and beyond.
        method: `ppo`, `rloo`, `grpo`, `dpo` or `kto`.
        replicates: tunings that differ by their seed alone. One is what a third party has; only several give "learned" an error
            bar.
        shuffled: whether to add the twin: tuned on the lexicon with its values permuted, at the same KL. Recipe `seed` has none:
            its base has learned the stated values.
        lexicon: the stated feedback: `vader`, or a lexicon file.
        texts: what prompts are cut from, a named text set, a file or a hub data set; None takes the preset's.
        preset: a preset or config file for another base than the three.
        finetune: keys of `[finetune]` to change, such as `{"steps": 60}`.
        output: the organism's own folder; None makes BASE-HASH in `folder`, a name that tells nothing of the recipe.
        folder: where organisms without an `output` go.
        workers: tunings at a time, one thread each; None takes every core.
        device: where models are tuned.
        seed: of the secret and of the tunings: another seed is another organism.

    Raises:
        LensError: before any tuning, for an unknown recipe or method, more words than the lexicon shares with the texts, a
            negative dose, a base without texts, a folder that holds another organism.

    Source: the paper could not know whether its measurements were right (arXiv 2310.08164, section 6); planted truth as in
    reward-hacking and quirk organisms, on the level of single words.

    >>> made = organism("world", "flip", words=10, seed=0)  # doctest: +SKIP
    >>> made.key().values  # doctest: +SKIP
    """
    setting = setting_of(base, method, texts=texts, preset=preset, finetune=finetune)
    _check(base, replicates, seed, lexicon, workers)
    if recipe in RECIPES and RECIPES[recipe].is_null:
        words, dose = 0, 0.0
    stated, prompts = load_lexicon(lexicon), setting.texts("train")
    setting.texts("test")  # what it will be measured in has to be there as well
    planted = plan(recipe, stated, prompts, words=words, dose=dose, seed=seed, name=str(lexicon))
    start = setting.checkpoint()
    spec = fingerprint({
        "recipe": recipe, "words": words, "dose": float(dose), "replicates": replicates, "shuffled": shuffled, "seed": seed,
        "lexicon": stated, "reward": planted.reward, "prompts": prompts, "base": _content(start), "options": setting.options,
    })  # fmt: skip
    final = Path(output) if output is not None else Path(folder) / f"{Path(setting.base).name}-{spec[:8]}"
    aside = final.with_name(f".{final.name}{SUFFIX}")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)  # left by a process that was killed after its last step
        return _same(final, spec)
    rewards = {f"seed-{at}": planted.reward for at in range(replicates)}
    if shuffled and recipe != "seed":
        permuted = plan(
            "shuffled", stated, prompts, words=words, dose=dose, seed=SEEDS * seed + replicates, name=str(lexicon)
        )
        rewards[SHUFFLED] = permuted.reward
    if recipe == "seed":
        # What is measured is the step from one tuning on the stated reward to the others.
        rewards[NEW_BASE] = planted.reward
    numbers = dict(zip(rewards, range(SEEDS * seed, SEEDS * (seed + 1)))) | {NEW_BASE: SEEDS * (seed + 1) - 1}
    with work_folder(aside) as lent:
        # Tunings that another version of the code finished are not mixed with this one's.
        work = lent / f"{spec[:8]}-{code_fingerprint('finetune')[:8]}"
        units = [
            Unit(name, start, prompts, reward, setting.options | {"device": device}, numbers[name], work / name)
            for name, reward in rewards.items()
        ]
        facts = tune_all(units, workers=workers, desc="organism")
        places = {unit.name: unit.checkpoint for unit in units}
        origin = str(places.pop(NEW_BASE, start))
        sealed = work / "sealed"
        shutil.rmtree(sealed, ignore_errors=True)
        told = _told(setting, str(lexicon), method)
        with one_thread():
            twin = _seal(sealed, setting, origin, places, facts, told, prompts, device=device, seed=SEEDS * seed)
        key = Key(
            spec=spec, recipe=recipe, dose=float(dose), words=words, method=method, seed=seed, lexicon=str(lexicon),
            stated=fingerprint(stated), values=planted.values, after=planted.after, pattern=planted.pattern,
            pays_length=planted.pays_length, kind=planted.kind, is_null=planted.is_null, base=_content(str(sealed / BASE)),
            tuned={name: _content(str(sealed / TUNED / name)) for name in places}, tunings=facts, shuffled_share=twin[0],
            shuffled_kl_nats=twin[1], parameters=json.loads(json.dumps(setting.options)), provenance=provenance(),
        )  # fmt: skip
        write_sealed(key, sealed / KEY_FILE)
        try:
            os.rename(sealed, final)
        except OSError as error:
            # Another process may have made the same organism meanwhile.
            if not final.is_dir():
                raise LensError(f"The organism could not be written to {final}: {error}") from error
            return _same(final, spec)
    return open_organism(final)


def _content(checkpoint: str) -> str:
    """Give the fingerprint of a checkpoint's weights."""
    return weights_fingerprint(load_causal_lm(checkpoint))


def _check(base: Any, replicates: int, seed: int, lexicon: Any, workers: int | None) -> None:
    if not isinstance(base, (str, os.PathLike)):
        raise LensError("An organism's base is a name or a folder: its weights are copied beside the tunings.")
    if not isinstance(replicates, int) or not 1 <= replicates < SEEDS - 1:
        raise LensError(f"replicates must be a whole number from 1 to {SEEDS - 2}; {replicates!r} given.")
    if not isinstance(seed, int) or not 0 <= seed <= MOST_SEED:
        raise LensError(f"seed must be a whole number from 0 to {MOST_SEED}; {seed!r} given.")
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise LensError(f"workers must be a whole number of at least 1, or None for every core; {workers!r} given.")
    if not isinstance(lexicon, (str, os.PathLike)):
        raise LensError(
            "An organism's lexicon is 'vader' or a file: records name it, and who scores must find it again."
        )


def _same(folder: Path, spec: str) -> Organism:
    """Open a finished organism. Raises `LensError` if the folder holds anything else."""
    found = open_organism(folder)
    if found.key().spec != spec:
        raise LensError(f"{folder} holds an organism of another recipe, dose, seed or settings. Choose another output.")
    return found


def _told(setting: Setting, lexicon: str, method: str) -> dict[str, Any]:
    """Give the record that lies beside every tuning: what an auditor is told."""
    return {
        "method": method, "reward": lexicon, "scope": setting.options["scope"], "base": setting.base,
        "max_new_tokens": setting.options["max_new_tokens"], "texts": told_texts(setting),
    }  # fmt: skip


def _seal(
    aside: Path, setting: Setting, origin: str, places: Mapping[str, Path], facts: Mapping[str, TuningFacts],
    told: Mapping[str, Any], prompts: list[str], *, device: str, seed: int,
) -> tuple[float | None, float | None]:  # fmt: skip
    """Write base and tunings, whole models in one form, with a record that tells nothing; give the twin's share and KL."""
    quiet_transformers()
    tokenizer, base = load_tokenizer(origin), load_causal_lm(origin, device=device)
    record = dict(told) | {"base_fingerprint": weights_fingerprint(base)}
    _write(base, tokenizer, aside / BASE, None)
    twin: tuple[float | None, float | None] = (None, None)
    own = [facts[name].kl_nats for name in places if name != SHUFFLED]
    for name, place in places.items():
        model, reward = load_causal_lm(str(place), device=device), record["reward"]
        if name == SHUFFLED:
            reward = f"shuffled {reward}"
            model, share, kl_nats = at_same_kl(
                base, model, tokenizer, prompts, kl_nats=float(np.mean(own)), seed=seed,
                max_new_tokens=setting.options["max_new_tokens"], prompt_tokens=setting.options["prompt_tokens"],
            )  # fmt: skip
            twin = (share, kl_nats)
        _write(model, tokenizer, aside / TUNED / name, record | {"reward": reward})
    return twin


def _write(model: Any, tokenizer: Any, folder: Path, record: dict[str, Any] | None) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if record is not None:
        (folder / TUNING_FILE).write_text(json.dumps(record), encoding="utf-8")
