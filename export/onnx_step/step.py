"""A program and a plan as ONNX models: the state to start from, one training step, evaluation.

docs/arithmetic.md, sections 4 to 8, says what they compute.

Inputs of the step: `images` u8 [B, H, W, C], `labels` u16 [B] (any B), `key` i64 [4] (seed, round, client, step), `lr`
and `decay` i64 [2] (fx: mantissa, exponent), `momentum` i64 (Q15, plans with momentum), `lasso` i64 [layers, 2] (if
asked for), and the state of each weight layer under its record's number (`r3.q`, …). Outputs: `loss_q16`, `correct`,
and each changed state tensor as `new.` + its name, to be fed to the next step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto

from fedmpq.edge_runtime import core
from fedmpq.errors import ModelError
from fedmpq.export.onnx_step import classify, normal, pooling
from fedmpq.export.onnx_step.errors import Error, merge
from fedmpq.export.onnx_step.graph import Graph, Value
from fedmpq.export.onnx_step.layers import GraphLayer, initial, layer_input, layer_output
from fedmpq.export.onnx_step.numbers import (
    Fx,
    Keys,
    apply,
    apply64,
    derive,
    div,
    fixed,
    mul,
    norm,
    reven,
    rshift,
    rshift_by,
)
from fedmpq.export.onnx_step.pixels import centred, cropped
from fedmpq.export.onnx_step.product import forward, to_input, to_weights
from fedmpq.export.onnx_step.update import (
    FRACTION,
    GRADIENT_LIMIT,
    UPDATE_LIMIT,
    Rates,
    update_parameter,
    update_weights,
    weight_rate,
)
from fedmpq.models.reference import fx as exact
from fedmpq.models.reference.program import Kind, Program, Record, Skip
from fedmpq.models.reference.state import Layer

I64, U8, U16 = TensorProto.INT64, TensorProto.UINT8, TensorProto.UINT16
_AUGMENT = 0xFFFF0000
_NINTH = exact.norm(9)


@dataclass
class _Pass:
    """What the forward pass leaves: tensors by number, layers by record, the loss."""

    tensors: list[Value]
    layers: dict[int, GraphLayer]
    logits: Value
    outcome: classify.Outcome
    errors: list[Error | None]


def training_step(program: Program, plan: core.Plan, metadata: dict[str, str], *, lasso: bool = False) -> ModelProto:
    """The training step. The whole batch is one micro-batch.

    Raises:
        ModelError: the plan splits batches, or a convolution's sums do not fit 32 bits.
    """
    if plan.micro_batch is not None and plan.micro_batch < plan.batch:
        raise ModelError("an ONNX step takes the batch as a whole", "leave --micro-batch out")
    return _Builder(program, plan).train(metadata, lasso=lasso)


def evaluation(program: Program, plan: core.Plan, metadata: dict[str, str]) -> ModelProto:
    """Logits, loss and correct answers with the running statistics."""
    return _Builder(program, plan).evaluate(metadata)


def initial_state(plan: core.Plan, states: Sequence[Layer], metadata: dict[str, str]) -> ModelProto:
    """A model without inputs that gives the state to start from, under the names of the step's inputs."""
    graph = Graph()
    initial(graph, states, momentum=plan.momentum)
    return graph.model("initial_state", metadata)


