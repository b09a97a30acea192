"""Bad clients for simulations: what they do to their data or to their updates. `fedmpq simulate --attack KIND:SHARE`.

The attackers keep to the protocol; everything they send passes every check. A scaled update is clamped to what its bits
and step can hold, which is all that a real attacker could send as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedmpq.coordinator import planes
from fedmpq.coordinator.global_model import DeviceLayer
from fedmpq.coordinator.layout import Layout
from fedmpq.coordinator.samples import ArraySamples
from fedmpq.edge_runtime import trainer
from fedmpq.edge_runtime.protocol import PlanMessage
from fedmpq.errors import UsageError

KINDS = ("label-flip", "scale", "sign-flip")
#: By how much scaled updates are scaled, unless said otherwise.
FACTOR = 10


@dataclass(frozen=True)
class Attack:
    """What a share of the clients does.

    Attributes:
        kind: "label-flip" (class c is called C - 1 - c), "scale" (changes times `factor`) or "sign-flip" (changes
            times -`factor`).
        share: of the clients, drawn by hash of their names.
        factor: of the changes.
    """

    kind: str
    share: float
    factor: int = FACTOR

    @classmethod
    def parse(cls, text: str) -> Attack:
        """KIND:SHARE or KIND:SHARE:FACTOR; UsageError for anything else."""
        kind, _, rest = text.partition(":")
        share, _, factor = rest.partition(":")
        try:
            found = cls(kind, float(share), int(factor) if factor else (1 if kind == "sign-flip" else FACTOR))
        except ValueError:
            found = None
        if found is None or kind not in KINDS or not 0 <= found.share <= 1 or not 1 <= found.factor <= 1000:
            raise UsageError(f"attack {text!r} is not understood", f"{'|'.join(KINDS)}:SHARE[:FACTOR], as scale:0.2:10")
        return found

    def attackers(self, names: Sequence[str], seed: int) -> list[str]:
        """Who attacks: round(share * clients) of them."""
        drawn = sorted(names, key=lambda name: hashlib.sha256(f"attack/{seed}/{name}".encode()).digest())
        return sorted(drawn[: round(self.share * len(names))])

    def data(self, samples: trainer.Samples) -> trainer.Samples:
        """An attacker's training data."""
        if self.kind != "label-flip":
            return samples
        if not isinstance(samples, ArraySamples):
            raise UsageError("label-flip needs private data in memory")
        return samples.flipped()

    def layers(
        self, layout: Layout, plan: PlanMessage, blobs: Mapping[str, bytes], trained: Sequence[trainer.Layer]
    ) -> list[trainer.Layer]:
        """What an attacker sends after training `plan`."""
        if self.kind == "label-flip":
            return list(trained)
        factor = self.factor if self.kind == "scale" else -self.factor
        found = []
        for shape, sent, end in zip(layout.layers, plan.layers, trained, strict=True):
            start = planes.unpack(shape, sent.bits, sent.step, [blobs[sha] for sha in sent.planes], blobs[sent.params])
            after = planes.unpack(shape, end.bits, end.step, end.planes, end.params)
            moved = start.q.astype(np.int64) + factor * (after.q.astype(np.int64) - start.q)
            top = (1 << end.bits) - 1
            q = np.clip(moved, -top, top).astype(np.int16)
            packed = planes.pack(DeviceLayer(end.bits, end.step, q, end.params))
            found.append(trainer.Layer(end.bits, end.step, packed.planes, end.params))
        return found
