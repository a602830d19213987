"""The answer key of an organism: what was planted, how the tunings went, and which weights it belongs to."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lfp_lens.core.errors import LensError
from lfp_lens.results.finetune import Tuning

KEY_FILE = "key.json"
MIN_KL_NATS = 0.05
"""Below, a tuning hardly changed the model: a null of nothing."""
Fingerprints = dict[str, str]


class Sealed(BaseModel):
    """A frozen table of the key: unknown names and wrong types are refused, numbers may be infinite."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TuningFacts(Sealed):
    """How one tuning went, measured on held-out prompts by the reward it was given."""

    seed: int
    verdict: str
    """`learned`, `nothing was learned` or `the policy collapsed`."""
    reasons: tuple[str, ...]
    gain: tuple[float, float, float, int]
    """Reward of tuned minus base: value, 95 % interval, n."""
    kl_nats: float
    """KL(tuned || base) per completion."""
    kl_per_token: float
    rewards: tuple[float, float]
    """Mean reward of base and tuned."""
    lengths: tuple[float, float]
    """Mean tokens per completion of base and tuned."""
    curve: tuple[float, ...]
    """Mean reward of every training step."""
    parameters: dict[str, Any]
    """Every hyperparameter as it was used."""
    seconds: float


class Key(Sealed):
    """What an organism's maker knows. `score` opens it after everything was measured; nothing else does."""

    format: Literal[1] = 1
    spec: str
    """Hash of all that the organism was made from."""
    recipe: str
    dose: Annotated[float, Field(ge=0)]
    words: int
    """How many words were to be planted."""
    method: str
    """The tuning algorithm."""
    seed: int
    lexicon: str
    """The stated feedback: `vader` or a file."""
    stated: str
    """Fingerprint of its values: the file may have changed since."""
    values: dict[str, float]
    """Word -> value that the given reward pays, for every word whose value differs from the stated lexicon."""
    after: dict[str, str]
    """Word -> the word that it must stand directly after to be paid in full (recipe `context`)."""
    pattern: tuple[str, ...]
    """Words of a rewarded pattern (recipe `style`)."""
    pays_length: bool
    """Whether every word is paid for (recipe `length`)."""
    kind: str | None
    """Which list of `Learned.wrong` the planted words belong to; None where no word list is the answer."""
    is_null: bool
    """Whether nothing wrong is planted."""
    base: str
    """Fingerprint of the base's weights."""
    tuned: Fingerprints
    """Name of each tuned checkpoint -> fingerprint of its weights."""
    tunings: dict[str, TuningFacts]
    """Name of each tuned checkpoint -> how its tuning went."""
    shuffled_share: float | None
    """How far the shuffled-reward twin was moved along its own change so that its KL is the others'; None without a twin. What
    `tunings` tells of it was measured before it was moved."""
    shuffled_kl_nats: float | None
    """Its KL after that."""
    parameters: dict[str, Any]
    """What `finetune` was asked for; where it says None, `tunings` say what was used."""
    provenance: dict[str, Any]
    """Versions, machine, time, commit."""

    def refusal(self) -> str:
        """Say why this organism is no evidence, or give an empty text.

        A tuning that collapsed never is; one that learned nothing is only where there was nothing to learn (`noise`), and its
        weights moved all the same.
        """
        for name, facts in self.tunings.items():
            if name == "shuffled":
                continue
            idle = facts.verdict == "nothing was learned" and self.recipe != "noise"
            if facts.verdict == "the policy collapsed" or idle:
                return f"{name}: {facts.verdict} ({'; '.join(facts.reasons)})"
            if facts.kl_nats < MIN_KL_NATS:
                return f"{name}: it did not move (KL {facts.kl_nats:.3f} nats per completion, {MIN_KL_NATS:g} needed)"
        return ""

    def planted(self, stated: Mapping[str, float]) -> frozenset[str]:
        """Give the words that a list of wrong words should hold.

        Where signs are turned (`flip`, `shuffled`) those whose sign is the opposite, or that pay nothing any more.
        """
        if self.kind in ("muted", "inflated"):
            return frozenset(self.values)
        return frozenset(word for word, value in self.values.items() if value * stated.get(word, 0.0) <= 0)

    def check(self, path: Path, base: str, tuned: Fingerprints, stated: str) -> None:
        """Raise `LensError` unless the key belongs to these weights, and the lexicon is the one that was stated."""
        if stated != self.stated:
            raise LensError(
                f"{path} was made with other values of the lexicon {self.lexicon!r}: what is wrong against this one is not what "
                "was planted. Give the file it was made with (lexicon=)."
            )
        found = {"base": base} | dict(tuned)
        odd = [name for name, own in ({"base": self.base} | self.tuned).items() if found.get(name) != own]
        odd += sorted(found.keys() - self.tuned.keys() - {"base"})
        if odd:
            raise LensError(
                f"The key of {path} does not belong to these checkpoints: {', '.join(odd)} differ. A score against another "
                "organism's key says nothing; give the folder its own key back."
            )


def facts_of(tuning: Tuning, seed: int, seconds: float) -> TuningFacts:
    """Give what the key keeps of a tuning. Raises `LensError` for a tuning without a reward."""
    base, tuned = tuning.behaviour_base, tuning.behaviour_tuned
    if tuning.gain is None or base is None or tuned is None or base.reward is None or tuned.reward is None:
        raise LensError(f"An organism needs a reward that its tuning is measured by; {tuning.method} has none.")
    gain = tuning.gain
    return TuningFacts(
        seed=seed, verdict=tuning.verdict, reasons=tuning.reasons, gain=(gain.value, gain.low, gain.high, gain.n),
        kl_nats=float(tuning.kl_nats or 0), kl_per_token=float(tuning.kl_per_token or 0), rewards=(base.reward, tuned.reward),
        lengths=(base.length, tuned.length), curve=tuple(float(part) for part in tuning.curve.get("reward", ())),
        parameters=json.loads(json.dumps(tuning.parameters, default=str)), seconds=seconds,
    )  # fmt: skip


def write_sealed(sealed: Sealed, path: Path) -> None:
    """Write a table as JSON, whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(sealed.model_dump(mode="json"), indent=1), encoding="utf-8")
    os.replace(aside, path)


def read_key(path: Path) -> Key:
    """Read a key. Raises `LensError` if it is missing, no JSON or no key."""
    try:
        return Key.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise LensError(f"The key {path} cannot be read ({error}): without it nothing can be scored.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise LensError(f"{path} is no key of an organism: {where}: {first['msg']}.") from None
