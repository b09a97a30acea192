"""One training session: forward, backward and update of whole batches, the readable twin of the C core's session."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedmpq.errors import FormatError, UsageError
from fedmpq.models.reference import activation, batchnorm, conv, loss, pool, update
from fedmpq.models.reference.errors import Error, merge
from fedmpq.models.reference.fx import Fx, apply, apply64, div, mul, norm, rshift, rshift_even, sat16
from fedmpq.models.reference.plan import HyperLike, PlanLike, Stats
from fedmpq.models.reference.program import Kind, Program, Record, Skip, parse
from fedmpq.models.reference.rng import StepKey, derive
from fedmpq.models.reference.state import Layer, LayerState, StateLike, pack, unpack

#: Images u8 [B, H, W, C] and labels [B]: tensors, arrays or any buffer of native bytes.
Batch: TypeAlias = Any


@dataclass
class _Saved:
    """What a convolution keeps for its backward pass."""

    a: Tensor
    xhat: Tensor
    normaliser: batchnorm.Normaliser


@dataclass
class _Pass:
    """One forward pass: all tensors, the convolutions' saved values by record, the outcome."""

    tensors: list[Tensor]
    saved: dict[int, _Saved]
    outcome: loss.Outcome
    features: Tensor


@dataclass
class LayerGradient:
    """Gradient of one weight layer over a micro-batch, before any rate.

    `weights · 2^exponent` is the gradient of the loss sum for one multiplied step of a convolution; for a classifier it
    is `weights · 2^−15` times the logit scale. `params` are S2, S1 (times 2^(error_exponent − 12)) or Gb (times 2^−15).
    """

    weights: Tensor
    exponent: int
    params: dict[str, Tensor]
    error_exponent: int


