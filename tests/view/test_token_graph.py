"""A token trie as a figure."""

from lfp_lens.core.token_trie import ANY, Node, TokenTrie
from lfp_lens.view.token_graph import token_graph

HOSTILE = "<script>alert(1)</script>"


def trie(texts: dict[int, str], *nodes: Node) -> TokenTrie:
    return TokenTrie((Node(-1, ANY, 0.1, 0.0), *nodes), 0.5, 0.5, texts)


def drawn(one: TokenTrie) -> tuple[list[str], list[list[object]]]:
    figure = token_graph(one, "blocks.1 7")
    return list(figure.data[1].text), [list(row) for row in figure.data[1].customdata]


def test_a_token_stands_before_the_suffixes_that_lengthen_it() -> None:
    one = trie({1: " good", 2: " not"}, Node(0, 1, 0.5, 0.4), Node(1, 2, 0.9, 1.0))
    texts, told = drawn(one)
    assert texts == [" good", " not"]
    assert told[1] == [" not +  good", 1.0, 0.9]
    line = token_graph(one).data[0]
    assert list(line.x) == [0, 1, None]


def test_a_gap_is_drawn_as_any_token() -> None:
    one = trie({1: " good", 2: " not"}, Node(0, 1, 0.5, 0.0), Node(1, ANY, 0.0, 0.0), Node(2, 2, 0.9, 1.0))
    assert drawn(one)[0] == [" good", "(any)", " not"]
    assert drawn(one)[1][2][0] == " not + (any) +  good"


def test_the_token_that_fires_most_in_some_context_comes_first() -> None:
    one = trie({1: "a", 2: "b", 3: "c"}, Node(0, 1, 0.5, 0.6), Node(0, 2, 0.1, 0.2), Node(2, 3, 0.9, 0.9))
    assert drawn(one)[0] == ["b", "c", "a"]


def test_tokens_and_titles_are_escaped_and_spaces_are_shown() -> None:
    one = trie({1: HOSTILE, 2: "\n"}, Node(0, 1, 0.5, 0.6), Node(0, 2, 0.5, 0.6))
    figure = token_graph(one, HOSTILE)
    assert "<script>" not in figure.to_json()
    assert drawn(one)[0][1] == "'\\n'"


def test_a_large_trie_is_drawn_in_part() -> None:
    nodes = [Node(0, token, 0.5, 0.5) for token in range(500)]
    assert len(drawn(trie({}, *nodes))[0]) == 12


def test_a_trie_without_tokens_says_so() -> None:
    figure = token_graph(trie({}))
    assert figure.layout.annotations[0].text == "this trie names no token"
