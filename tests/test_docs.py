"""The documentation is true: its code runs, its links lead somewhere, nothing public is missing from it.

Every ```python block of README.md and docs/ runs, unless its fence says `no-run`. The blocks of one page share one namespace,
which begins with the names of `documented` below: a pair of tiny local models and what the verbs gave for it. Names of the hub
stand for them (`EleutherAI/pythia-70m` is the tiny base, `imdb` the tiny world's texts), and the verbs have small defaults;
organisms are tuned for one step and have no twin.
"""

import doctest
import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

import lfp_lens as lfp
from lfp_lens.cli import COMMANDS, VERBS
from lfp_lens.config.files import presets, section_fields
from lfp_lens.config.run import RunConfig
from lfp_lens.config.strict import toml_value
from lfp_lens.organisms.recipes import RECIPES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md")))
FENCE = re.compile(r"^```(\w+)[ \t]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"(<!-- config keys: begin [^\n]*-->\n).*?(<!-- config keys: end -->)", re.DOTALL)
HEADINGS = ("What the number means", "What it does not mean", "Controls", "Parameters", "What it gives",
            "In the paper, and where we differ")  # fmt: skip
WORDS = ("pair", "site", "feature", "lexicon", "reward", "stated feedback", "given feedback", "learned value", "triple", "signal",
         "probe", "twin", "organism", "recipe", "key", "dose", "candidate", "scorecard", "evidence")  # fmt: skip
HUB_MODEL, HUB_TEXTS = "EleutherAI/pythia-70m", "imdb"
SMALL: dict[str, dict[str, Any]] = {
    "finetune": {"steps": 2, "batch_size": 8, "max_new_tokens": 6, "heldout": 16},
    "diverge": {},
    "train_sae": {"tokens": 8192, "batch_tokens": 512, "max_tokens": 64, "heldout_tokens": 1000},
    "contrast": {"max_triples": 200},
    "probe": {"contexts": 4, "max_tokens": 64},
    "attribute": {"confirm": 8, "joint": 5, "max_tokens": 24},
    "explain": {"k": 3, "max_tokens": 24},
    "ablate": {"n": 48, "max_new_tokens": 8, "controls": 3},
    "report": {},
}
ORGANISM: dict[str, Any] = {
    "replicates": 2,
    "shuffled": False,
    "workers": 1,
    "finetune": {"steps": 1, "batch_size": 8, "max_new_tokens": 6, "heldout": 16},
}
SCORE: dict[str, Any] = {"n_texts": 300, "contexts": 4}


def blocks(path: Path, language: str) -> Iterator[tuple[int, str]]:
    """Give (line before its first, text) of every fenced block in this language that is to run."""
    text = path.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        if found[1] == language and "no-run" not in found[2]:
            yield text.count("\n", 0, found.start(3)), found[3]


def having(language: str) -> list[Path]:
    """Give the pages that have such a block."""
    return [page for page in PAGES if any(blocks(page, language))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """Give a page without its code."""
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", path.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Run the `tiny` preset with small values in an empty folder, and give the names that the blocks begin with."""
    from lfp_lens.parts import world

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("docs"))
        patch.setenv("LFP_LENS_CACHE", str(Path.cwd() / "cache"))
        patch.setenv("TQDM_DISABLE", "1")
        patch.setitem(world.TRAINING, "texts", 1500)
        patch.setitem(world.TRAINING, "epochs", 1)
        # What a page registers stays on that page.
        patch.setattr(RECIPES, "_known", dict(RECIPES._known))
        values = {f"{verb}.{key}": value for verb, small in SMALL.items() for key, value in small.items()}
        config = lfp.with_values(
            lfp.load_config("tiny"), {"gate": "warn", "n_texts": 300, "n_heldout": 400, "sites": 2, **values}
        )
        run = lfp.run(config, quiet=True)
        assert not run.refusals, run.refusals
        base, done = str(run.store.read("world").path), run.results
        # The tiny world of organisms is the one that the run has trained.
        Path("cache").mkdir(exist_ok=True)
        Path("cache/worlds").symlink_to(run.store.root.absolute())
        _make_small(patch, base)
        yield {
            "lfp": lfp,
            "base": HUB_MODEL,
            "texts": lfp.load_texts("world", n=300),
            "heldout": lfp.load_texts("world", split="test", n=400),
            "pair": lfp.load_pair(base, done["finetune"].path),
            "tuned": done["finetune"],
            "saes": done["train_sae"],
            "triples": done["contrast"],
            "learned": done["probe"],
            "effects": done["attribute"],
            "labels": done["explain"],
        }


def _make_small(patch: pytest.MonkeyPatch, base: str) -> None:
    """Let the front door's verbs have small defaults, and names of the hub stand for what is local."""
    stands_for = {HUB_MODEL: base, HUB_TEXTS: "world"}

    def here(given: Any) -> Any:
        return stands_for.get(given, given) if isinstance(given, str) else given

    def local(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*given: Any, **named: Any) -> Any:
            return function(*map(here, given), **{name: here(value) for name, value in named.items()})

        return called

    for verb, small in SMALL.items():
        function = getattr(lfp, verb)
        gate = {"gate": "warn"} if "gate" in inspect.signature(function).parameters else {}
        patch.setattr(lfp, verb, local(functools.partial(function, **small, **gate)))
    for name in ("load_pair", "load_texts"):
        patch.setattr(lfp, name, local(getattr(lfp, name)))
    for name, small in {"organism": ORGANISM, "organism_grid": ORGANISM, "score": SCORE}.items():
        patch.setattr(lfp, name, local(functools.partial(getattr(lfp, name), **small)))


@pytest.mark.parametrize("page", having("python"), ids=name_of)
def test_the_code_on_a_page_runs(page: Path, documented: dict[str, Any]) -> None:
    names = dict(documented)
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, str(page), "exec"), names)


