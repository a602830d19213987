"""A registry gives back what was put in and refuses what was not."""

import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.registry import Registry


@pytest.fixture
def shapes() -> Registry[int]:
    made: Registry[int] = Registry("shape")
    made.add("square")(4)
    made.add("hexagon")(6)
    return made


def test_what_was_added_comes_back(shapes: Registry[int]) -> None:
    assert shapes["square"] == 4
    assert "square" in shapes and "circle" not in shapes


def test_adding_as_a_decorator_leaves_the_function_as_it_was() -> None:
    functions: Registry[object] = Registry("function")

    @functions.add("double")
    def double(value: int) -> int:
        return 2 * value

    assert double(3) == 6
    assert functions["double"] is double


def test_names_come_in_alphabetical_order(shapes: Registry[int]) -> None:
    assert list(shapes) == ["hexagon", "square"]


def test_an_unknown_name_is_refused_with_the_nearest(shapes: Registry[int]) -> None:
    with pytest.raises(LensError, match=r"Unknown shape 'sqare'\. Did you mean 'square'\? Known: hexagon, square\."):
        shapes["sqare"]


def test_the_same_name_twice_is_our_mistake(shapes: Registry[int]) -> None:
    with pytest.raises(AssertionError, match="shape 'square' is registered twice"):
        shapes.add("square")
