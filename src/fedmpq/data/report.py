"""How loaders tell about their progress without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

#: Called with what is being done and the number of steps; yields the function that advances by n. The command
#: line passes `fedmpq.cli._common.progress`.
Reporter: TypeAlias = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def silent(_description: str, _total: int | None) -> Iterator[Callable[[int], None]]:
    """Report nothing."""
    yield lambda _: None
