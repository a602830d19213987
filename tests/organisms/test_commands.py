"""`lfp-lens organism` and `lfp-lens score`: what reaches the functions, and that nothing printed gives a recipe away."""

import inspect
import re
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lfp_lens import cli
from lfp_lens.core.errors import LensError
from lfp_lens.organisms.recipes import RECIPES

MADE = {
    "doses": [1.0], "seeds": [0], "methods": ["ppo"], "folder": "organisms", "words": 10, "replicates": 3, "shuffled": True,
    "lexicon": "vader", "texts": None, "preset": None, "finetune": {}, "workers": None, "device": "cpu",
}  # fmt: skip
MEASURED = {
    "verbs": ["probe"], "causes": False, "signals": ["implicit_reward"], "fdr": 0.1, "texts": None, "n_texts": None,
    "contexts": 8, "store": "runs/score", "device": "cpu", "lexicon": None,
}  # fmt: skip


@dataclass
class FakeCard:
    text: str = "flip 1: recall 0.80 (8/10)"

    def __str__(self) -> str:
        return self.text

    def plot(self) -> Any:
        import plotly.graph_objects as go

        return go.Figure(layout={"title": "recall"})


@dataclass
class Calls:
    """What grid and score were asked; what they answer."""

    made: list[Any]
    card: FakeCard = field(default_factory=FakeCard)
    grids: list[tuple[Any, Any, dict[str, Any]]] = field(default_factory=list)
    scores: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)

    def organism_grid(self, bases: Any, recipes: Any, **options: Any) -> list[Any]:
        self.grids.append((bases, recipes, options))
        return self.made

    def score(self, organisms: Any, **options: Any) -> FakeCard:
        self.scores.append((organisms, options))
        return self.card


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """Put functions that only remember their calls in the place of those that tune and measure."""
    made = Calls([an_organism(tmp_path / "world-1a2b3c4d", tunings=3)])
    for module, name in (("grid", "organism_grid"), ("scoring", "score")):
        fake = types.ModuleType(f"lfp_lens.organisms.{module}")
        setattr(fake, name, getattr(made, name))
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return made


def an_organism(path: Path, *, tunings: int, shuffled: bool = True) -> Any:
    """Make an organism's folder by hand, with a key that cannot be read."""
    from lfp_lens.organisms.folder import Organism

    for name in (*(f"seed-{at}" for at in range(tunings)), *(["shuffled"] if shuffled else [])):
        (path / "tuned" / name).mkdir(parents=True)
    (path / "key.json").write_text('{"recipe": "flip"', encoding="utf-8")
    return Organism(path)


# What reaches the functions


def test_organism_makes_a_flip_of_ten_words_unless_told_otherwise(calls: Calls, told: Any) -> None:
    assert told("organism", "world")[0] == 0
    assert calls.grids == [(["world"], ["flip"], MADE)]


def test_organism_passes_everything_on(calls: Calls, told: Any) -> None:
    told(
        "organism", "imdb-neox-2m", "--recipe", "mute", "style", "--dose", "0.5", "2", "--seed", "3", "4", "--method", "rloo",
        "dpo", "--words", "7", "--replicates", "1", "--no-shuffled", "--lexicon", "mine.csv", "--texts", "reviews.txt",
        "--preset", "own.toml", "--organisms", "folder", "--workers", "2", "--set", "steps=5", "--set", "finetune.lr = 1e-4",
    )  # fmt: skip
    assert calls.grids == [(["imdb-neox-2m"], ["mute", "style"], {
        "doses": [0.5, 2.0], "seeds": [3, 4], "methods": ["rloo", "dpo"], "folder": "folder", "words": 7, "replicates": 1,
        "shuffled": False, "lexicon": "mine.csv", "texts": "reviews.txt", "preset": "own.toml",
        "finetune": {"steps": 5, "lr": 1e-4}, "workers": 2, "device": "cpu",
    })]  # fmt: skip


