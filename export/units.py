"""From float layers to initial values: the unit each tensor counts in, and the range of layers without batch-norm.

A batch-norm gives its output a size: one unit of a tensor is then one σ of it, in the module and in the program. The
output of a layer without batch-norm has whatever size its weights give it, while u8 reaches 3·2^t units. So such a
tensor counts in a unit of its own: the module's value is `unit` times the program's. Tensors that are added or
concatenated share one. Sizes are measured on samples; they change initial values only, never the program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Node

from fedmpq.export.program import Kind, Record, Skip
from fedmpq.export.state import LayerInit, classifier_state, conv_state
from fedmpq.export.values import Conv, Layer, Norm, conv_of

#: A unit in measured sizes of the output: room to grow to twice the size before 3 units clip.
HEADROOM = 1.5


@dataclass(frozen=True)
class Closed:
    """A weight layer that has become a record.

    Attributes:
        name: the record's.
        layer: convolution with its batch-norm, or alone.
        output: tensor it makes.
        source: tensor it reads.
        flatten: whether it reads its input as one pixel.
        top: what the activation behind it clips at in the module; None for a plain ReLU or none.
    """

    name: str
    layer: Layer
    output: int
    source: int
    flatten: bool
    top: float | None = None

    @property
    def measured(self) -> Node:
        """The node whose size is that of the convolution's output."""
        conv = conv_of(self.layer)
        return conv.measured or conv.node


def biased(closed: Sequence[Closed]) -> list[Closed]:
    """The layers without batch-norm; the last one is the classifier."""
    return [item for item in closed[:-1] if isinstance(item.layer, Conv)]


def initial_values(
    records: Sequence[Record], closed: Sequence[Closed], sizes: Mapping[Node, float], std: Sequence[float] | None
) -> dict[str, LayerInit]:
    """Each weight layer's values by record name, in record order.

    Args:
        records: of the program.
        closed: its weight layers.
        sizes: root mean square of the output of each layer without batch-norm.
        std: pixel deviation by channel that the module expects its input to be divided by.
    """
    unit = _units(records, closed, sizes)
    found: dict[str, LayerInit] = {}
    for item in closed[:-1]:
        found[item.name] = conv_state(
            item.layer,
            std if item.source == 0 else None,
            units=(unit[item.source], unit[item.output]),
            size=sizes.get(item.measured),
            flatten=item.flatten,
            image=item.source == 0,
            trained=std is not None,
        )
    last = closed[-1]
    # weights move within the range they start with: those of an untrained classifier keep theirs beside larger features
    found[last.name] = classifier_state(conv_of(last.layer), records[-1].inp, 1.0 if std is None else unit[last.source])
    return found


def _units(records: Sequence[Record], closed: Sequence[Closed], sizes: Mapping[Node, float]) -> list[float]:
    """The unit of each tensor."""
    group = list(range(len(records) + 1))

    def root(tensor: int) -> int:
        while group[tensor] != tensor:
            tensor = group[tensor]
        return tensor

    for index, record in enumerate(records, 1):
        tied = [record.skip] if record.skip_kind is not Skip.NONE else []
        if record.kind not in {Kind.CONV, Kind.CLASSIFIER}:
            tied.append(record.input)
        for tensor in tied:
            group[root(tensor)] = root(index)
    wanted: dict[int, float] = {}
    for item in closed[:-1]:
        size = 1.0
        if not isinstance(item.layer, Norm):
            size = HEADROOM * sizes[item.measured] or 1.0
            # u8 reaches 3·2^t units: where a ReLU6 stands behind the layer, no further than the ReLU6
            size = min(size, item.top / (3 * 2 ** records[item.output - 1].t_out)) if item.top else size
        wanted[root(item.output)] = max(size, wanted.get(root(item.output), 0.0))
    return [wanted.get(root(tensor), 1.0) for tensor in range(len(records) + 1)]
