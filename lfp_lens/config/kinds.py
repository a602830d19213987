"""The kinds of values that keys take. A kind's title is what an error message says was expected."""

from typing import Annotated, Literal

from pydantic import Field

Text = Annotated[str, Field(min_length=1, title="text that is not empty")]
TextOrNone = Annotated[str | None, Field(min_length=1, title="text that is not empty, or no such key")]
Count = Annotated[int, Field(ge=1, title="a whole number of at least 1")]
CountOrNone = Annotated[int | None, Field(ge=1, title="a whole number of at least 1, or no such key")]
NotNegativeCount = Annotated[int, Field(ge=0, title="a whole number of at least 0")]
AtLeastTwo = Annotated[int, Field(ge=2, title="a whole number of at least 2")]
AtLeastFifty = Annotated[int, Field(ge=50, title="a whole number of at least 50 (fewer texts measure nothing)")]
Number = Annotated[float, Field(title="a number")]
Positive = Annotated[float, Field(gt=0, title="a number above 0")]
PositiveOrNone = Annotated[float | None, Field(gt=0, title="a number above 0, or no such key")]
NotNegative = Annotated[float, Field(ge=0, title="a number of at least 0")]
NotNegativeOrNone = Annotated[float | None, Field(ge=0, title="a number of at least 0, or no such key")]
Switch = Annotated[bool, Field(title="true or false")]
SwitchOrNone = Annotated[bool | None, Field(title="true or false, or no such key")]
Size = Annotated[int | float, Field(gt=0)]
SizeOrNone = Annotated[Size | None, Field(title="one of train_sae.sizes, or no such key (the smallest)")]
LABELLERS = r"^[A-Za-z0-9_-]+(:\S+)?$"
Labeller = Annotated[
    str, Field(pattern=LABELLERS, title="'lexicon', 'openai:MODEL', 'graph', 'recorded:FILE' or a registered name")
]
LabellerOrNone = Annotated[
    str | None, Field(pattern=LABELLERS, title="'lexicon', 'openai:MODEL', 'graph', 'recorded:FILE', or no such key")
]
Side = Literal["base", "tuned"]
SAESide = Literal["base", "tuned", "difference", "both"]
Architecture = Literal["standard", "tied", "untied", "topk", "batchtopk", "matryoshka", "jumprelu", "gated"]
Architectures = Annotated[
    Architecture | Annotated[tuple[Architecture, ...], Field(min_length=1)],
    Field(title="one or a list of standard, tied, untied, topk, batchtopk, matryoshka, jumprelu, gated"),
]
_FromZero = Annotated[int | float, Field(ge=0)]
_AboveZero = Annotated[int | float, Field(gt=0)]
_Whole = Annotated[int, Field(ge=1)]
_Prices = tuple[_FromZero, _FromZero]
PricesOrNone = Annotated[
    _Prices | Annotated[dict[Annotated[str, Field(min_length=1)], _Prices], Field(min_length=1)] | None,
    Field(title='two numbers of at least 0, a table of "model" = two such numbers (names in quotes), or no such key'),
]
NotNegativesOrNone = Annotated[
    _FromZero | Annotated[tuple[_FromZero, ...], Field(min_length=1)] | None,
    Field(title="a number of at least 0, a list of such numbers, or no such key"),
]
PositivesOrNone = Annotated[
    _AboveZero | Annotated[tuple[_AboveZero, ...], Field(min_length=1)] | None,
    Field(title="a number above 0, a list of such numbers, or no such key"),
]
CountsOrNone = Annotated[
    _Whole | Annotated[tuple[_Whole, ...], Field(min_length=1)] | None,
    Field(title="a whole number of at least 1, a list of such numbers, or no such key"),
]
Reward = Annotated[
    Annotated[str, Field(min_length=1)]
    | Annotated[tuple[tuple[Annotated[str, Field(min_length=1)], float], ...], Field(min_length=1)],
    Field(title="a reward, or a list of [reward, weight]"),
]
Factors = Annotated[
    dict[Annotated[str, Field(min_length=1)], float] | None,
    Field(min_length=1, title="a table of word = factor, or no such key"),
]