def test_every_base_has_its_own_number_of_words(calls: Calls, told: Any) -> None:
    told("organism", "world", "stories260K")
    assert [(bases, options["words"]) for bases, _, options in calls.grids] == [(["world"], 10), (["stories260K"], 30)]


def test_the_verbs_on_offer_are_those_that_are_run() -> None:
    from lfp_lens.organisms import blind, commands

    assert commands.VERBS == blind.VERBS


@pytest.mark.parametrize(
    "option", ["--recipe mute", "--dose 0.5", "--seed 1", "--words 3", "--no-shuffled", "--set steps=5"]
)
def test_what_is_made_cannot_be_said_of_folders_that_are_there(calls: Calls, told: Any, option: str) -> None:
    code, _, err = told("score", "one", *option.split())
    assert code == 2 and f"{option.split()[0]} says what is made: name --bases" in err
    assert not calls.scores


def test_a_figure_without_a_folder_is_refused_before_anything_is_made(calls: Calls, told: Any) -> None:
    code, _, err = told("score", "one", "--plot", "nowhere/recall.html")
    assert code == 2 and "there is no folder nowhere" in err and not calls.scores


def test_score_measures_the_folders_it_is_given_and_makes_nothing(calls: Calls, told: Any) -> None:
    code, out, _ = told("score", "one", "two")
    assert (code, out) == (0, f"{calls.card}\n")
    assert calls.grids == []
    assert calls.scores == [(["one", "two"], MEASURED)]


def test_score_without_a_word_is_the_quick_card(calls: Calls, told: Any) -> None:
    told("score")
    assert calls.grids == [(["world"], ["flip", "clean"], MADE)]
    assert calls.scores == [(calls.made, MEASURED)]


def test_score_first_makes_what_its_bases_lack(calls: Calls, told: Any) -> None:
    told("score", "one", "--bases", "world", "--recipe", "mute", "--seed", "0", "1")
    [(bases, recipes, options)] = calls.grids
    assert (bases, recipes, options["seeds"]) == (["world"], ["mute"], [0, 1])
    assert calls.scores[0][0] == ["one", *calls.made]


def test_score_passes_everything_on(calls: Calls, told: Any) -> None:
    told(
        "score", "one", "--verbs", "probe", "train_sae", "--causes", "--signals", "activation_delta", "--fdr", "0.2",
        "--n-texts", "90", "--contexts", "4", "--texts", "imdb", "--store", "else",
    )  # fmt: skip
    assert calls.scores[0][1] == {
        "verbs": ["probe", "train_sae"], "causes": True, "signals": ["activation_delta"], "fdr": 0.2, "n_texts": 90,
        "contexts": 4, "texts": "imdb", "store": "else", "device": "cpu", "lexicon": None,
    }  # fmt: skip


def test_the_functions_take_what_the_commands_pass() -> None:
    from lfp_lens.organisms.grid import organism_grid
    from lfp_lens.organisms.making import organism
    from lfp_lens.organisms.scoring import score

    of_grid = inspect.signature(organism_grid).parameters
    inspect.signature(organism).bind("world", **{name: value for name, value in MADE.items() if name not in of_grid})
    inspect.signature(score).bind([], **MEASURED)


def test_the_defaults_of_the_commands_are_those_of_the_functions() -> None:
    from lfp_lens.organisms.grid import organism_grid
    from lfp_lens.organisms.making import organism
    from lfp_lens.organisms.scoring import score

    def odd(given: dict[str, Any], *functions: Any) -> set[str]:
        own = {name: part.default for one in functions for name, part in inspect.signature(one).parameters.items()}
        plain = {name: tuple(value) if isinstance(value, list) else value or None for name, value in given.items()}
        return {name for name, value in plain.items() if (own[name] or None) != value}

    # A world is small: it has fewer words than the default of the function asks for. A command keeps what it measured.
    assert odd(MADE, organism, organism_grid) == {"words"}
    assert odd(MEASURED, score) == {"store"}


