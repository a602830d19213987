"""A token trie as a graph: the tokens a feature fires on at the left, what must stand before them to their right."""

from typing import TYPE_CHECKING

from lfp_lens.core.token_trie import ANY, TokenTrie
from lfp_lens.view.look import GREY, escaped, figure_with, note

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_TOKENS, MAX_BELOW, MAX_DEPTH = 12, 3, 3
"""Tokens drawn, suffixes drawn below each node, and how long a suffix is drawn."""
ANY_TEXT = "(any)"
PALE, FULL = "#dfe8f2", "#1f4e79"
Placed = tuple[int, float, float]
"""Node, its column and its row."""


def token_graph(trie: TokenTrie, title: str = "") -> "go.Figure":
    """Draw the nodes with the largest `strong`, darker where the feature fires strongly more often; hover tells the numbers.

    Args:
        trie: what `core.token_trie.read_trie` gives of an explanation's pattern.
        title: such as the feature's name; it is escaped, as all tokens are.
    """
    placed, lines = _layout(trie)
    figure = figure_with(escaped(title), "", "", height=120 + 30 * max(3, len({y for _, _, y in placed})))
    axis = {"showgrid": False, "ticks": "", "showticklabels": False, "showline": False}
    figure.update_layout(xaxis=axis, yaxis={**axis, "autorange": "reversed"}, showlegend=False)
    if not placed:
        return note(figure, "this trie names no token")
    figure.add_scatter(
        x=[x for line in lines for x in (*line[0], None)], y=[y for line in lines for y in (*line[1], None)],
        mode="lines", line={"color": GREY, "width": 1}, hoverinfo="skip",
    )  # fmt: skip
    nodes = [trie.nodes[place] for place, _, _ in placed]
    figure.add_scatter(
        x=[x for _, x, _ in placed],
        y=[y for _, _, y in placed],
        mode="markers+text",
        text=[escaped(_spelt(trie, node.token)) for node in nodes],
        textposition="middle right",
        marker={"size": 14, "color": [node.strong for node in nodes], "cmin": 0, "cmax": 1,
                "colorscale": [[0, PALE], [1, FULL]], "line": {"color": GREY, "width": 1}},
        customdata=[[_suffix(trie, place), node.strong, node.mean] for (place, _, _), node in zip(placed, nodes)],
        hovertemplate="%{customdata[0]}<br>fires strongly: %{customdata[1]:.2f}<br>"
        "mean activation: %{customdata[2]:.2f}<extra></extra>",
    )  # fmt: skip
    return figure.update_xaxes(range=[-0.1, max(x for _, x, _ in placed) + 1])


def _layout(trie: TokenTrie) -> tuple[list[Placed], list[tuple[tuple[float, float], tuple[float, float]]]]:
    """Give the nodes to draw with column and row, and the lines between them as (x, x), (y, y)."""
    placed: list[Placed] = []
    lines: list[tuple[tuple[float, float], tuple[float, float]]] = []

    def put(place: int, depth: int, row: float) -> float:
        """Draw a node and what is below it from a row on; give the first row that is free."""
        placed.append((place, float(depth), row))
        free = row
        below = _most_telling(trie, place, MAX_BELOW) if depth + 1 < MAX_DEPTH else []
        for child in below:
            lines.append(((depth, depth + 1), (row, free)))
            free = put(child, depth + 1, free)
        return free if below else row + 1

    row = 0.0
    for child in sorted(trie.children[0].values(), key=lambda place: (-_strongest(trie, place), place))[:MAX_TOKENS]:
        row = put(child, 0, row)
    return placed, lines


def _strongest(trie: TokenTrie, place: int) -> float:
    """Give the largest `strong` of a node and its children."""
    return max([trie.nodes[place].strong, *(trie.nodes[child].strong for child in trie.children[place].values())])


def _most_telling(trie: TokenTrie, place: int, n: int) -> list[int]:
    """Give the children that differ most from their parent, gaps that lead somewhere among them."""
    own = trie.nodes[place].strong

    def differs(child: int) -> float:
        node = trie.nodes[child]
        return max(abs(node.strong - own), *(differs(one) for one in trie.children[child].values()), 0.0) if (
            node.token == ANY) else abs(node.strong - own)  # fmt: skip

    return sorted(trie.children[place].values(), key=lambda child: (-differs(child), child))[:n]


def _suffix(trie: TokenTrie, place: int) -> str:
    """Spell what a node stands for, in the order of the text."""
    found = []
    while place > 0:
        found.append(_spelt(trie, trie.nodes[place].token))
        place = trie.nodes[place].parent
    return escaped(" + ".join(found))


def _spelt(trie: TokenTrie, token: int) -> str:
    if token == ANY:
        return ANY_TEXT
    shown = trie.texts.get(token, f"#{token}")
    return shown.replace("\n", "\u21b5") if shown.strip() else repr(shown)
