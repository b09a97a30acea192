"""Lets torchvision import beside a CPU build of torch.

torchvision's wheels are built for CUDA. Beside a CPU torch their C++ operators cannot load, and `import torchvision`
stops where it registers fake versions of two of them. Declaring the two schemas first is enough for its models,
data sets and transforms, none of which call these operators. This is the only place that does so.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import torch

_OPERATORS = ("nms", "qnms")


@lru_cache(maxsize=1)
def declare_missing() -> bool:
    """Declares torchvision's operators where torch does not have them; True if it did. Safe to call at any time.

    Where torchvision's own library loads, its operators are there and nothing is declared.
    """
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in _OPERATORS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _keep.append(library)
        return True
    return False


#: A library object that is collected takes its declarations with it.
_keep: list[torch.library.Library] = []
