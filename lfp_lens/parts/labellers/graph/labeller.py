"""The graph labeller: explains by a token trie, and predicts by it."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.token_trie import TokenTrie, read_trie
from lfp_lens.parts.labellers.base import LABELLERS, Evidence, Setting, Trial
from lfp_lens.parts.labellers.graph.corpus import Corpus, corpus_of, extended
from lfp_lens.parts.labellers.graph.grow import grow
from lfp_lens.parts.labellers.graph.levels import Seen
from lfp_lens.parts.labellers.graph.perturb import Perturbed, perturbed
from lfp_lens.parts.labellers.graph.words import pattern_text
from lfp_lens.parts.labellers.lexicon import MARGIN, check_task, valence_excess
from lfp_lens.parts.labellers.oracle import ask_all
from lfp_lens.results.explain import Example, Explanation

AT_ONCE, WINDOWS_AT_ONCE = 256, 256
"""Features whose contexts are run together, and windows of the background: bounds the activations that are held."""
HALF = 0.5
"""Level of evidence that names none."""


class GraphLabeller:
    """Explains a feature by the suffixes of tokens it fires on, without a language model that explains.

    Description: the trie as a line, `wonderful | (not) good`; `pattern` holds the trie. Relevance to sentiment is the rule of
    the labeller `lexicon`; a distance from its margin is no probability, so `confidence` is NaN.

    With an oracle, contexts are pruned and perturbed and the background is read; without one, the trie is made of the feature's
    own windows alone and the description says so.

    >>> GraphLabeller({"good": 1.9}).name
    'graph'
    """

    name = "graph"
    judges_by_valence = True

    def __init__(self, lexicon: Mapping[str, float]) -> None:
        self._lexicon = lexicon
        self.fingerprint = fingerprint(("graph", dict(lexicon)))

    def explain(self, evidence: Sequence[Evidence], task: str) -> Iterator[Explanation]:
        """Give a pattern for every feature, and whether what it fires on is related to sentiment.

        Raises:
            LensError: for a task that is not about sentiment, or windows without token ids.
        """
        check_task(task, self.name)
        corpora: dict[int, tuple[Corpus, frozenset[tuple[int, ...]]]] = {}
        for start in range(0, len(evidence), AT_ONCE):
            some = evidence[start : start + AT_ONCE]
            asked = [one for one in some if one.oracle is not None]
            found = dict(zip(map(id, asked), zip(_background(asked), perturbed(asked))))
            for one in some:
                acts_N, changed = found.get(id(one), (np.zeros(0), Perturbed((), (), ())))
                key = id(one.background) if len(acts_N) else 0
                if key not in corpora:
                    windows = one.background if len(acts_N) else ()
                    corpora[key] = corpus_of(windows), frozenset(windows)
                yield self._explained(one, *corpora[key], acts_N, changed)

    def detect(self, trials: Sequence[Trial]) -> Iterator[list[bool]]:
        """Tell for each window whether the trie expects strong firing at a token of it."""
        for trial in trials:
            trie = _trie(trial)
            yield [bool(trie.strong(_ids(trial, window)).max(initial=0.0) >= trie.fires) for window in trial.windows]

    def fuzz(self, trials: Sequence[Trial]) -> Iterator[list[bool]]:
        """Tell for each window whether the trie expects, at the marked tokens, what it expects where a feature holds."""
        for trial in trials:
            trie = _trie(trial)
            yield [
                bool(window.marked) and bool(trie.mean(_ids(trial, window))[list(window.marked)].mean() >= trie.holds)
                for window in trial.windows
            ]

    def simulate(self, trials: Sequence[Trial]) -> Iterator[list[Float[np.ndarray, " tokens"]]]:
        """Give the activation that the trie expects at every token, 0 to 1."""
        for trial in trials:
            trie = _trie(trial)
            yield [trie.mean(_ids(trial, window)) for window in trial.windows]

    def _explained(
        self,
        one: Evidence,
        background: Corpus,
        known: frozenset[tuple[int, ...]],
        background_N: np.ndarray,
        changed: Perturbed,
    ) -> Explanation:
        own = _own_windows(one, known)
        corpus = extended(background, [example.ids for example in own], changed.contexts)
        acts_N = np.concatenate([background_N, *(example.activations for example in own), np.array(changed.acts)])
        is_text_W = np.arange(corpus.n_windows) < corpus.n_windows - len(changed.contexts)
        seen = Seen(corpus, acts_N.astype(np.float64), is_text_W, one.level if one.level > 0 else HALF)
        spelling = dict(one.spelling)
        for example in own:
            spelling.update(zip(example.ids, example.tokens))
        trie = grow(seen, changed.gaps, spelling)
        description = pattern_text(trie, seen, spelling)
        if one.oracle is None:
            description += " (from its windows alone, no model asked)"
        return Explanation(description, valence_excess(one, self._lexicon) >= MARGIN, np.nan, trie.to_json())


def _background(evidence: Sequence[Evidence]) -> list[Float[np.ndarray, " tokens"]]:
    """Give each feature's activations on its background, window after window."""
    pieces: list[list[np.ndarray]] = [[np.zeros(0, np.float16)] for _ in evidence]
    for start in range(0, max((len(one.background) for one in evidence), default=0), WINDOWS_AT_ONCE):
        answers = ask_all(evidence, [one.background[start : start + WINDOWS_AT_ONCE] for one in evidence])
        for own, acts in zip(pieces, answers):
            own.append(np.concatenate([own[0], *acts]).astype(np.float16))
    return [np.concatenate(own) for own in pieces]


def _own_windows(one: Evidence, known: frozenset[tuple[int, ...]]) -> list[Example]:
    """Give the different windows of a feature that its background does not hold."""
    own = [*one.examples, *one.silent]
    for example in own:
        if len(example.ids) != len(example.tokens):
            raise LensError(f"The labeller 'graph' reads token ids, and a window of {one.feature} comes without them.")
    return list({example.ids: example for example in own if example.ids and example.ids not in known}.values())


def _trie(trial: Trial) -> TokenTrie:
    if not trial.explanation.pattern:
        raise LensError(
            f"The labeller 'graph' predicts by a pattern, and the explanation tried on {trial.feature} has none."
        )
    return read_trie(trial.explanation.pattern)


def _ids(trial: Trial, window: Example) -> tuple[int, ...]:
    if len(window.ids) != len(window.tokens):
        raise LensError(f"The labeller 'graph' reads token ids, and a window of {trial.feature} comes without them.")
    return window.ids


@LABELLERS.add("graph")
def _graph(argument: str, setting: Setting) -> GraphLabeller:
    if argument:
        raise LensError(f"The labeller 'graph' takes nothing after its name; {argument!r} given.")
    check_task(setting.task, "graph")
    return GraphLabeller(setting.lexicon)
