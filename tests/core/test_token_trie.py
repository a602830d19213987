"""The trie: which suffix counts, and what is accepted as one."""

import json

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.token_trie import ANY, Node, TokenTrie, read_trie

ROOT = Node(-1, ANY, 0.1, 0.0)


def test_the_longest_suffix_that_matches_counts() -> None:
    trie = TokenTrie((ROOT, Node(0, 5, 0.5, 0.4), Node(1, 7, 0.9, 1.0)), 0.5, 0.5, {})
    assert trie.places([5, 7, 5, 6]) == [1, 0, 2, 0]
    np.testing.assert_allclose(trie.mean([5, 7, 5, 6]), [0.5, 0.1, 0.9, 0.1], rtol=1e-6)
    np.testing.assert_allclose(trie.strong([5, 7, 5, 6]), [0.4, 0.0, 1.0, 0.0], rtol=1e-6)


def test_a_gap_matches_any_token_but_not_the_start_of_a_text() -> None:
    trie = TokenTrie((ROOT, Node(0, 5, 0.5, 0.4), Node(1, ANY, 0.5, 0.4), Node(2, 7, 0.9, 1.0)), 0.5, 0.5, {})
    assert trie.places([7, 1, 5])[-1] == trie.places([7, 2, 5])[-1] == 3
    assert trie.places([7, 5])[-1] == 2
    assert trie.places([5]) == [1]


def test_of_two_suffixes_as_long_the_one_that_names_more_tokens_counts() -> None:
    trie = TokenTrie((ROOT, Node(0, 5, 0.5, 0.4), Node(1, ANY, 0.2, 0.2), Node(1, 7, 0.9, 1.0)), 0.5, 0.5, {})
    assert trie.places([7, 5])[-1] == 3
    assert trie.places([8, 5])[-1] == 2


def test_a_gap_that_leads_nowhere_does_not_hide_a_named_suffix() -> None:
    trie = TokenTrie(
        (ROOT, Node(0, 5, 0.5, 0.4), Node(1, ANY, 0.5, 0.4), Node(2, 7, 0.9, 1.0), Node(1, 8, 0.2, 0.0)), 0.5, 0.5, {}
    )
    assert trie.places([1, 8, 5])[-1] == 4
    assert trie.places([7, 8, 5])[-1] == 3


def test_a_trie_is_read_back_as_it_was_written() -> None:
    trie = TokenTrie((ROOT, Node(0, 5, 0.125, 0.5)), 0.25, 0.75, {5: ' "good"'})
    assert read_trie(trie.to_json()) == trie


def test_no_token_gives_no_prediction() -> None:
    assert TokenTrie((ROOT,), 0.5, 0.5, {}).mean([]).shape == (0,)


GOOD = {"fires": 0.5, "holds": 0.5, "nodes": [[-1, -1, 100, 0], [0, 5, 100, 0]], "texts": {"5": "good"}}


@pytest.mark.parametrize(
    "changed",
    [
        {"nodes": []},
        {"nodes": [[-1, -1, 100, 0], [1, 5, 100, 0]]},
        {"nodes": [[-1, -1, 100, 0], [0, 5, 100, 0], [0, 5, 100, 0]]},
        {"nodes": [[-1, -1, 100, 0], [0, 5, 1001, 0]]},
        {"nodes": [[-1, -1, 100, 0], [0, -7, 100, 0]]},
        {"nodes": [[-1, -1, 100, 0], [0, 5, True, 0]]},
        {"nodes": [[-1, -1, 100, 0], [0, 5]]},
        {"nodes": [[-1, -1, 100, 0]] * 5000},
        {"nodes": [[-1, -1, 100, 0], *([place, 5, 100, 0] for place in range(20))]},
        {"fires": float("nan")},
        {"fires": "0.5"},
        {"texts": {"5": "x" * 41}},
        {"texts": {"5": 1}},
        {"texts": []},
    ],
)
def test_what_is_no_trie_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(LensError, match="is not the JSON of a token trie"):
        read_trie(json.dumps(GOOD | changed))


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "null", "[" * 100_000, '{"nodes": 1}'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(LensError, match="is not the JSON of a token trie"):
        read_trie(text)