@pytest.mark.parametrize("page", having("toml"), ids=name_of)
def test_a_config_on_a_page_is_one(page: Path, tmp_path: Path) -> None:
    for _, text in blocks(page, "toml"):
        (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
        config = lfp.load_config(tmp_path / "mine.toml")
        assert config.name == "mine"


@pytest.mark.parametrize("page", having("console"), ids=name_of)
def test_a_command_on_a_page_exists(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for _, text in blocks(page, "console"):
        for line in text.splitlines():
            words = line.partition("#")[0].split()
            if words[:1] == ["make"]:
                assert words[1] in targets, line
            elif words[:1] == ["lfp-lens"]:
                assert words[1] in COMMANDS or words[1] == "COMMAND", line
                if words[1] in ("run", *VERBS) and not words[2].endswith((".toml", "--help")):
                    assert words[2] in presets(), line


def modules_with_examples() -> list[str]:
    """Name the modules of the package that hold a `>>>`."""
    files = sorted((ROOT / "lfp_lens").rglob("*.py"))
    paths = [path.relative_to(ROOT).with_suffix("") for path in files if ">>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


@pytest.mark.parametrize("module", modules_with_examples())
def test_the_examples_in_docstrings_hold(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_page_that_says_what_it_does_not_mean(verb: str) -> None:
    text = (DOCS / "verbs" / f"{verb}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {verb}\n")
    assert [title for title in HEADINGS if f"\n## {title}\n" not in text] == []
    assert f".{verb}\n" in text, "parameters come from the docstring"


def test_no_page_is_of_a_verb_that_does_not_exist() -> None:
    assert {path.stem for path in (DOCS / "verbs").glob("*.md")} == set(VERBS)


def test_the_command_page_lists_every_command_and_preset() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    for name in (*COMMANDS, *presets()):
        assert re.search(rf"^\| .*`{name}\b", text, re.MULTILINE), name


def test_the_command_page_lists_every_key_with_its_default() -> None:
    found = TABLE.search((DOCS / "cli.md").read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == found[1] + config_table() + found[2], "run: python -m tests.test_docs"


def config_table() -> str:
    """Write every key of a config, its default and what it is, as Markdown."""
    rows = ["", "| key | default | |", "|---|---|---|"]
    top = {name: field for name, field in RunConfig.model_fields.items() if name not in VERBS}
    for prefix, fields in [("", top), *((f"{verb}.", section_fields(verb)) for verb in VERBS)]:
        for name, field in fields.items():
            missing, default = field.default is PydanticUndefined, field.default
            shown = "must be given" if missing else "none" if default is None else f"`{toml_value(default)}`"
            shown = "the file's name" if prefix + name == "name" else shown
            told = (field.description or "").replace("|", "\\|").replace("\n", " ")
            rows.append(f"| `{prefix}{name}` | {shown} | {told} |")
    return "\n".join([*rows, "", ""])


def test_the_api_page_names_everything_public() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert [name for name in lfp.__all__ if not re.search(rf"[`.]{name}\b", text)] == []


@pytest.mark.parametrize("word", WORDS)
def test_the_glossary_has_the_word(word: str) -> None:
    assert f"| **{word}** |" in (DOCS / "glossary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_uses_one_word_per_concept(page: Path) -> None:
    if page.name != "glossary.md":
        # "Latent scaling" is the name of a method (arXiv 2504.02922).
        found = re.findall(r"\b(latents?(?!\s+scaling)|neurons?)\b", prose(page), re.IGNORECASE)
        assert found == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        where = (page.parent / path).resolve() if path else page
        assert where.is_file(), f"{name_of(page)}: {target}"
        assert not anchor or anchor in anchors(where), f"{name_of(page)}: {target}"


def anchors(page: Path) -> set[str]:
    """Give the anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


def test_the_summary_in_the_readme_has_the_lines_of_a_real_one(documented: dict[str, Any]) -> None:
    [shown] = [text for _, text in blocks(ROOT / "README.md", "text") if text.startswith("tiny\n====")]
    real = lfp.open_run("runs/tiny").summary()
    names = [re.findall(r"^(?! )([^:\n]+): ", text, re.MULTILINE) for text in (shown, real)]
    assert set(names[0]) - {"Wrong sign"} == set(names[1]) - {"Wrong sign"}


def test_the_site_is_built_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(list(DOCS.rglob("*.md")))
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"?https?:|<link[^>]+(?:stylesheet|preload|icon|preconnect)[^>]+https?:"
    )
    assert [page.name for page in pages if loaded.search(page.read_text(encoding="utf-8"))] == []


if __name__ == "__main__":
    page = DOCS / "cli.md"
    written = TABLE.sub(lambda found: found[1] + config_table() + found[2], page.read_text(encoding="utf-8"))
    page.write_text(written, encoding="utf-8")
