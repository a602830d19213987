"""The controls of explain: shuffled explanations, random directions, asking again, a second judge, blindness."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store
from lfp_lens.parts.labellers import (
    Evidence,
    LexiconLabeller,
    RecordedLabeller,
    RecordingLabeller,
    Setting,
    Trial,
    make_labeller,
)
from lfp_lens.parts.pair import Pair
from lfp_lens.results.explain import Example, Explanation, Labels
from lfp_lens.results.explain_scores import Bill
from lfp_lens.results.train_sae import SAESet
from lfp_lens.stages.explain import explain
from lfp_lens.stages.explain.asking import agreement, bill_of
from lfp_lens.stages.explain.scoring import balanced_accuracy, correlation, deranged
from lfp_lens.stages.explain.trials import Held
from tests.tiny import tiny_pair, tiny_texts, word_saes

WORDS = ("wonderful", "terrible", "table", "river", "garden", "paper")
TEXTS = tiny_texts(160)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return tiny_pair()


@pytest.fixture(scope="module")
def saes(pair: Pair) -> SAESet:
    return word_saes(pair, WORDS)


class Fake:
    """A labeller whose judgement is a function of the evidence and of how often it was asked."""

    name = "fake"

    def __init__(self, judge: Callable[[Evidence, int], bool | None], name: str = "fake") -> None:
        self.name, self.judge = name, judge
        self.evidence: list[Sequence[Evidence]] = []
        self.trials: list[Trial] = []

    def explain(self, evidence: Sequence[Evidence], task: str) -> list[Explanation | None]:
        self.evidence.append(evidence)
        said = [self.judge(one, len(self.evidence)) for one in evidence]
        return [None if one is None else Explanation(asked.feature, one, 0.9) for asked, one in zip(evidence, said)]

    def detect(self, trials: Sequence[Trial]) -> list[list[bool] | None]:
        self.trials += trials
        return [[True] * len(trial.windows) for trial in trials]

    def fuzz(self, trials: Sequence[Trial]) -> list[list[bool] | None]:
        return self.detect(trials)


def number(evidence: Evidence) -> int:
    return int(evidence.feature.split()[-1])


def even(evidence: Evidence, times: int) -> bool:
    return number(evidence) % 2 == 0


def labels_of(pair: Pair, saes: SAESet, labeller: Any, **options: Any) -> Labels:
    return explain(pair, saes, TEXTS, labeller=labeller, **({"select": "all", "n_random": 0} | options))


# --- asking again ---


def test_asked_again_the_labeller_sees_other_windows_of_the_same_features(pair: Pair, saes: SAESet) -> None:
    fake = Fake(even)
    found = labels_of(pair, saes, fake, repeat=True, n_examples=4)
    first, second = fake.evidence
    assert [one.feature for one in first] == [one.feature for one in second]
    for one, other in zip(first, second):
        seen, fresh = ({(window.ids, window.kind == "top") for window in part.examples} for part in (one, other))
        assert fresh and seen.isdisjoint(fresh)
    (again,) = found.agreement
    assert (again.kind, again.by, again.agreement, again.kappa.value) == ("repeat", "fake", 1.0, 1.0)
    assert found.is_reliable is True


def test_a_labeller_that_contradicts_itself_is_unreliable_and_every_table_says_so(pair: Pair, saes: SAESet) -> None:
    found = labels_of(pair, saes, Fake(lambda one, times: number(one) < 3 * times), repeat=True)
    (again,) = found.agreement
    # First 0, 1, 2; then all six: half of them agree, and kappa is 0.
    assert (again.agreement, again.kappa.value, again.kappa.n) == (0.5, 0.0, 6)
    assert found.is_reliable is False
    assert set(found.to_frame()["relevance"]) == {"unreliable"} and "unreliable" in found._repr_html_()


def test_agreement_has_a_row_for_every_listed_feature(pair: Pair, saes: SAESet) -> None:
    """The dead feature heads the list here."""
    found = explain(pair, saes, TEXTS, labeller=Fake(even), judge=Fake(even, "other"), repeat=True, k=6, n_random=0)
    assert found.status == ("dead", *["labelled"] * 6)
    for one in found.agreement:
        assert one.is_judged.tolist() == [False, *[True] * 6]
        assert one.is_relevant.tolist() == [False, *(index % 2 == 0 for index in found.index[1:].tolist())]
        assert one.kappa.n == 6


def test_a_second_judge_sees_the_same_windows(pair: Pair, saes: SAESet) -> None:
    one, other = Fake(even), Fake(lambda evidence, times: number(evidence) in (0, 2), name="other")
    found = labels_of(pair, saes, one, judge=other)
    assert [[shown.ids for shown in asked.examples] for asked in one.evidence[0]] == [
        [shown.ids for shown in asked.examples] for asked in other.evidence[0]
    ]
    (judged,) = found.agreement
    assert (judged.kind, judged.by) == ("judge", "other")
    assert judged.is_relevant.tolist() == [True, False, True, False, False, False, False], "the last is dead"
    assert judged.is_judged.tolist() == [True] * 6 + [False]
    # Agree on 5 of 6; by chance 1/2 * 1/3 + 1/2 * 2/3 = 1/2: kappa (5/6 - 1/2) / (1/2) = 2/3.
    assert judged.agreement == pytest.approx(5 / 6) and judged.kappa.value == pytest.approx(2 / 3)
    assert judged.kappa.low < 2 / 3 < judged.kappa.high and found.is_reliable is True


def test_kappa_is_over_what_both_answered_and_none_where_nothing_varies() -> None:
    def said(*values: bool | None) -> list[Explanation | None]:
        return [None if value is None else Explanation("", value, math.nan) for value in values]

    found = agreement("judge", "x", said(True, None, False, True), said(True, True, None, False), 0)
    assert found.is_judged.tolist() == [True, False, False, True] and found.agreement == 0.5
    assert not found.is_relevant[1]
    assert math.isnan(agreement("judge", "x", said(True, True), said(True, True), 0).kappa.value)
    assert math.isnan(agreement("judge", "x", said(None), said(True), 0).agreement)


# --- shuffled and random ---


@pytest.mark.parametrize("n", range(2, 12))
def test_in_a_derangement_nothing_keeps_its_place(n: int) -> None:
    order = deranged(n, seed=3)
    assert sorted(order) == list(range(n)) and all(at != place for place, at in enumerate(order))


def test_a_single_explanation_cannot_be_shuffled() -> None:
    assert deranged(1, 0) == [] == deranged(0, 0)


def test_every_explanation_is_tried_once_on_its_own_and_once_on_another_features_windows(
    pair: Pair, saes: SAESet
) -> None:
    fake = Fake(even)
    labels_of(pair, saes, fake, scores=("detection",))
    own = [trial for trial in fake.trials if trial.explanation.description == trial.feature]
    other = [trial for trial in fake.trials if trial.explanation.description != trial.feature]
    assert len(own) == len(other) == 6 == len({trial.explanation.description for trial in other})
    assert [trial.windows for trial in own] == [trial.windows for trial in other]


def test_random_directions_are_explained_and_scored_and_not_listed(pair: Pair, saes: SAESet) -> None:
    fake = Fake(even)
    found = labels_of(pair, saes, fake, n_random=3)
    names = [one.feature for one in fake.evidence[0]]
    assert 0 < sum(name.startswith("random") for name in names) <= 3
    assert len(found.index) == 7 and found.status.count("labelled") == 6
    assert len(found.score("detection").random) == len(names) - 6


def test_random_directions_do_not_change_what_features_are_tried_on(pair: Pair, saes: SAESet) -> None:
    def tried(n_random: int, **options: Any) -> dict[str, list[Any]]:
        fake = Fake(even)
        labels_of(pair, saes, fake, n_random=n_random, **options)
        found: dict[str, list[Any]] = {}
        for trial in fake.trials:
            windows = [(window.ids, window.marked) for window in trial.windows]
            found.setdefault(trial.feature, []).append(windows)
        return {name: windows for name, windows in found.items() if not name.startswith("random")}

    alone = tried(0)
    assert len(alone) == 6 and alone == tried(4) == tried(12)
    few = tried(0, select="mmcs", k=2)
    assert len(few) == 2 and any(few[name] != alone[name] for name in few), "which features are explained does"


def test_no_random_direction_can_be_asked_for(pair: Pair, saes: SAESet) -> None:
    assert len(labels_of(pair, saes, Fake(even)).score("detection").random) == 0


# --- blindness ---


def test_what_is_tried_does_not_show_the_answer(pair: Pair, saes: SAESet) -> None:
    fake = Fake(even)
    labels_of(pair, saes, fake)
    for trial in fake.trials:
        assert not any(window.activations.any() for window in trial.windows)
        assert len({window.kind for window in trial.windows}) == 1


def test_a_labeller_sees_neither_effects_nor_weights_nor_a_models_name(pair: Pair, saes: SAESet) -> None:
    fake = Fake(even)
    labels_of(pair, saes, fake)
    fields = {field.name for field in dataclasses.fields(Evidence)}
    assert fields == {
        "feature", "examples", "silent", "words", "total", "count", "tokens", "promotes", "suppresses", "level", "background",
        "spelling", "oracle",
    }  # fmt: skip
    for one in fake.evidence[0]:
        assert one.feature in {f"blocks.0.hook_mlp_out {index}" for index in range(6)}
        assert all(shown.activations.min() >= 0 and shown.activations.max() <= 1 for shown in one.examples)
        assert one.oracle is not None and 0 < one.level <= 1


def test_the_evidence_can_be_asked_about_and_the_model_says_the_same(pair: Pair, saes: SAESet) -> None:
    """Layer 0 sees one token at a time: what surrounds a window does not matter."""
    fake = Fake(even)
    labels_of(pair, saes, fake)
    for one in fake.evidence[0]:
        assert one.oracle is not None
        for shown, said in zip(one.examples, one.oracle([shown.ids for shown in one.examples])):
            np.testing.assert_allclose(said, shown.activations, atol=1e-4)
        assert {one.spelling[token] for shown in one.examples for token in shown.ids} == {
            piece for shown in one.examples for piece in shown.tokens
        }
        assert len(one.background) > 10 and set(map(len, one.background)) <= set(range(1, 33))
        assert one.tokens[0] == f" {WORDS[number(one)]}"


# --- scores ---


def held(truth: list[bool], *activations: list[float]) -> Held:
    shown = tuple(Example(("a",) * len(row), np.zeros(len(row))) for row in activations)
    return Held(shown, np.array(truth), tuple(map(np.array, activations)))


def test_balanced_accuracy_weighs_both_kinds_alike() -> None:
    given = held([True, True, True, False], [1.0], [1.0], [1.0], [0.0])
    assert balanced_accuracy([True, True, False, False], given) == pytest.approx((2 / 3 + 1) / 2)
    assert balanced_accuracy([True] * 4, given) == 0.5


def test_a_simulation_is_correlated_over_all_tokens_of_the_windows() -> None:
    given = held([True, False], [0.0, 1.0], [0.5])
    assert correlation([np.array([0.0, 0.5]), np.array([0.25])], given) == pytest.approx(1)
    assert correlation([np.array([1.0, 0.0]), np.array([0.5])], given) == pytest.approx(-1)
    assert correlation([np.ones(2), np.ones(1)], given) == 0
    with pytest.raises(LensError, match="one number per token"):
        correlation([np.ones(3), np.ones(1)], given)


def test_only_the_scores_that_were_asked_for_are_measured(pair: Pair, saes: SAESet) -> None:
    fake = Fake(even)
    found = labels_of(pair, saes, fake, scores=())
    assert fake.trials == [] and found.scores == () and found.to_frame().shape[0] == 7
    with pytest.raises(LensError, match="'detection' was not measured; there is nothing"):
        found.score("detection")
    found.plot()
    assert [one.kind for one in labels_of(pair, saes, Fake(even), scores=("fuzzing",)).scores] == ["fuzzing"]


def test_the_graph_simulates_and_the_lexicon_does_not(pair: Pair, saes: SAESet) -> None:
    assert [one.kind for one in labels_of(pair, saes, "lexicon").scores] == ["detection", "fuzzing"]
    found = labels_of(pair, saes, "graph").score("simulation")
    assert (found.own[:6] > 0.95).all() and (found.shuffled[:6] < 0.3).all()
    assert found.lead.low > 0.5 and found.mean.n == 6


# --- answers that do not come ---


def test_a_feature_without_a_usable_answer_is_unanswered_and_not_scored(pair: Pair, saes: SAESet) -> None:
    found = labels_of(pair, saes, Fake(lambda one, times: None if number(one) == 1 else even(one, times)), repeat=True)
    assert found.status[1] == "unanswered" and found.description[1] == "" and not found.is_relevant[1]
    assert np.isnan(found.detection[1]) and np.isnan(found.detection_shuffled[1]) and found.n_scored[1] == 0
    assert found.agreement[0].is_judged.tolist() == [True, False, True, True, True, True, False]


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        (
            "detect",
            lambda trials: [[True]] * len(trials),
            r"fake gave 1 answers about \d+ windows \(detection of blocks",
        ),
        ("fuzz", lambda trials: [], "fake gave 0 answers to 12 questions"),
        ("explain", lambda evidence, task: ["praise"] * len(evidence), "fake gave a str about blocks.0.hook_mlp_out 0"),
    ],
)
def test_an_answer_of_the_wrong_kind_is_told(
    pair: Pair, saes: SAESet, method: str, answer: Callable[..., Any], message: str
) -> None:
    fake = Fake(even)
    setattr(fake, method, answer)
    with pytest.raises(LensError, match=message):
        labels_of(pair, saes, fake)


# --- what is kept ---


def test_recorded_answers_give_the_same_labels(pair: Pair, saes: SAESet, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    asked = make_labeller("lexicon", Setting({"wonderful": 2.0, "terrible": -2.0}, "sentiment", tmp_path))
    first = labels_of(pair, saes, RecordingLabeller(asked, path), n_random=2, task="sentiment")
    again = labels_of(pair, saes, f"recorded:{path}", n_random=2, task="sentiment")
    assert again.description == first.description and again.relevant.features == first.relevant.features
    for one, other in zip(again.scores, first.scores, strict=True):
        for name in ("own", "shuffled", "random"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    with pytest.raises(LensError, match="as it is asked here"):
        labels_of(pair, saes, f"recorded:{path}", n_random=2, seed=1, task="sentiment")


def test_another_recorded_file_is_another_result_and_another_budget_is_not(
    pair: Pair, saes: SAESet, tmp_path: Path
) -> None:
    store, path = Store(tmp_path / "run"), tmp_path / "mine.jsonl"

    def run(**options: Any) -> Labels:
        return explain(
            pair, saes, TEXTS, labeller=f"recorded:{path}", k=1, n_random=0, scores=(), store=store, **options
        )

    line = '{{"kind": "explanation", "feature": "blocks.0.hook_mlp_out 0", "description": "{}"}}'
    path.write_text(line.format("praise"))
    assert run().description == ("", "praise") == run(budget_usd=3.0, concurrency=2, send="sync").description
    path.write_text(line.format("blame"))
    assert run().description == ("", "blame")
    assert len(list(store.root.glob("explain-*"))) == 2


def test_bills_of_labeller_and_judge_are_added() -> None:
    class Paid:
        bill = Bill(requests=2, tokens_in=10, usd=0.5, estimate_usd=None, ledger="replies")

    class Unpriced:
        bill = Bill(requests=1, usd=None)

    assert bill_of(Paid(), None).usd == 0.5 and bill_of(Paid(), Paid()).requests == 4
    twice = Paid()
    assert bill_of(twice, twice).requests == 2, "one object is paid once"
    both = bill_of(Paid(), Unpriced())
    assert (both.requests, both.usd, both.estimate_usd, both.ledger) == (3, None, None, "replies")
    assert bill_of(object(), None).told() == "nothing: the labeller asks nobody"


# --- opinions that could not differ ---


@pytest.mark.parametrize(("labeller", "judge", "repeat"), [("lexicon", None, True), ("graph", None, True),
                                                           ("lexicon", "graph", False), ("graph", "lexicon", False)])  # fmt: skip
def test_a_second_opinion_that_could_not_differ_is_refused(
    pair: Pair, saes: SAESet, labeller: str, judge: str | None, repeat: bool
) -> None:
    with pytest.raises(LensError, match="say the same again" if repeat else "no second opinion"):
        labels_of(pair, saes, labeller, judge=judge, repeat=repeat)


def test_a_labeller_is_no_judge_of_itself(pair: Pair, saes: SAESet, tmp_path: Path) -> None:
    fake = Fake(even)
    path, copy = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for file in (path, copy):
        file.write_text('{"kind": "explanation", "feature": "blocks.0.hook_mlp_out 0"}\n')
    for labeller, judge in (
        (fake, fake), (fake, Fake(even)), (fake, RecordingLabeller(fake, tmp_path / "kept.jsonl")),
        (f"recorded:{path}", f"recorded:{copy}"), ("openai:m", "openai:m"),
    ):  # fmt: skip
        with pytest.raises(LensError, match="agrees with itself by construction"):
            labels_of(pair, saes, labeller, judge=judge)
    assert fake.evidence == []


def test_recording_a_rule_makes_it_no_second_opinion(pair: Pair, saes: SAESet, tmp_path: Path) -> None:
    rule = RecordingLabeller(LexiconLabeller({"wonderful": 2.0}), tmp_path / "kept.jsonl")
    with pytest.raises(LensError, match="say the same again"):
        labels_of(pair, saes, rule, repeat=True)
    with pytest.raises(LensError, match="no second opinion"):
        labels_of(pair, saes, rule, judge="graph")


def test_answers_that_fit_any_windows_cannot_be_asked_again(pair: Pair, saes: SAESet, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(f'{{"kind": "explanation", "feature": "blocks.0.hook_mlp_out {at}"}}' for at in range(6)))
    options: dict[str, Any] = {"scores": (), "repeat": True}
    for labeller in (f"recorded:{path}", RecordingLabeller(RecordedLabeller(path), tmp_path / "kept.jsonl")):
        with pytest.raises(LensError, match=r"without a key.*say the same again"):
            labels_of(pair, saes, labeller, **options)
    labels_of(pair, saes, RecordingLabeller(Fake(even), tmp_path / "keyed.jsonl"), **options)
    (again,) = labels_of(pair, saes, f"recorded:{tmp_path / 'keyed.jsonl'}", **options).agreement
    assert (again.kind, again.by, again.kappa.value) == ("repeat", "recorded:keyed.jsonl", 1.0)


def test_a_rule_may_judge_what_another_labeller_said(pair: Pair, saes: SAESet) -> None:
    found = labels_of(pair, saes, Fake(even), judge="lexicon", scores=())
    (one,) = found.agreement
    assert (one.kind, one.by) == ("judge", "lexicon")


def test_all_questions_are_foretold_before_the_first(pair: Pair, saes: SAESet) -> None:
    class Paid(Fake):
        def foretell(self, numbers: dict[str, int], n_examples: int, task: str) -> None:
            assert not self.evidence
            self.foretold = (dict(numbers), n_examples, task)

    paid = Paid(even)
    found = labels_of(pair, saes, paid, repeat=True, n_random=2, n_examples=4, scores=("detection",), task="praise")
    asked, alive = sum(map(len, paid.evidence)), len(found.index) - found.status.count("dead")
    assert paid.foretold == ({"explain": asked, "detect": 2 * alive + 2, "fuzz": 0}, 4, "praise")
    assert asked == 2 * alive + 2
