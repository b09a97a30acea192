"""The reference: one integer training step, written from docs/arithmetic.md to be read, exact on CPU and CUDA."""

from .session import Hyper, Plan, ReferenceSession, Stats
from .state import LayerState

__all__ = ["Hyper", "LayerState", "Plan", "ReferenceSession", "Stats"]