class ReferenceSession:
    """Trains a program in integers with PyTorch, to the same bits as `fedmpq.edge_runtime.core.Session`.

    Args:
        program: bytes of a training program.
        plan: bits per weight layer and options; bits change when `load` or `prune` say so.
        device: where tensors live; results do not depend on it.
    """

    def __init__(self, program: bytes, plan: PlanLike, device: str | torch.device = "cpu") -> None:
        self.program: Program = parse(program)
        self.plan = plan
        self.device = torch.device(device)
        self._records = self.program.weight_layers
        self._layers: list[Layer | None] = [None] * len(self._records)
        self._position = {record.index: i for i, record in enumerate(self._records)}
        if len(plan.bits) != len(self._records):
            raise UsageError(f"the plan has bits for {len(plan.bits)} layers, the program has {len(self._records)}")

    # --- state ------------------------------------------------------------------------------------------------

    def load(self, i: int, state: StateLike) -> None:
        """Set weight layer i and clear its momentum."""
        if (state.bits, state.guard) != (self.plan.bits[i], self.plan.guard):
            raise FormatError(
                f"layer {self._records[i].name}: {state.bits} bits and {state.guard} guard planes, "
                f"the plan has {self.plan.bits[i]} and {self.plan.guard}"
            )
        self._layers[i] = unpack(self._records[i], state, self.device)

    def read(self, i: int) -> LayerState:
        """The present state of weight layer i."""
        return pack(self.layer(i))

    def layer(self, i: int) -> Layer:
        """Working state of weight layer i."""
        layer = self._layers[i]
        if layer is None:
            raise UsageError(f"layer {self._records[i].name} has not been loaded")
        return layer

    def set_count(self, i: int) -> tuple[int, ...]:
        """Set bits of each magnitude plane of weight layer i, least significant first."""
        return self.layer(i).set_counts

    def prune(self, eps_q16: int) -> tuple[int, ...]:
        """Drop sparse top planes of every layer (eq. 13); returns the bits that are left."""
        for i, record in enumerate(self._records):
            layer = self.layer(i)
            before = self._y_shift(record, layer.bits)
            update.prune(layer, eps_q16)
            if record.kind is Kind.CONV:
                j = before - self._y_shift(record, layer.bits)
                layer.rm, layer.rv = batchnorm.rescale_running(layer.rm, layer.rv, j)
        return tuple(self.layer(i).bits for i in range(len(self._records)))

    def state_hash(self) -> str:
        """SHA-256 over all layers' planes and params, in record order."""
        digest = hashlib.sha256()
        for i in range(len(self._records)):
            state = self.read(i)
            for part in (*state.planes, state.params):
                digest.update(part)
        return digest.hexdigest()

    # --- training and evaluation ------------------------------------------------------------------------------

    def step(self, images: Batch, labels: Batch, hyper: HyperLike, key: tuple[int, int, int, int]) -> Stats:
        """One update from a batch, in micro-batches where the plan says so; key = (seed, round, client, step)."""
        pixels, targets = self._batch(images, labels)
        total = len(targets)
        size = self.plan.micro_batch or total
        first = StepKey(*key)
        sums: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}
        results = []
        for j, start in enumerate(range(0, total, size)):
            step_key = first._replace(step=first.step + j)
            stats, gradients = self.gradients(pixels[start : start + size], targets[start : start + size], step_key)
            results.append(stats)
            for i, gradient in gradients.items():
                sums[i] = _accumulate(sums.get(i), self._scaled(self.layer(i), gradient, hyper, total))
        for i, (u, params) in sorted(sums.items(), reverse=True):
            self._update(i, u, params, hyper, step_key)
        return Stats(*(sum(getattr(r, name) for r in results) for name in ("loss_q16", "correct", "count")))

    def evaluate(self, images: Batch, labels: Batch) -> Stats:
        """Loss and accuracy with running statistics and without augmentation."""
        pixels, targets = self._batch(images, labels)
        done = self._forward(activation.centre(pixels, self.program.mean), targets, training=False)
        return _stats(done.outcome)

    def gradients(self, images: Tensor, labels: Tensor, key: StepKey) -> tuple[Stats, dict[int, LayerGradient]]:
        """Forward and backward of one micro-batch; gradients by weight layer. Moves the running statistics."""
        plan, program = self.plan, self.program
        x = activation.centre(images, program.mean)
        x = activation.crop_and_flip(x, program.crop_pad, key, crop=plan.crop, flip=plan.flip)
        done = self._forward(x, labels, training=True)
        errors: list[Error | None] = [None] * len(done.tensors)
        gradients: dict[int, LayerGradient] = {}
        for record in reversed(program.records):
            if record.kind is Kind.CLASSIFIER:
                gradients[self._position[record.index]] = self._classifier_backward(record, done, errors)
            elif record.kind is Kind.CONV:
                gradients[self._position[record.index]] = self._conv_backward(record, done, errors, key)
            elif record.kind is Kind.CONCAT:
                self._concat_backward(record, done, errors)
            else:
                divided = record.kind is Kind.GLOBAL_POOL and program.records[-1].input == record.index + 1
                source = done.tensors[record.input]
                moved = pool.backward(_present(errors[record.index + 1]), source, record, divided=divided)
                errors[record.input] = merge(errors[record.input], moved)
        return _stats(done.outcome), gradients

    # --- forward ----------------------------------------------------------------------------------------------

    def _forward(self, x: Tensor, labels: Tensor, *, training: bool) -> _Pass:
        tensors = [x]
        saved: dict[int, _Saved] = {}
        for record in self.program.records[:-1]:
            if record.kind is Kind.CONV:
                out = self._conv_forward(record, tensors, saved, training=training)
            elif record.kind is Kind.CONCAT:
                shifts = tuple(record.t_out - self.program.exponents[t] for t in record.inputs)
                zero = self.program.zeros[record.input]
                out = activation.concatenate(tensors[record.input], tensors[record.skip], (shifts[0], shifts[1]), zero)
            else:
                out = pool.forward(tensors[record.input], record)
            tensors.append(out)
        last = self.program.records[-1]
        layer = self.layer(len(self._records) - 1)
        features = tensors[last.input].flatten(1) - self.program.zeros[last.input]
        scale = loss.logit_scale(layer.step, self.program.exponents[last.input])
        z = loss.logits(features, layer.multiplied.flatten(1), layer.params["bias"], scale)
        return _Pass(tensors, saved, loss.cross_entropy(z, labels), features)

    def _conv_forward(self, r: Record, tensors: list[Tensor], saved: dict[int, _Saved], *, training: bool) -> Tensor:
        layer = self.layer(self._position[r.index])
        a = tensors[r.input]
        if r.input > 0:
            a = activation.read(a, self.plan.act_bits, self.program.zeros[r.input])
        a = a.reshape(-1, r.h_in, r.w_in, r.cin)  # a hidden linear layer flattens its input
        acc = conv.forward(a, layer.multiplied, r, self._amax(r) * (2**layer.bits - 1))
        y = sat16(rshift_even(acc, self._y_shift(r, layer.bits)))
        if training and not r.biased:
            stats = batchnorm.moments(y)
            layer.rm, layer.rv = batchnorm.update_running(layer.rm, layer.rv, stats)
        else:
            stats = batchnorm.running_moments(layer.rm, layer.rv)
        normaliser = batchnorm.normaliser(stats)
        xhat = batchnorm.normalise(y, normaliser)
        z = activation.affine(xhat, *self._gamma_beta(layer))
        if r.skip_kind is not Skip.NONE:
            skip = activation.skip_value(tensors[r.skip] - self.program.zeros[r.skip], r)
            z = z + (skip << (activation.Z_FRACTION + self.program.exponents[r.skip]))
        saved[r.index] = _Saved(a, xhat, normaliser)
        return activation.quantise(z, r.t_out, self.program.zeros[r.index + 1])

    # --- backward ---------------------------------------------------------------------------------------------

    def _classifier_backward(self, r: Record, done: _Pass, errors: list[Error | None]) -> LayerGradient:
        layer = self.layer(self._position[r.index])
        e, t = done.outcome.e, self.program.exponents[r.input]
        scale = loss.logit_scale(layer.step, t)
        error = loss.to_features(e, layer.multiplied.flatten(1), scale, self.program.pooled_window, t)
        source = done.tensors[r.input]
        errors[r.input] = merge(errors[r.input], Error(error.values.reshape(source.shape), error.exponent))
        weights = loss.to_weights(done.features, e).reshape(r.weight_shape)
        return LayerGradient(weights, 0, {"bias": e.sum(0)}, 0)

    def _conv_backward(self, r: Record, done: _Pass, errors: list[Error | None], key: StepKey) -> LayerGradient:
        layer, saved, out = self.layer(self._position[r.index]), done.saved[r.index], done.tensors[r.index + 1]
        error = _present(errors[r.index + 1])
        e = torch.where((out > 0) & (out < 255), error.values, 0)
        gamma, _ = self._gamma_beta(layer)
        back = batchnorm.backward(e, saved.xhat, gamma, saved.normaliser, derive(key, 4 * r.index), constant=r.biased)
        ey = error.exponent + back.s - 28 - self._y_shift(r, layer.bits)

        if r.input > 0:
            top = 127 * (2**layer.bits - 1)
            spread = conv.to_input(back.e8, layer.multiplied, r, top)
            ke = _headroom(r.kh * r.kw * (r.cout // r.groups), top)
            unit = self.program.exponents[r.input] + 8 - self.plan.act_bits
            moved = Error(sat16(rshift_even(spread, ke)).reshape(done.tensors[r.input].shape), ey + ke - unit)
            errors[r.input] = merge(errors[r.input], moved)
        if r.skip_kind is not Skip.NONE:
            skip = activation.skip_error(e, r, done.tensors[r.skip].shape)
            errors[r.skip] = merge(errors[r.skip], Error(skip, error.exponent))

        positions = out.numel() // out.shape[-1]
        bound = self._amax(r) * 127
        gs = max(0, (bound * positions).bit_length() - 31)
        weights = rshift(conv.to_weights(saved.a, back.e8, r, bound), gs)
        params = {"beta": back.sum_e} if r.biased else {"gamma": back.sum_ex, "beta": back.sum_e}
        return LayerGradient(weights, ey + gs, params, error.exponent)

    @staticmethod
    def _concat_backward(r: Record, done: _Pass, errors: list[Error | None]) -> None:
        """Each part of the error belongs to one input; an error counts base steps, whatever the exponents."""
        error = _present(errors[r.index + 1])
        split = done.tensors[r.input].shape[-1]
        for tensor, part in ((r.input, error.values[..., :split]), (r.skip, error.values[..., split:])):
            errors[tensor] = merge(errors[tensor], Error(part, error.exponent))

    # --- update -----------------------------------------------------------------------------------------------

    def _scaled(
        self, layer: Layer, gradient: LayerGradient, hyper: HyperLike, batch: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Rate times gradient: U in 2^−24 of a stored step, parameters in units of their accumulators."""
        lr = Fx(*hyper.lr)
        rate, small = update.weight_rate(lr, layer, batch), div(lr, norm(batch))
        if layer.record.kind is Kind.CLASSIFIER:
            scale = loss.logit_scale(layer.step, self.program.exponents[layer.record.input])
            u = apply64(gradient.weights, mul(rate, scale).shifted(update.FRACTION - 15))
            rates = {"bias": small.shifted(20 - 15)}
        else:
            u = apply(gradient.weights, rate.shifted(update.FRACTION + gradient.exponent))
            ninth = norm(9)
            ex = gradient.error_exponent - activation.Z_FRACTION
            rates = {
                "gamma": mul(small, div(norm(1, 30), ninth)).shifted(16 + ex),
                "beta": mul(small, div(norm(1, 40), ninth)).shifted(8 + ex),
            }
        params = {
            name: update.clamped(apply64(value, rates[name]), update.GRADIENT_LIMIT)
            for name, value in gradient.params.items()
        }
        return update.clamped(u, update.UPDATE_LIMIT), params

    def _update(self, i: int, u: Tensor, params: dict[str, Tensor], hyper: HyperLike, key: StepKey) -> None:
        layer, lr = self.layer(i), Fx(*hyper.lr)
        decay = mul(lr, Fx(*hyper.weight_decay))
        momentum = hyper.momentum_q15 if self.plan.momentum else None
        stream = 4 * layer.record.index
        update.update_weights(
            layer,
            u,
            decay=decay,
            lasso=mul(lr, Fx(*hyper.lasso[i])) if hyper.lasso else Fx(0, 0),
            momentum=momentum,
            weight_key=derive(key, stream + 1),
            momentum_key=derive(key, stream + 2),
        )
        update.update_params(layer, params, decay=decay if self.plan.decay_bn else Fx(0, 0), momentum=momentum)

    # --- small helpers ----------------------------------------------------------------------------------------

    def _batch(self, images: Batch, labels: Batch) -> tuple[Tensor, Tensor]:
        pixels = _tensor(images, np.uint8).reshape(-1, *self.program.in_shape).to(self.device)
        targets = _tensor(labels, np.uint16).to(torch.int64).reshape(-1).to(self.device)
        if len(pixels) != len(targets) or len(targets) == 0:
            raise UsageError(f"a batch of {len(pixels)} images has {len(targets)} labels")
        if int(targets.max()) >= self.program.classes:
            raise UsageError(f"label {int(targets.max())} in a batch of {self.program.classes} classes")
        return pixels, targets

    def _amax(self, r: Record) -> int:
        return 255 if r.input == 0 else int(2**self.plan.act_bits - 1)

    def _y_shift(self, r: Record, bits: int) -> int:
        """k: accumulators of typical size lose what exceeds 13 bits."""
        return _headroom(r.fan_in, self._amax(r) * (2**bits - 1))

    @staticmethod
    def _gamma_beta(layer: Layer) -> tuple[Tensor, Tensor]:
        return activation.gamma_of(layer.params["gamma"]), activation.beta_of(layer.params["beta"])


def _headroom(terms: int, product: int) -> int:
    """Bits above 13 of a random sum of so many products of at most this size."""
    return max(0, (math.isqrt(terms) * product).bit_length() - 13)


def _accumulate(
    total: tuple[Tensor, dict[str, Tensor]] | None, part: tuple[Tensor, dict[str, Tensor]]
) -> tuple[Tensor, dict[str, Tensor]]:
    if total is None:
        return part
    u = update.clamped(total[0] + part[0], update.UPDATE_LIMIT)
    return u, {name: update.clamped(total[1][name] + part[1][name], update.UPDATE_LIMIT) for name in part[1]}


def _present(error: Error | None) -> Error:
    if error is None:
        raise AssertionError("a parsed program has a reader for every tensor")
    return error


def _stats(outcome: loss.Outcome) -> Stats:
    return Stats(int(outcome.loss.sum()), int(outcome.correct.sum()), len(outcome.loss))


def _tensor(values: Batch, kind: type[np.generic]) -> Tensor:
    """A tensor of an array, tensor or raw buffer; labels come as uint16, which torch handles only as int64."""
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values) if isinstance(values, np.ndarray | list | tuple) else np.frombuffer(values, kind)
    return torch.from_numpy(array.astype(np.uint8 if kind is np.uint8 else np.int64))