# What is printed


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_organism_tells_where_an_organism_is_and_not_what_it_is(recipe: str, calls: Calls, told: Any) -> None:
    code, out, err = told("organism", "world", "--recipe", recipe, "--dose", "0.5")
    assert (code, err) == (0, "")
    assert out == f"{calls.made[0].path}  3 tunings and a twin\n"


def test_organism_tells_how_many_tunings_there_are(calls: Calls, told: Any, tmp_path: Path) -> None:
    calls.made[:] = [
        an_organism(tmp_path / "a", tunings=2, shuffled=False),
        an_organism(tmp_path / "b", tunings=12),
    ]
    assert told("organism", "world")[1].splitlines() == [
        f"{tmp_path / 'a'}  2 tunings",
        f"{tmp_path / 'b'}  12 tunings and a twin",
    ]


def test_a_card_cannot_command_the_terminal(calls: Calls, told: Any) -> None:
    calls.card.text = "word \x1b[2Jbad"
    assert told("score", "one")[1] == "word \\x1b[2Jbad\n"


def test_the_figure_is_a_file_that_needs_no_network(calls: Calls, told: Any, tmp_path: Path) -> None:
    told("score", "one", "--plot", str(tmp_path / "recall.html"))
    page = (tmp_path / "recall.html").read_text(encoding="utf-8")
    assert "recall" in page
    assert 'src="http' not in page


@pytest.mark.parametrize("command", ["organism", "score"])
def test_the_help_says_what_every_recipe_plants(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert [name for name in RECIPES if not re.search(rf"\b{name}\W+{re.escape(RECIPES[name].says)}", shown)] == []


# Mistakes


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("organism",), "the following arguments are required: BASE. See `lfp-lens organism --help`."),
        (("organism", "world", "--dosis", "1"), "unexpected argument '--dosis' (Did you mean '--dose'?)"),
        (("organism", "world", "--dose", "much"), "invalid float value: 'much'"),
        (("organism", "world", "--seed", "0.5"), "invalid int value: '0.5'"),
        (("organism", "world", "--set", "steps"), "--set steps: expected KEY=VALUE, as in --set steps=60."),
        (("organism", "world", "--set", "stepps=5"), "Did you mean 'finetune.steps'?"),
        (("score", "one", "--causal"), "unexpected argument '--causal'"),
        (("score", "one", "--fdr", "low"), "invalid float value: 'low'"),
    ],
)
def test_a_users_mistake_is_one_message_and_makes_nothing(
    argv: tuple[str, ...], message: str, calls: Calls, told: Any
) -> None:
    code, out, err = told(*argv)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("lfp-lens: ")
    assert calls.grids == calls.scores == []


def test_what_making_refuses_is_one_message(calls: Calls, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **options: Any) -> Any:
        raise LensError("500 words to flip were asked for")

    monkeypatch.setattr(sys.modules["lfp_lens.organisms.grid"], "organism_grid", refuse)
    assert told("organism", "world", "--words", "500") == (2, "", "lfp-lens: 500 words to flip were asked for\n")


def test_a_folder_without_organisms_is_refused(told: Any, tmp_path: Path) -> None:
    code, out, err = told("score", str(tmp_path))
    assert (code, out) == (2, "")
    assert f"{tmp_path} is no organism" in err


def test_an_organism_whose_key_was_taken_away_is_measured_by_others_not_scored(told: Any, tmp_path: Path) -> None:
    an_organism(tmp_path / "mine", tunings=1)
    (tmp_path / "mine" / "base").mkdir()
    (tmp_path / "mine" / "base" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "mine" / "key.json").unlink()
    code, _, err = told("score", str(tmp_path / "mine"))
    assert code == 2
    assert "has no key.json: it can be measured, not scored" in err
