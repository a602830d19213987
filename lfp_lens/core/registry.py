"""One small registry for every kind of plug-in: rewards, labellers, SAE architectures, signals, methods."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from lfp_lens.core.errors import unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to plug-ins of one kind; an unknown name is refused with the nearest known one.

    >>> shapes: Registry[int] = Registry("shape")
    >>> shapes.add("square")(4)
    4
    >>> shapes["square"]
    4
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._known: dict[str, T] = {}

    def add(self, name: str) -> Callable[[T], T]:
        """Register what is decorated (or passed) under `name`; the same name twice is our mistake."""
        assert name not in self._known, f"{self.kind} {name!r} is registered twice"

        def keep(thing: T) -> T:
            self._known[name] = thing
            return thing

        return keep

    def __getitem__(self, name: str) -> T:
        if name not in self._known:
            raise unknown(self.kind, name, self._known)
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known))