class _Builder:
    """Builds one model."""

    def __init__(self, program: Program, plan: core.Plan) -> None:
        self.program, self.plan, self.graph = program, plan, Graph()
        height, width, channels = program.in_shape
        images = self.graph.input("images", U8, ["B", height, width, channels])
        self.labels = self.graph.input("labels", U16, ["B"])
        self.batch = self.graph.op("Size", [self.labels])
        self.pixels = centred(images, program)

    def train(self, metadata: dict[str, str], *, lasso: bool) -> ModelProto:
        graph, plan = self.graph, self.plan
        key = graph.input("key", I64, [4])
        lr = self._pair(graph.input("lr", I64, [2]))
        decay = self._pair(graph.input("decay", I64, [2]))
        momentum = graph.input("momentum", I64, []) if plan.momentum else None
        pulls = graph.input("lasso", I64, [len(self.program.weight_layers), 2]) if lasso else None
        layers = self._layers(momentum=plan.momentum)
        streams = [4 * index + kind for index in layers for kind in (0, 1, 2)]
        keys = derive(graph, key, [_AUGMENT, *streams])
        pixels = cropped(self.pixels, self.program, keys.of(_AUGMENT), self.batch, crop=plan.crop, flip=plan.flip)
        done = self._forward(pixels, layers, training=True)
        rates = Rates(lr, mul(lr, decay), momentum)
        for record in reversed(self.program.records):
            if record.kind is Kind.CLASSIFIER:
                u, gradients = self._classifier_backward(record, done, lr)
            elif record.kind is Kind.CONV:
                u, gradients = self._conv_backward(record, done, lr, keys)
            elif record.kind is Kind.CONCAT:
                self._concat_backward(record, done)
                continue
            else:
                self._pool_backward(record, done)
                continue
            rate = self._lasso_rate(layers, record, lr, pulls)
            self._update(layers[record.index], u, gradients, rates, rate, keys)
        self._statistics(done)
        return graph.model("training_step", metadata)

    def evaluate(self, metadata: dict[str, str]) -> ModelProto:
        done = self._forward(self.pixels, self._layers(momentum=False), training=False)
        self._statistics(done)
        self.graph.output("logits", done.logits, I64, ["B", self.program.classes])
        return self.graph.model("evaluation", metadata)

    # --- forward ----------------------------------------------------------------------------------------------

    def _forward(self, pixels: Value, layers: dict[int, GraphLayer], *, training: bool) -> _Pass:
        tensors = [pixels]
        for record in self.program.records[:-1]:
            if record.kind is Kind.CONV:
                tensors.append(self._conv_forward(layers[record.index], tensors, training=training))
            elif record.kind is Kind.CONCAT:
                tensors.append(self._concat(record, tensors))
            else:
                tensors.append(pooling.forward(tensors[record.input], record))
        last = self.program.records[-1]
        layer = layers[last.index]
        zero = self.program.zeros[last.input]
        layer.a = (tensors[last.input] + -zero).reshape([0, last.cin])
        scale = classify.logit_scale(layer.step, self.program.exponents[last.input])
        z = classify.logits(layer.a, zero, layer.multiplied, layer.top, layer.params["bias"], scale, last.cin)
        outcome = classify.cross_entropy(z, self.labels, self.program.classes)
        return _Pass(tensors, layers, z, outcome, [None] * len(tensors))

    def _conv_forward(self, layer: GraphLayer, tensors: list[Value], *, training: bool) -> Value:
        r = layer.record
        low, high = self._range(r)
        a = tensors[0] if r.input == 0 else self._read(tensors[r.input], self.program.zeros[r.input])
        a = a.reshape([0, r.h_in * r.w_in, r.cin])
        y = reven(forward(a, low, high, layer.multiplied, layer.top, r), self._y_shift(layer)).clamp(-32767, 32767)
        assert layer.rm is not None
        assert layer.rv is not None
        if training and not r.biased:
            stats = normal.moments(y, self.batch * (r.h_out * r.w_out))
            layer.rm, layer.rv = normal.update_running(layer.rm, layer.rv, stats)
        else:
            stats = normal.running(layer.rm, layer.rv)
        layer.a, layer.normaliser = a, normal.normaliser(stats)
        layer.xhat = normal.normalise(y, layer.normaliser)
        z = layer.xhat * self._gamma(layer) + rshift(layer.params["beta"], 8)
        if r.skip_kind is not Skip.NONE:
            skip = self._skip(tensors[r.skip] + -self.program.zeros[r.skip], r)
            z = z + skip * (1 << (12 + self.program.exponents[r.skip]))
        return (rshift(z, 12 + r.t_out) + self.program.zeros[r.index + 1]).clamp(0, 255)

    def _concat(self, r: Record, tensors: list[Value]) -> Value:
        zero = self.program.zeros[r.input]
        parts = [rshift(tensors[t] + -zero, r.t_out - self.program.exponents[t]) + zero for t in r.inputs]
        return self.graph.op("Concat", parts, axis=2)

    def _skip(self, tensor: Value, r: Record) -> Value:
        if r.skip_kind is Skip.IDENTITY:
            return tensor
        height, width, channels = self._shape(r.skip)
        places = np.arange(height * width).reshape(height, width)[::2, ::2].reshape(-1)
        behind = r.cout - channels - r.skip_pad_c
        pads = self.graph.constant([0, 0, r.skip_pad_c, 0, 0, behind])
        return self.graph.op("Pad", [tensor.take(self.graph.constant(places), 1), pads, self.graph.constant(0)])

    # --- backward ---------------------------------------------------------------------------------------------

    def _classifier_backward(self, r: Record, done: _Pass, lr: Fx) -> tuple[Value, dict[str, Value]]:
        layer, e, t = done.layers[r.index], done.outcome.e, self.program.exponents[r.input]
        scale = classify.logit_scale(layer.step, t)
        error = classify.to_features(e, layer.multiplied, scale, self.program.pooled_window, t)
        height, width, channels = self._shape(r.input)
        values = error.values.reshape([0, height * width, channels])
        done.errors[r.input] = merge(done.errors[r.input], Error(values, error.exponent))
        assert layer.a is not None
        rate = mul(weight_rate(lr, layer.step, layer.guard, self.batch), scale)
        u = apply64(e.transpose([1, 0]).matmul(layer.a), rate.shifted(FRACTION - 15))
        return u, {"bias": apply64(e.sum([0]), div(lr, norm(self.batch)).shifted(20 - 15))}

    def _pool_backward(self, r: Record, done: _Pass) -> None:
        error = done.errors[r.index + 1]
        assert error is not None
        divided = r.kind is Kind.GLOBAL_POOL and self.program.records[-1].input == r.index + 1
        moved = pooling.backward(error, done.tensors[r.input], r, divided=divided)
        done.errors[r.input] = merge(done.errors[r.input], moved)

    def _concat_backward(self, r: Record, done: _Pass) -> None:
        error = done.errors[r.index + 1]
        assert error is not None
        split = self._shape(r.input)[2]
        for tensor, first, end in ((r.input, 0, split), (r.skip, split, r.cout)):
            part = Error(error.values.part(first, end, 2), error.exponent)
            done.errors[tensor] = merge(done.errors[tensor], part)

    def _conv_backward(self, r: Record, done: _Pass, lr: Fx, keys: Keys) -> tuple[Value, dict[str, Value]]:
        layer, out, error = done.layers[r.index], done.tensors[r.index + 1], done.errors[r.index + 1]
        assert error is not None
        assert layer.a is not None
        assert layer.xhat is not None
        assert layer.normaliser is not None
        positions = self.batch * (r.h_out * r.w_out)
        e = (out > 0).both(out < 255).where(error.values, 0)
        back = normal.backward(
            e, layer.xhat, self._gamma(layer), layer.normaliser, keys.of(4 * r.index), positions,
            (r.h_out * r.w_out, r.cout), constant=r.biased,
        )  # fmt: skip
        ey = error.exponent + back.s - (28 + self._y_shift(layer))
        if r.input > 0:
            ke = _headroom(r.kh * r.kw * (r.cout // r.groups), 127 * layer.top)
            unit = self.program.exponents[r.input] + 8 - self.plan.act_bits
            height, width, channels = self._shape(r.input)
            moved = reven(to_input(back.e8, layer.multiplied, layer.top, r), ke).clamp(-32767, 32767)
            moved = moved.reshape([0, height * width, channels])
            done.errors[r.input] = merge(done.errors[r.input], Error(moved, ey + (ke - unit)))
        if r.skip_kind is not Skip.NONE:
            skip = Error(self._skip_error(e, r), error.exponent)
            done.errors[r.skip] = merge(done.errors[r.skip], skip)
        return self._conv_gradients(layer, back, ey, error.exponent, positions, lr)

    def _conv_gradients(
        self, layer: GraphLayer, back: normal.Backward, ey: Value, ex: Value, positions: Value, lr: Fx
    ) -> tuple[Value, dict[str, Value]]:
        """Rate times gradient of the weights, γ and β."""
        assert layer.a is not None
        low, high = self._range(layer.record)
        gs = (norm(positions * (self._amax(layer.record) * 127)).e).max(0)  # bitlen − 31
        gradient = rshift_by(to_weights(layer.a, low, high, back.e8, layer.record), gs)
        rate = weight_rate(lr, layer.step, layer.guard, self.batch)
        u = apply(gradient, rate.shifted(ey + gs + FRACTION))
        small = div(lr, norm(self.batch))
        thirds = [mul(small, fixed(self.graph, *exact.div(exact.norm(1, power), _NINTH))) for power in (30, 40)]
        beta = apply64(back.sum_e, thirds[1].shifted(ex + (8 - 12)))
        if layer.record.biased:
            return u, {"beta": beta}
        return u, {"gamma": apply64(back.sum_ex, thirds[0].shifted(ex + (16 - 12))), "beta": beta}

    def _skip_error(self, e: Value, r: Record) -> Value:
        if r.skip_kind is Skip.IDENTITY:
            return e
        height, width, channels = self._shape(r.skip)
        ys, xs = np.arange(height)[:, None], np.arange(width)[None, :]
        places = np.where((ys % 2 == 0) & (xs % 2 == 0), ys // 2 * r.w_out + xs // 2, r.h_out * r.w_out)
        kept = e.part(r.skip_pad_c, r.skip_pad_c + channels, 2)
        padded = self.graph.op("Pad", [kept, self.graph.constant([0, 0, 0, 0, 1, 0]), self.graph.constant(0)])
        return padded.take(self.graph.constant(places.reshape(-1)), 1)

    # --- update -----------------------------------------------------------------------------------------------

    def _update(
        self, layer: GraphLayer, u: Value, gradients: dict[str, Value], rates: Rates, lasso: Fx | None, keys: Keys
    ) -> None:
        stream = 4 * layer.record.index
        weights = update_weights(
            layer.weights,
            u.clamp(-UPDATE_LIMIT, UPDATE_LIMIT),
            rates,
            lasso,
            (keys.of(stream + 1), keys.of(stream + 2)),
        )
        moved: dict[str, Value | None] = {
            "q": weights.q, "v8": weights.v8, "ev": weights.ev, "rm": layer.rm, "rv": layer.rv,
        }  # fmt: skip
        decay = rates.decay if self.plan.decay_bn else None
        for name, gradient in gradients.items():
            limited = gradient.clamp(-GRADIENT_LIMIT, GRADIENT_LIMIT)
            value, velocity = update_parameter(
                name, layer.params[name], layer.velocity.get(name), limited, decay, rates.momentum
            )
            moved[name] = value
            moved[f"v_{name}"] = velocity
        layer_output(self.graph, layer, moved)

    def _lasso_rate(self, layers: dict[int, GraphLayer], record: Record, lr: Fx, pulls: Value | None) -> Fx | None:
        if pulls is None:
            return None
        row = pulls.take(self.graph.constant(list(layers).index(record.index)), 0)
        return mul(lr, self._pair(row))

    # --- small helpers ----------------------------------------------------------------------------------------

    def _layers(self, *, momentum: bool) -> dict[int, GraphLayer]:
        return {
            record.index: layer_input(self.graph, record, bits, self.plan.guard, momentum=momentum)
            for record, bits in zip(self.program.weight_layers, self.plan.bits, strict=True)
        }

    def _statistics(self, done: _Pass) -> None:
        self.graph.output("loss_q16", done.outcome.loss.sum([0]), I64, [])
        self.graph.output("correct", done.outcome.correct.sum([0]), I64, [])

    def _pair(self, value: Value) -> Fx:
        return Fx(value.take(self.graph.constant(0), 0), value.take(self.graph.constant(1), 0))

    def _shape(self, tensor: int) -> tuple[int, int, int]:
        if tensor == 0:
            return self.program.in_shape
        record = self.program.records[tensor - 1]
        return record.h_out, record.w_out, record.cout

    def _range(self, r: Record) -> tuple[int, int]:
        """Smallest and largest value that a convolution reads."""
        if r.input == 0:
            return -255, 255
        zero = self.program.zeros[r.input] >> (8 - self.plan.act_bits)
        return -zero, int(2**self.plan.act_bits) - 1 - zero

    def _amax(self, r: Record) -> int:
        return 255 if r.input == 0 else int(2**self.plan.act_bits) - 1

    def _read(self, tensor: Value, zero: int) -> Value:
        drop = 8 - self.plan.act_bits
        if drop:
            tensor = (tensor + (1 << (drop - 1))).logical_right(drop).min(2**self.plan.act_bits - 1)
        return tensor + -(zero >> drop)

    def _y_shift(self, layer: GraphLayer) -> int:
        return _headroom(layer.record.fan_in, self._amax(layer.record) * layer.top)

    @staticmethod
    def _gamma(layer: GraphLayer) -> Value:
        return rshift(layer.params["gamma"], 16).clamp(-32767, 32767)


def _headroom(terms: int, largest: int) -> int:
    """Bits above 13 of a random sum of so many products of at most this size."""
    return max(0, (math.isqrt(terms) * largest).bit_length() - 13)
