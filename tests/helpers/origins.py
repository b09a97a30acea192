"""What a coordinator starts from in tests: a program and its random first weights."""

from __future__ import annotations

from fedmpq.coordinator import initial, layout
from fedmpq.coordinator.global_model import GlobalModel
from fedmpq.coordinator.planes import unpack
from fedmpq.coordinator.source import Source
from tests.helpers import programs


def origin_of(net: programs.Builder, name: str) -> Source:
    program = net.build()
    shapes = layout.of_program(program)

    def first() -> GlobalModel:
        model = GlobalModel.blank(shapes)
        for shape, layer, state in zip(shapes.layers, model.layers, programs.states(net, 8), strict=True):
            whole = unpack(shape, 8, state.step, state.planes, state.params)
            layer.weights = initial.quantise.dequantise(whole.q, state.step)
        return model

    return Source(program, shapes, first, name)
