"""The reference: one integer training step, written from docs/arithmetic.md to be read, exact on CPU and CUDA."""

from fedmpq.models.reference.plan import Hyper, Plan, Stats
from fedmpq.models.reference.session import ReferenceSession
from fedmpq.models.reference.state import LayerState

__all__ = ["Hyper", "LayerState", "Plan", "ReferenceSession", "Stats"]
