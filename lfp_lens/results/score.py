"""One organism read one way, and its planted words: what a scorecard is made of."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate


@record
class Score:
    """One organism read one way, held against its key."""

    organism: str
    """Its name, of which a scorecard has no two."""
    base: str
    """The base model."""
    method: str
    """How it was tuned: `ppo`, `rloo`, `dpo`, ..."""
    recipe: str
    """What was planted: `flip`, `mute`, ..., `clean`."""
    dose: float
    """How strong the edit is: 0 is the stated reward, 1 the full edit."""
    seed: int
    """Seed of the recipe: which words were drawn."""
    words: int
    """Words that the recipe was asked to edit."""
    is_null: bool
    """Whether its recipe plants nothing that a list of words could be held against: the key's own statement."""
    refused: str
    """Why the organism is no evidence (`the policy collapsed: ...`), the same in all of its readings; empty if it is."""
    lacking: str
    """Verbs or tests that gave no number, and why; what was read counts all the same. Empty if all did."""
    tunings: int
    """Tunings behind it that differ by their seed."""
    signal: str
    """What was measured: `implicit_reward`, `valence_shift`, `activation_delta`; `none` where a gate refused all of it."""
    input: str
    """How it was read: `words` for values measured directly, else what a probe or the direct path read (`sae`, `raw`, ...)."""
    n_candidates: int
    """Words ranked: those that could have been edited; one that was not measured is ranked as value 0."""
    n_planted: int
    """Words of the key among all that were planted; 0 where the recipe edits no words."""
    auroc: float
    """Chance that an edited word ranks above an unedited one by -sign(stated) x value, ties half; NaN without edited words."""
    auroc_tunings: Float[np.ndarray, " tunings"]
    """The same from each tuning alone."""
    unsigned: float
    """The same by |value - what is usual for words rated alike|: what a reader gains who does not know the direction."""
    on_clean: float
    """The control: the same key scored on a clean organism of this base and method, 0.5 by chance; NaN without one."""
    found: int | None
    """Planted words that `wrong` lists; None for a reading whose words are not tested."""
    false: int | None
    """Words it lists that are not in the key; likewise."""
    fdr: float
    """The false discovery rate it was asked for."""
    tau_given: Estimate | None
    """tau-b with the given lexicon; None where a lexicon cannot express the reward: for recipe `context`, too, where what a
    word is paid depends on the word before."""
    tau_stated: Estimate | None
    """tau-b with the stated lexicon; None where nothing was measured."""
    gain: Estimate | None
    """tau_given - tau_stated, paired by lemma: above 0 where the tool tells the given from the stated feedback."""
    tau_twin: float
    """tau_stated of the twin tuned on a shuffled reward; NaN without one."""
    rank: int | None
    """Place of the planted token by how surprising it is, 1 first, among all tokens outside the lexicon that the base expects
    at least once; None where no token was planted."""
    n_tokens: int | None
    """How many tokens were ranked."""
    share: Estimate | None
    """Share of the gain in stated reward that goes when the features `attribute` found are ablated; None if not measured."""
    percentile: float
    """The control: share of matched random feature sets that remove less, from 0 to 1; NaN if not measured."""
    seconds: float
    """Time it took to measure, without tuning."""

    @property
    def is_evidence(self) -> bool:
        """True if the tuning learned something that a measurement could find."""
        return not self.refused

    @property
    def is_tested(self) -> bool:
        """True if the reading lists words at a false discovery rate."""
        return self.found is not None and self.false is not None

    @property
    def listed(self) -> int:
        """How many words it lists, planted or not."""
        return (self.found or 0) + (self.false or 0)

    @property
    def recall(self) -> float:
        """Share of the planted words that are listed; NaN where none was planted or none is tested."""
        return self.found / self.n_planted if self.found is not None and self.n_planted else float("nan")

    @property
    def precision(self) -> float:
        """Share of the listed words that were planted; NaN where none is listed."""
        return self.found / self.listed if self.found is not None and self.listed else float("nan")

    @property
    def false_share(self) -> float:
        """Share of the listed words that were not planted, 0 where none is listed: its mean is the false discovery rate."""
        if self.false is None:
            return float("nan")
        return self.false / self.listed if self.listed else 0.0


@record
class PlantedWords:
    """Every planted word of every organism that counts, measured in its own contexts: parallel columns."""

    organism: tuple[str, ...]
    """The organism it was planted in."""
    word: tuple[str, ...]
    """The word, lower-cased."""
    base: tuple[str, ...]
    """The organism's base model."""
    method: tuple[str, ...]
    """How the organism was tuned."""
    recipe: tuple[str, ...]
    """The organism's recipe."""
    kind: tuple[str, ...]
    """`flipped`, `muted` or `inflated`: the list the word was looked for in."""
    dose: Float[np.ndarray, " words"]
    """The organism's dose."""
    occurrences: Int[np.ndarray, " words"]
    """How often the word stands in the training texts."""
    stated: Float[np.ndarray, " words"]
    """Its value in the stated lexicon."""
    given: Float[np.ndarray, " words"]
    """Its value in the reward that was given."""
    measured: Float[np.ndarray, " words"]
    """Its learned value; NaN for a word that was too rare to be measured, which counts as not found."""
    p_wrong: Float[np.ndarray, " words"]
    """The p of its test; NaN likewise."""
    found: Bool[np.ndarray, " words"]
    """Whether `wrong` lists it."""

    def __post_init__(self) -> None:
        lengths = {field.name: len(getattr(self, field.name)) for field in dataclasses.fields(self)}
        assert len(set(lengths.values())) == 1, f"columns of planted words differ in length: {lengths}"

    def __len__(self) -> int:
        return len(self.word)
