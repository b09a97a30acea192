"""From a PyTorch module to a program, weights and the artifacts built of them.

`fedmpq.export.program` needs no torch; `from_module` and `resolve` (in `model`) do and are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmpq.export.model import CompiledModel, from_module, resolve, zoo_names

__all__ = ["CompiledModel", "from_module", "resolve", "zoo_names"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from fedmpq.export import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
