"""What a labeller is given and what it must be able to do.

A labeller is blind: it sees texts, activations, tokens and the task, never a probe weight, an effect, a side or a model's name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.errors import LensError
from lfp_lens.core.registry import Registry
from lfp_lens.results.explain import Example, Explanation

Oracle = Callable[[Sequence[Sequence[int]]], list[Float[np.ndarray, " tokens"]]]
"""Token ids of some contexts -> the feature's activation at every token of each, divided by its maximum over all texts."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the shown texts say about one feature. Activations are divided by its maximum over all texts."""

    feature: str
    """Its name in messages, site and index; it is not shown to a model."""
    examples: tuple[Example, ...]
    """Windows where it fires: the strongest first, then some of every quantile of its activation."""
    silent: tuple[Example, ...]
    """Windows where it does not: some drawn at random, and some that hold the tokens it fires on (hard negatives)."""
    words: tuple[str, ...]
    """Every word and punctuation mark of the shown texts, lower-cased; "" stands for white space."""
    total: Float[np.ndarray, " words"]
    """Sum of the feature's activation over those of each word's tokens that are among its strongest 1 %."""
    count: Int[np.ndarray, " words"]
    """Tokens of each word."""
    tokens: tuple[str, ...] = ()
    """The tokens it fires on most, the first the most."""
    promotes: tuple[str, ...] = ()
    """The tokens that its decoder row makes likelier, through the unembedding alone (logit lens), the first the most."""
    suppresses: tuple[str, ...] = ()
    """The tokens that its decoder row makes less likely."""
    level: float = 0.0
    """The activation from which it counts as firing strongly, as on the strongest 1 % of the shown tokens."""
    background: tuple[tuple[int, ...], ...] = ()
    """Token ids of windows of the shown texts drawn at random, the same for all features: what text is like where nothing is
    chosen for a feature. A labeller with an oracle may read them."""
    spelling: Mapping[int, str] = field(default_factory=dict)
    """How tokens of the windows and of the background are spelt, by id."""
    oracle: Oracle | None = None
    """Runs the model on contexts of the labeller's choice, for labellers that perturb texts; None where there is no model."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Held-out windows on which one explanation is tried."""

    feature: str
    """Whose windows: a name for messages, site and index."""
    explanation: Explanation
    """What is tried: the feature's own explanation or, as a control, another one's."""
    windows: tuple[Example, ...]
    """The windows, mixed. The labeller must not read their activations; it reads `tokens`, `ids` and, in fuzzing, `marked`."""


@runtime_checkable
class Labeller(Protocol):
    """Explains features in words, judges them against a task, and predicts where they fire.

    Every method takes many features at once and gives one answer for each, in order, as they come; how many requests run at
    once is the labeller's business. None stands for an answer that was asked for and never came in a usable form. A labeller
    that is to be used with a store needs a `fingerprint` string beside these.
    """

    name: str
    """Stands in the result."""

    def explain(self, evidence: Sequence[Evidence], task: str) -> Iterable[Explanation | None]:
        """Say what each feature responds to, whether that is related to the task, and how sure this is."""
        ...

    def detect(self, trials: Sequence[Trial]) -> Iterable[Sequence[bool] | None]:
        """Tell for each window of each trial whether a feature with this explanation fires somewhere in it."""
        ...

    def fuzz(self, trials: Sequence[Trial]) -> Iterable[Sequence[bool] | None]:
        """Tell for each window whether a feature with this explanation fires on the tokens that are marked in it."""
        ...


@runtime_checkable
class Simulator(Protocol):
    """A labeller that can also say how strongly a feature fires at every token."""

    def simulate(self, trials: Sequence[Trial]) -> Iterable[Sequence[Float[np.ndarray, " tokens"]] | None]:
        """Give for each window of each trial the activation expected at each of its tokens, from 0 to 1."""
        ...


@dataclass(frozen=True)
class Setting:
    """What a labeller made by name may need."""

    lexicon: Mapping[str, float]
    """The stated lexicon."""
    task: str
    """What relevance will be judged against."""
    folder: Path
    """Where paid replies, the ledger and pending batches are kept."""
    spending: Mapping[str, Any] = field(default_factory=dict)
    """`budget_usd`, `budget_tokens`, `prices`, `concurrency`, `send`: see `parts.chat`."""


SPENDING = ("budget_usd", "budget_tokens", "prices", "concurrency", "send", "base_url")
"""Arguments that decide what may be paid and how it is asked, not what is found."""


@runtime_checkable
class Estimating(Protocol):
    """A labeller that costs, and says how much before it is asked."""

    def foretell(self, numbers: Mapping[str, int], n_examples: int, task: str) -> None:
        """Tell what so many questions of each kind are expected to cost; raises `LensError` where that cannot be afforded."""
        ...


LABELLERS: Registry[Callable[[str, Setting], Labeller]] = Registry("labeller")
"""Name -> function of (what follows the colon in the name, setting) giving a labeller."""


def make_labeller(labeller: Any, setting: Setting) -> Labeller:
    """Give the labeller of a name such as `lexicon` or `openai:gpt-4o`, or check an object that is one.

    Raises:
        LensError: for an unknown name, a name without what it needs, an empty task or one that the labeller cannot judge,
            or an object that does not follow the protocol.
    """
    if not setting.task.strip():
        raise LensError(
            'The task is empty: say in words what relevance is judged against, such as "positive sentiment".'
        )
    if isinstance(labeller, str):
        name, _, argument = labeller.partition(":")
        return LABELLERS[name](argument, setting)
    if not isinstance(labeller, Labeller):
        raise LensError(
            f"The labeller {labeller!r} is neither a name ({', '.join(LABELLERS)}) nor an object with "
            "`name`, `explain`, `detect` and `fuzz`."
        )
    return labeller
