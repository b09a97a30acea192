"""The runnable twin of docs/arithmetic.md: every primitive against exact integers, fractions or doubles."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedmpq.models.reference import activation, batchnorm, conv, errors, fx, loss, pool, rng, update
from fedmpq.models.reference.errors import Error
from fedmpq.models.reference.fx import Fx
from fedmpq.models.reference.program import Kind, Record, Skip
from fedmpq.models.reference.rng import Key, StepKey
from fedmpq.models.reference.state import Layer

ZERO = Fx(0, 0)
PAGE = (Path(__file__).parents[2] / "docs" / "arithmetic.md").read_text(encoding="utf-8")

FX = st.builds(Fx, st.integers(2**30, 2**31 - 1), st.integers(-90, 20))
INT32 = st.integers(-(2**31), 2**31)
INT64 = st.integers(-(2**61), 2**61)


def exact(a: Fx) -> Fraction:
    return Fraction(a.m) * Fraction(2) ** a.e


def half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


class TestNotation:
    @given(INT64, st.integers(-1, 61))
    def test_rshift_rounds_half_up(self, x: int, s: int) -> None:
        expected = half_up(Fraction(x) / 2**s) if s > 0 else x << -s
        assert fx.rshift(x, s) == expected
        if abs(expected) < 2**62:
            assert int(fx.rshift(ints(x), s)) == expected
            assert int(fx.rshift_each(ints(x), ints(s))) == expected

    @given(st.integers(-(2**31), 2**31 - 1), st.integers(-2, 62))
    def test_reven_takes_ties_to_even(self, x: int, s: int) -> None:
        assert int(fx.rshift_even(ints(x), s)) == (round(Fraction(x, 2**s)) if s > 0 else x << -s)

    def test_reven_has_no_bias_and_rshift_has(self) -> None:
        for s in range(1, 6):
            x = torch.arange(-(2**10), 2**10)  # every residue equally often; the end points sum to half a unit each
            assert abs(int(fx.rshift_even(x, s).sum()) * 2**s - int(x.sum())) <= 2**s
            assert int(fx.rshift(x, s).sum()) * 2**s - int(x.sum()) == len(x) // 2

    def test_rshift_beyond_62_is_zero(self) -> None:
        assert fx.rshift(2**61, 63) == 0
        assert int(fx.rshift(ints(2**61), 63)) == 0

    @given(INT64, st.integers(1, 2**31))
    def test_rdiv_rounds_to_nearest(self, a: int, d: int) -> None:
        assert fx.rdiv(a, d) == int(fx.rdiv(ints(a), d)) == (a + d // 2) // d
        assert abs(Fraction(a, d) - fx.rdiv(a, d)) <= Fraction(1, 2)

    @given(st.integers(0, 2**63 - 1))
    def test_bitlen(self, x: int) -> None:
        assert int(fx.bitlen(ints(x))) == x.bit_length()

    @given(st.integers(0, 2**52 - 1))
    def test_isqrt(self, x: int) -> None:
        assert int(fx.isqrt(ints(x))) == math.isqrt(x)

    @given(st.integers(1, 2**26 - 1), st.integers(-1, 1))
    def test_isqrt_beside_squares(self, root: int, offset: int) -> None:
        assert int(fx.isqrt(ints(root * root + offset))) == math.isqrt(root * root + offset)


class TestFx:
    """Section 1."""

    @given(st.integers(1, 2**64 - 1), st.integers(-60, 60))
    def test_norm_truncates_to_31_bits(self, value: int, e: int) -> None:
        a = fx.norm(value, e)
        assert 2**30 <= a.m < 2**31
        low, high = exact(a), exact(Fx(a.m + 1, a.e))
        assert low <= Fraction(value) * Fraction(2) ** e < high

    @given(FX, FX)
    def test_products_and_quotients_err_by_less_than_one_unit(self, a: Fx, b: Fx) -> None:
        for result, true in ((fx.mul(a, b), exact(a) * exact(b)), (fx.div(a, b), exact(a) / exact(b))):
            assert 2**30 <= result.m < 2**31
            assert 0 <= 1 - exact(result) / true < Fraction(1, 2**29)

    @given(FX)
    def test_zero_gives_zero(self, a: Fx) -> None:
        zero = fx.norm(0, 7)
        assert zero == (0, 0) == fx.mul(a, zero) == fx.div(zero, a) == zero.shifted(9)
        assert int(fx.apply(ints(5), zero)) == int(fx.apply64(ints(2**50), zero)) == 0

    @given(INT32, FX)
    def test_apply_is_the_rounded_product(self, x: int, a: Fx) -> None:
        true = half_up(x * exact(a)) if -a.e <= 62 else 0
        assert int(fx.apply(ints(x), a)) == max(-fx.SATURATED, min(fx.SATURATED, true))
        assert fx.apply_int(x, a) == int(fx.apply(ints(x), a))

    @given(INT32, st.integers(2**30, 2**31 - 1), st.integers(-62, 0))
    def test_apply_stays_inside_int64(self, x: int, m: int, e: int) -> None:
        half = 1 << (-e - 1) if e else 0
        assert abs(x * m) + half < 2**63

    @given(INT64, FX)
    def test_apply64_keeps_31_bits(self, x: int, a: Fx) -> None:
        j = max(0, abs(x).bit_length() - 31)
        assert abs(fx.rshift(x, j)) <= 2**31
        got, true = int(fx.apply64(ints(x), a)), x * exact(a)
        if abs(true) >= 2**31:
            assert abs(got) >= 2**31 - 4
        elif -(a.e + j) <= 62:
            assert abs(got - true) <= abs(true) / 2**30 + 1

    @given(st.lists(INT64, min_size=2, max_size=6), FX)
    def test_apply64_works_element_by_element(self, values: list[int], a: Fx) -> None:
        together = fx.apply64(ints(*values), a).tolist()
        assert together == [int(fx.apply64(ints(value), a)) for value in values]

    @given(st.floats(2**-60, 2**60, width=32))
    def test_floats_convert_exactly(self, value: float) -> None:
        assert float(fx.from_float(value)) == value


class TestRandomBits:
    """Section 2."""

    @staticmethod
    def mix(x: int, k1: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= k1
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ x >> 16

    @given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
    def test_mix(self, x: int, k1: int) -> None:
        assert rng.mix(x, k1) == int(rng.mix(ints(x), k1)) == self.mix(x, k1)

    @given(st.tuples(*[st.integers(0, 2**32 - 1)] * 5))
    def test_key(self, fields: tuple[int, ...]) -> None:
        k0, k1 = 0x9E3779B9, 0x85EBCA6B
        for v in fields:
            k0 = self.mix(k0 ^ v, k1)
            k1 = self.mix((k1 + v) % 2**32, k0)
        assert rng.derive(StepKey(*fields[:4]), fields[4]) == (k0, k1)

    @given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
    def test_words_are_indexed_row_major_and_wrap(self, k0: int, k1: int) -> None:
        table = rng.words(Key(k0, k1), (3, 4), torch.device("cpu"))
        assert table.flatten().tolist() == [self.mix((i + k0) % 2**32, k1) for i in range(12)]

    def test_every_bit_is_fair_and_streams_are_unrelated(self) -> None:
        count = 1 << 16
        first = rng.words(rng.derive(StepKey(1, 2, 3, 4), 5), (count,), torch.device("cpu"))
        second = rng.words(rng.derive(StepKey(1, 2, 3, 5), 5), (count,), torch.device("cpu"))
        for words in (first, first ^ second, first ^ first.roll(1)):
            for bit in range(32):
                share = float((words >> bit & 1).double().mean())
                assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(count)

    @given(st.integers(-(2**29), 2**29), st.integers(1, 24))
    def test_stochastic_shift_rounds_to_a_neighbour(self, x: int, s: int) -> None:
        key = rng.derive(StepKey(x & 0xFFFF, 0, 0, s), 1)
        assert int(rng.stochastic_shift(ints(x), s, key)) in {x >> s, -(-x >> s)}

    @pytest.mark.parametrize("x", [1, -1, 3_000_001, -7_654_321, 2**23, -(2**24) + 5])
    def test_stochastic_shift_is_unbiased(self, x: int) -> None:
        """Exactly: over all 2^s dithers the mean of ⌊(x + r) / 2^s⌋ is x / 2^s. Sampled: within five deviations."""
        s, count = 24, 1 << 20
        r = torch.arange(1 << 12)  # the same identity at 12 bits, in full
        assert int(((x + r) >> 12).sum()) == x
        got = rng.stochastic_shift(torch.full((count,), x), s, rng.derive(StepKey(9, 9, 9, 9), 1)).double()
        share = x / 2**s - math.floor(x / 2**s)
        assert abs(float(got.mean()) - x / 2**s) <= 5 * math.sqrt(share * (1 - share) / count) + 1e-12


def layer(q: list[int], bits: int, guard: int = 0, step: Fx | None = None) -> Layer:
    values = ints(*q).reshape(1, 1, 1, -1)
    record = Record(3, Kind.CONV, "l", 1, 1, 1, 0, 1, len(q), 1, 1, 1, 1, 1, 1, Skip.NONE, 0xFFFF, 0, 0)
    empty: dict[str, Tensor] = {}
    zero = torch.zeros(1, dtype=torch.int64)
    return Layer(
        record, bits, guard, step or fx.from_float(0.01), values, torch.zeros_like(values), zero, dict(empty),
        dict(empty), zero, zero,
    )  # fmt: skip


class TestWeightsAndActivations:
    """Sections 3 and 4."""

    def test_a_signed_tensor_is_read_about_its_zero_point(self) -> None:
        u8 = torch.arange(256)
        assert activation.read(u8, 8, 128).tolist() == list(range(-128, 128))
        assert activation.read(u8, 4, 128).tolist() == [min(15, (v + 8) >> 4) - 8 for v in range(256)]
        assert int(activation.read(ints(128), 4, 128)) == 0

    @given(st.integers(0, 255), st.integers(0, 255), st.sampled_from([0, 128]), st.integers(0, 6))
    def test_concatenation_moves_values_to_the_larger_exponent(self, a: int, b: int, zero: int, shift: int) -> None:
        got = activation.concatenate(ints(a), ints(b), (shift, 0), zero).tolist()
        assert got == [half_up(Fraction(a - zero, 2**shift)) + zero, b]
        assert 0 <= got[0] <= 255

    @given(st.integers(1, 8), st.integers(0, 7), st.data())
    def test_the_multiplied_weight_is_the_rounded_stored_one(self, n: int, g: int, data: st.DataObject) -> None:
        top = (2**n - 1) << g
        value = data.draw(st.integers(-top, top))
        got = int(layer([value], n, g).multiplied)
        magnitude = min(2**n - 1, half_up(Fraction(abs(value), 2**g)))
        assert got == (magnitude if value > 0 else -magnitude)

    def test_reading_four_bits_rounds_and_saturates(self) -> None:
        u8 = torch.arange(256)
        assert activation.read(u8, 8).tolist() == list(range(256))
        assert activation.read(u8, 4).tolist() == [min(15, half_up(Fraction(v, 16))) for v in range(256)]

    @given(st.integers(0, 2**32 - 1), st.integers(0, 3), st.booleans(), st.booleans())
    def test_crop_and_flip(self, seed: int, pad: int, crop: bool, flip: bool) -> None:
        height, width, key = 5, 6, StepKey(seed, 1, 2, 3)
        x = torch.arange(1, 3 * height * width + 1).reshape(3, height, width, 1)
        out = activation.crop_and_flip(x, pad, key, crop=crop, flip=flip)
        words = rng.words(rng.derive(key, 0xFFFF0000), (3,), x.device).tolist()
        for b, r in enumerate(words):
            dy = (r & 0xFFFF) * (2 * pad + 1) >> 16 if crop else pad
            dx = (r >> 16 & 0x7FFF) * (2 * pad + 1) >> 15 if crop else pad
            assert 0 <= dy <= 2 * pad
            assert 0 <= dx <= 2 * pad
            for yy in range(height):
                for xx in range(width):
                    column = width - 1 - xx if flip and r >> 31 else xx
                    sy, sx = yy + dy - pad, column + dx - pad
                    inside = 0 <= sy < height and 0 <= sx < width
                    assert int(out[b, yy, xx, 0]) == (int(x[b, sy, sx, 0]) if inside else 0)

    def test_every_shift_is_equally_likely(self) -> None:
        for p in range(17):
            counts = np.bincount(np.arange(2**15) * (2 * p + 1) >> 15)
            assert counts.max() - counts.min() <= 1


CONV = Record(1, Kind.CONV, "c", 3, 3, 2, 1, 2, 4, 6, 7, 5, 4, 3, 1, Skip.NONE, 0xFFFF, 0, 0)


class TestConvolution:
    """Section 5, sums; section 7, transposed sums and weight gradients."""

    def brute(self, a: Tensor, q: Tensor, e: Tensor, r: Record) -> tuple[Tensor, Tensor, Tensor]:
        acc = torch.zeros(a.shape[0], r.h_out, r.w_out, r.cout, dtype=torch.int64)
        ein, g = torch.zeros_like(a), torch.zeros_like(q)
        per_in, per_out = r.cin // r.groups, r.cout // r.groups
        for y in range(r.h_out):
            for x in range(r.w_out):
                for ky in range(r.kh):
                    for kx in range(r.kw):
                        sy, sx = y * r.stride + ky - r.pad, x * r.stride + kx - r.pad
                        if not (0 <= sy < r.h_in and 0 <= sx < r.w_in):
                            continue
                        for o in range(r.cout):
                            first = o // per_out * per_in
                            group = slice(first, first + per_in)
                            acc[:, y, x, o] += (a[:, sy, sx, group] * q[o, ky, kx]).sum(1)
                            ein[:, sy, sx, group] += e[:, y, x, o, None] * q[o, ky, kx]
                            g[o, ky, kx] += (e[:, y, x, o, None] * a[:, sy, sx, group]).sum(0)
        return acc, ein, g

    @pytest.mark.parametrize("kernel", [(3, 3, 2, 1), (1, 1, 1, 0), (5, 3, 1, 2)])
    def test_sums_are_exact(self, kernel: tuple[int, int, int, int]) -> None:
        kh, kw, stride, pad = kernel
        h_out, w_out = (7 + 2 * pad - kh) // stride + 1, (5 + 2 * pad - kw) // stride + 1
        r = Record(1, Kind.CONV, "c", kh, kw, stride, pad, 2, 4, 6, 7, 5, h_out, w_out, 1, Skip.NONE, 0xFFFF, 0, 0)
        generator = torch.Generator().manual_seed(1)
        a = torch.randint(-255, 256, (2, 7, 5, 4), generator=generator)
        q = torch.randint(-255, 256, r.weight_shape, generator=generator)
        e = torch.randint(-127, 128, (2, h_out, w_out, 6), generator=generator)
        acc, ein, g = self.brute(a, q, e, r)
        assert torch.equal(conv.forward(a, q, r, 255 * 255), acc)
        assert torch.equal(conv.to_input(e, q, r, 127 * 255), ein)
        assert torch.equal(conv.to_weights(a, e, r, 127 * 255), g)

    @pytest.mark.parametrize("bound", [1, 15 * 127, 255 * 255, 2**15 * 255, 2**26])
    @pytest.mark.parametrize("inner", [1, 63, 1000, 70_000])
    def test_products_at_the_bound_are_exact_in_floats(self, bound: int, inner: int) -> None:
        """All-extreme operands: the case in which float32 would lose bits first."""
        if inner * bound >= 2**53:
            bound = (2**53 - 1) // inner
        root = math.isqrt(bound)
        a, b = torch.full((1, 2, inner), root), torch.full((1, inner, 3), -root)
        a[0, 1, ::2] -= 1
        low = -root * (root * inner - (inner + 1) // 2)
        assert conv.matmul(a, b, bound).tolist() == [[[-root * root * inner] * 3, [low] * 3]]


class TestBatchNorm:
    """Section 5."""

    @given(st.integers(-32767, 32767), st.integers(0, 4000), st.integers(1, 400), st.integers(0, 2**31))
    def test_moments_are_mean_and_variance_in_1_256(self, centre: int, spread: int, m: int, seed: int) -> None:
        y = np.random.default_rng(seed).integers(-spread, spread + 1, m) + centre
        y = np.clip(y, -32767, 32767)
        got = batchnorm.moments(torch.from_numpy(y).reshape(m, 1, 1, 1))
        assert abs(int(got.mu8) / 256 - y.mean()) <= 1 / 512 + 1e-9
        variance = Fraction(int((y * y).sum()), m) - Fraction(int(y.sum()), m) ** 2
        assert got.v8.item() >= 1
        assert abs(int(got.v8) - 1 - 256 * variance) <= 2 or int(got.v8) == 1

    @given(st.integers(1, 2**39 - 1))
    def test_normaliser_is_accurate_over_the_whole_range(self, v8: int) -> None:
        n = batchnorm.normaliser(batchnorm.Moments(ints(0), ints(v8)))
        a, sh = int(n.a), int(n.sh)
        assert 5 <= sh <= 24
        assert 2**13 <= a < 2**14
        assert a * 2.0**-sh == pytest.approx(512 / math.sqrt(v8), rel=2**-12.4)

    @given(st.integers(1, 2**39 - 1), st.integers(-(2**23), 2**23), st.integers(-32767, 32767))
    def test_normalised_values_fit_int32_and_are_right(self, v8: int, mu8: int, y: int) -> None:
        n = batchnorm.normaliser(batchnorm.Moments(ints(mu8), ints(v8)))
        assert abs(y * int(n.a) + int(n.b)) < 2**31
        got = int(batchnorm.normalise(ints(y), n))
        true = 512 * (y - mu8 / 256) / math.sqrt(v8)
        true = max(-127.0, min(127.0, true))
        assert abs(got - true) <= 0.5 + abs(true) * 2**-12 + 0.01

    def test_variance_bound_of_the_widest_y(self) -> None:
        y = torch.tensor([32767, -32767]).repeat(512).reshape(-1, 1, 1, 1)
        assert int(batchnorm.moments(y).v8) < 2**39

    @given(st.integers(-(2**31) + 1, 2**31 - 1), st.integers(-32767 * 256, 32767 * 256), st.integers(1, 2**39 - 1))
    def test_running_statistics_stay_in_their_widths(self, rm: int, mu8: int, v8: int) -> None:
        new, rv = batchnorm.update_running(ints(rm), ints(v8 * 256), batchnorm.Moments(ints(mu8), ints(v8)))
        assert min(rm, mu8 * 256) - 1 <= int(new) <= max(rm, mu8 * 256) + 1
        assert abs(int(new)) < 2**31
        assert int(rv) == v8 * 256 < 2**47

    @given(st.integers(-(2**31) + 1, 2**31 - 1), st.integers(0, 2**47 - 1), st.integers(0, 7))
    def test_rescaled_statistics_saturate(self, rm: int, rv: int, j: int) -> None:
        new_rm, new_rv = batchnorm.rescale_running(ints(rm), ints(rv), j)
        assert int(new_rm) == max(-(2**31) + 1, min(2**31 - 1, rm << j))
        assert int(new_rv) == min(2**47 - 1, rv << 2 * j)

    @given(
        st.integers(-32767, 32767), st.integers(-127, 127), st.integers(-(2**30), 2**30), st.integers(0, 255),
        st.integers(0, 6), st.integers(0, 6),
    )  # fmt: skip
    def test_the_preactivation_fits_and_quantises(
        self, gamma: int, xhat: int, beta_acc: int, skip: int, t_skip: int, t_out: int
    ) -> None:
        z = int(activation.affine(ints(xhat), ints(gamma), activation.beta_of(ints(beta_acc))))
        z += skip << (12 + t_skip)
        assert abs(z) < 2**27
        true = Fraction(z, 2 ** (12 + t_out))
        assert int(activation.quantise(ints(z), t_out)) == max(0, min(255, half_up(true)))

    @given(
        st.integers(-(2**22), 2**22), st.integers(-(2**22), 2**22), st.integers(0, 255), st.integers(0, 6),
        st.integers(0, 6),
    )  # fmt: skip
    def test_a_linear_record_rounds_about_its_zero_point(
        self, product: int, beta: int, skip: int, t_skip: int, t_out: int
    ) -> None:
        z = product + beta + ((skip - 128) << (12 + t_skip))
        true = Fraction(z, 2 ** (12 + t_out))
        assert abs(z) + (128 << (12 + t_out)) < 2**31
        assert int(activation.quantise(ints(z), t_out, 128)) == max(0, min(255, half_up(true) + 128))

    def test_units_of_gamma_and_beta(self) -> None:
        """γ = 1 maps 32 (one σ) to 256/3 base steps of 3/256; β = 1 is as much."""
        assert activation.gamma_of(ints(round(2**31 / 3))).item() == 10923
        assert activation.beta_of(ints(round(2**28 / 3))).item() == 349525
        for z in (int(activation.affine(ints(32), ints(10923), ints(0))), 349525):
            assert z / 4096 * 3 / 256 == pytest.approx(1, rel=1e-4)


class TestBatchNormBackward:
    """Section 7."""

    @staticmethod
    def case(seed: int, channels: int = 5, m: int = 240, size: int = 3000) -> tuple[Tensor, ...]:
        g = np.random.default_rng(seed)
        spread = 10 ** g.uniform(0, 4, channels)
        y = torch.from_numpy(np.clip(g.normal(0, spread, (m, channels)), -32767, 32767).astype(np.int64))
        stats = batchnorm.moments(y.reshape(m, 1, 1, channels))
        n = batchnorm.normaliser(stats)
        xhat = batchnorm.normalise(y.reshape(m, 1, 1, channels), n)
        e = torch.from_numpy(np.clip(g.normal(0, size, (m, 1, 1, channels)), -32767, 32767).astype(np.int64))
        gamma = torch.from_numpy(g.integers(-32767, 32768, channels))
        return e, xhat, gamma, n, stats.v8

    @pytest.mark.parametrize("seed", range(12))
    def test_error_is_the_batch_norm_gradient(self, seed: int) -> None:
        e, xhat, gamma, n, v8 = self.case(seed)
        total = torch.zeros_like(e, dtype=torch.float64)
        for draw in range(32):
            got = batchnorm.backward(e, xhat, gamma, n, rng.derive(StepKey(seed, 0, 0, draw), 4))
            assert int(got.e8.abs().max()) <= 127
            total += got.e8 / 32
        m, x = e.shape[0], xhat / 32
        true = e - e.double().mean(0) - x * (e * x).mean(0)
        true = gamma * 16 * 32 / v8.double().sqrt() * true * 2.0 ** (16 - got.s) / 2**0
        # e8 · 2^(s − 16) is γ · 512/√V8 · (…): the exponents of section 7 are ey = ex + S − 28 − k and E · 2^(ex − 12).
        scale = float(true.abs().max())
        assert float((total - true).abs().max()) < 0.02 * scale + 1
        assert m == 240

    @pytest.mark.parametrize("seed", range(6))
    def test_constant_statistics_only_scale_the_error(self, seed: int) -> None:
        e, xhat, gamma, n, v8 = self.case(seed)
        draws = [
            batchnorm.backward(e, xhat, gamma, n, rng.derive(StepKey(seed, 0, 0, draw), 4), constant=True)
            for draw in range(32)
        ]
        mean = torch.stack([got.e8 for got in draws]).double().mean(0)
        true = gamma * 16 * 32 / v8.double().sqrt() * e * 2.0 ** (16 - draws[0].s)
        assert float((mean - true).abs().max()) < 0.02 * float(true.abs().max()) + 1
        assert max(int(got.e8.abs().max()) for got in draws) in range(40, 128)

    @pytest.mark.parametrize("seed", range(40))
    @pytest.mark.parametrize("size", [1, 30, 20_000])
    def test_terms_fit_int32(self, seed: int, size: int) -> None:
        e, xhat, gamma, n, _ = self.case(seed, size=size, m=40)
        e[:, :, :, 0] = 0
        s1, s2, m = e.sum((0, 1, 2)), (e * xhat).sum((0, 1, 2)), e.shape[0]
        live = e.abs().amax((0, 1, 2)) > 0
        bound = e.abs().amax((0, 1, 2)) + fx.rdiv(s1.abs(), m) + 1 + fx.rdiv(127 * s2.abs(), 1024 * m) + 1
        c, d = gamma * n.a, 24 - n.sh
        largest = int((torch.where(live, (c.abs() * bound) >> 8, 0) << d).max())
        assert largest < 2**61
        s = largest.bit_length() - 7
        ce = torch.where(live, fx.rshift_each(torch.where(live, c, 0), s - d - 14), 0)
        cx, c0 = -fx.rdiv(ce * s2, 1024 * m), -fx.rdiv(ce * s1, m)
        slack = 2**15 + 2**22
        assert int((e * ce).abs().max()) <= 2**29 + slack
        assert int((xhat * cx).abs().max()) <= 2**29 + slack
        assert int((e * ce + xhat * cx + c0).abs().max()) + 2**22 < 2**31

    def test_a_dead_channel_neither_moves_nor_sets_the_exponent(self) -> None:
        e, xhat, gamma, n, _ = self.case(3)
        e[..., 2] = 0
        with_dead = batchnorm.backward(e, xhat, gamma, n, Key(1, 2))
        wild = batchnorm.Normaliser(n.a, n.b, torch.where(torch.arange(5) == 2, 5, n.sh))
        assert torch.equal(batchnorm.backward(e, xhat, gamma, wild, Key(1, 2)).e8, with_dead.e8)
        assert not with_dead.e8[..., 2].any()
        nothing = batchnorm.backward(torch.zeros_like(e), xhat, gamma, n, Key(1, 2))
        assert nothing.s == 0
        assert not nothing.e8.any()


class TestMerging:
    """Section 7."""

    @given(
        st.lists(st.integers(-32767, 32767), min_size=3, max_size=3), st.integers(-60, 20),
        st.lists(st.integers(-32767, 32767), min_size=3, max_size=3), st.integers(-60, 20),
    )  # fmt: skip
    def test_the_sum_keeps_fourteen_bits(self, a: list[int], xa: int, b: list[int], xb: int) -> None:
        got = errors.merge(Error(ints(*a), xa), Error(ints(*b), xb))
        assert got.largest <= 32767
        true = [Fraction(p) * Fraction(2) ** xa + Fraction(q) * Fraction(2) ** xb for p, q in zip(a, b, strict=True)]
        for value, expected in zip(got.values.tolist(), true, strict=True):
            assert abs(value * Fraction(2) ** got.exponent - expected) <= Fraction(2) ** got.exponent
        swapped = errors.merge(Error(ints(*b), xb), Error(ints(*a), xa))
        if any(a) and any(b):
            assert swapped.exponent == got.exponent
            assert torch.equal(swapped.values, got.values)

    def test_zero_leaves_the_other_unchanged(self) -> None:
        zero, other = Error(ints(0, 0), 99), Error(ints(5, -32767), -3)
        assert errors.merge(zero, other) is other
        assert errors.merge(other, zero) is other
        assert errors.merge(None, other) is other


def pool_record(kind: Kind, k: int, stride: int, pad: int, size: int = 7) -> Record:
    out = (size + 2 * pad - k) // stride + 1
    return Record(1, kind, "p", k, k, stride, pad, 1, 2, 2, size, size, out, out, 1, Skip.NONE, 0xFFFF, 0, 0)


class TestPooling:
    """Section 6."""

    @pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (7, 1, 0), (2, 3, 0)])
    @pytest.mark.parametrize("kind", [Kind.MAX_POOL, Kind.AVG_POOL])
    def test_pools_match_autograd(self, kind: Kind, window: tuple[int, int, int]) -> None:
        r = pool_record(kind, *window)
        g = torch.Generator().manual_seed(3)
        x = torch.randperm(2 * 7 * 7 * 2, generator=g).reshape(2, 7, 7, 2)
        e = torch.randint(-32767, 32768, (2, r.h_out, r.w_out, 2), generator=g)
        leaf = x.permute(0, 3, 1, 2).double().requires_grad_()
        if kind is Kind.MAX_POOL:
            out = torch.nn.functional.max_pool2d(leaf, r.kh, r.stride, r.pad)
        else:
            out = torch.nn.functional.avg_pool2d(leaf, r.kh, r.stride, r.pad)
        assert torch.equal(pool.forward(x, r), (out + 0.5).floor().long().permute(0, 2, 3, 1))
        out.backward(e.permute(0, 3, 1, 2).double())
        got = pool.backward(Error(e, -5), x, r, divided=False)
        true = leaf.grad.permute(0, 2, 3, 1) * 2.0**-5
        assert got.largest <= 32767
        # Half a unit for each rounding; the quotient of each window is rounded before the overlap is added.
        overlap = math.ceil(r.kh / r.stride) ** 2
        assert float((got.values * 2.0**got.exponent - true).abs().max()) <= 2.0**got.exponent * (0.5 + overlap / 2)

    def test_the_gradient_goes_to_the_first_maximum(self) -> None:
        r = pool_record(Kind.MAX_POOL, 2, 2, 0, size=2)
        x, e = torch.full((1, 2, 2, 2), 7), torch.tensor([3, -4]).reshape(1, 1, 1, 2)
        values = pool.backward(Error(e, 0), x, r, divided=False).values
        assert values[0, 0, 0].tolist() == [3, -4]
        assert int(values.abs().sum()) == 7

    def test_a_pool_the_classifier_divided_for_copies(self) -> None:
        r = pool_record(Kind.GLOBAL_POOL, 7, 1, 0)
        e = torch.tensor([300, -32767]).reshape(1, 1, 1, 2)
        got = pool.backward(Error(e, 4), torch.zeros(1, 7, 7, 2, dtype=torch.int64), r, divided=True)
        assert got.exponent == 4
        assert torch.equal(got.values, e.expand(1, 7, 7, 2))


class TestLoss:
    """Section 6."""

    def test_powers_of_two_err_by_less_than_six_in_ten_thousand(self) -> None:
        fraction = torch.arange(65536)
        power = 65536 + (fraction * (45549 + (fraction * (14917 + (fraction * 5103 >> 16)) >> 16)) >> 16)
        true = 65536 * 2.0 ** (fraction.double() / 65536)
        assert float((power / true - 1).abs().max()) < 6e-4
        assert int(power.max()) << 8 <= 2**25 + 2**14

    @given(st.integers(1, 2**44))
    def test_lg(self, v: int) -> None:
        # Truncations of 16 squarings add up to a few of the last bits.
        assert abs(int(loss.lg(ints(v))) / 65536 - math.log2(v)) < 2.5 / 65536

    @given(st.lists(st.integers(-(2**27), 2**27), min_size=2, max_size=40), st.data())
    def test_softmax_gradient_and_loss(self, z: list[int], data: st.DataObject) -> None:
        label = data.draw(st.integers(0, len(z) - 1))
        got = loss.cross_entropy(ints(*z).reshape(1, -1), ints(label))
        nats = torch.tensor(z, dtype=torch.float64) / 65536
        p = torch.softmax(nats, 0)
        true = p - torch.nn.functional.one_hot(torch.tensor(label), len(z))
        assert float((got.e[0] / 32768 - true).abs().max()) < 5e-4
        assert int(got.e.abs().max()) <= 32768
        expected = float(-torch.log_softmax(nats, 0)[label])
        assert abs(int(got.loss) / 65536 - expected) < 1e-3 + 1e-4 * expected
        assert bool(got.correct) == (label == z.index(max(z)))

    @given(st.integers(0, 6), st.integers(1, 8), st.integers(0, 2**31))
    def test_logits_and_feature_errors(self, t: int, n: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        p = torch.randint(0, 256, (3, 20), generator=g)
        q = torch.randint(-(2**n) + 1, 2**n, (4, 20), generator=g)
        bias = torch.randint(-(2**20), 2**20, (4,), generator=g)
        step = fx.from_float(0.3 / (2**n - 1))
        f = loss.logit_scale(step, t)
        sigmas, weights = p.double() * 2.0**t * 3 / 256, q.double() * float(step)
        true = sigmas.double() @ weights.T.double() + bias / 2**20
        z = loss.logits(p, q, bias, f)
        assert float((z / 65536 - true).abs().max()) < 2e-5 + float(true.abs().max()) * 1e-8
        e = torch.randint(-32768, 32769, (3, 4), generator=g)
        for window in (1, 64, 49):
            error = loss.to_features(e, q, f, window, t)
            per_base_step = (e / 2**15).double() @ weights.double() * 3 / 256 / window
            assert error.largest <= 32767
            got = error.values * 2.0**error.exponent
            assert float((got - per_base_step).abs().max()) <= 1.01 * 2.0**error.exponent


class TestUpdate:
    """Sections 8 and 9."""

    @given(st.floats(2**-13, 2, width=32), st.floats(2**-13, 1, width=32), st.integers(0, 7), st.integers(1, 4096))
    def test_rate_is_lr_over_squared_step(self, lr: float, step: float, guard: int, batch: int) -> None:
        got = update.weight_rate(fx.from_float(lr), layer([1], 4, guard, fx.from_float(step)), batch)
        assert float(got) == pytest.approx(lr * 2**guard / step**2 / batch, rel=1e-8)

    @staticmethod
    def move(target: Layer, u: int, *, momentum: int | None, seed: int, decay: Fx = ZERO) -> None:
        update.update_weights(
            target, torch.full_like(target.q, u), decay=decay, lasso=Fx(0, 0), momentum=momentum,
            weight_key=Key(seed, 1), momentum_key=Key(seed, 2),
        )  # fmt: skip

    def test_the_mean_step_is_the_gradient(self) -> None:
        target = layer([0] * 60_000, 4)
        self.move(target, 3_000_000, momentum=None, seed=5)
        expected = -3_000_000 / 2**24
        assert float(target.q.double().mean()) == pytest.approx(expected, abs=5 * 0.5 / math.sqrt(60_000))

    def test_momentum_sums_geometrically_and_without_bias(self) -> None:
        """A constant gradient below every rounding step: q moves by u·(1 + 1.9 + 2.71 + …) on average."""
        count, u, mu = 40_000, 400_000, 29491 / 32768
        target = layer([0] * count, 8)
        expected, v = 0.0, 0.0
        for step in range(12):
            self.move(target, u, momentum=29491, seed=step)
            v = mu * v + u
            expected -= v / 2**24
        assert float(target.q.double().mean()) == pytest.approx(expected, abs=0.02)
        assert float((target.v8 << target.ev.reshape(-1, 1, 1, 1)).double().mean()) == pytest.approx(v, rel=0.01)

    @given(st.integers(-(2**30), 2**30), st.integers(1, 8), st.integers(0, 7), st.integers(0, 2**31))
    def test_weights_stay_in_range_and_momentum_in_int8(self, u: int, n: int, g: int, seed: int) -> None:
        target = layer([0, (2**n - 1) << g, -((2**n - 1) << g)], n, g)
        for _ in range(3):
            self.move(target, u, momentum=32767, seed=seed, decay=fx.from_float(0.01))
        assert int(target.q.abs().max()) <= target.limit
        assert int(target.v8.abs().max()) <= 127
        assert 0 <= int(target.ev) <= 24

    def test_weight_decay_is_relative_to_the_weight(self) -> None:
        target = layer([100] * 50_000, 8)
        self.move(target, 0, momentum=None, seed=1, decay=fx.from_float(0.001))
        assert float(target.q.double().mean()) == pytest.approx(99.9, abs=0.01)

    @given(st.lists(st.integers(-255, 255), min_size=1, max_size=30))
    def test_lasso_pulls_by_planes(self, q: list[int]) -> None:
        target = layer(q, 8)
        rate = 0.01
        got = update.lasso_pull(target, fx.from_float(rate)).flatten()
        counts = [sum(abs(v) >> i & 1 for v in q) for i in range(8)]
        assert target.set_counts == tuple(counts)
        for value, pull in zip(q, got.tolist(), strict=True):
            planes = sum(2**i / math.sqrt(counts[i]) for i in range(8) if abs(value) >> i & 1)
            assert pull == pytest.approx(math.copysign(planes, value) * rate * 2**24 if value else 0, rel=1e-3, abs=8)

    @given(st.integers(1, 2**26))
    def test_root_of_a_count(self, k: int) -> None:
        assert float(fx.norm(math.isqrt(k << 20), -10)) == pytest.approx(math.sqrt(k), rel=1e-3)

    def test_parameters_saturate(self) -> None:
        target = layer([1], 4)
        for name, limit in update.PARAM_LIMITS.items():
            target.params[name], target.velocity[name] = ints(limit, -limit, 7), ints(0, 0, 0)
            gradient = {name: ints(-(2**28), 2**28, 2)}
            update.update_params(target, gradient, decay=Fx(0, 0), momentum=29491)
            assert target.params[name].tolist() == [limit, -limit, 5]
            assert target.velocity[name].tolist() == [-(2**28), 2**28, 2]

    def test_pruning_drops_sparse_top_planes_and_saturates(self) -> None:
        target = layer([15, 3, -2, 1, 0, 1, -3, 2, 1, -9], 4)
        assert update.prune(target, 65536 * 3 // 10) == 2  # density 0.2 of plane 4 and, saturated, 0.2 of plane 3
        assert target.bits == 2
        assert target.q.flatten().tolist() == [3, 3, -2, 1, 0, 1, -3, 2, 1, -3]
        assert update.prune(layer([0] * 9, 8), 1) == 7

    def test_pruning_compares_exactly(self) -> None:
        assert update.prune(layer([2, 1, 1, 1], 2), 16384) == 0
        assert update.prune(layer([2, 1, 1, 1], 2), 16385) == 1


class TestWidths:
    """The bounds the page states."""

    @pytest.mark.parametrize("act_bits", [4, 8])
    @pytest.mark.parametrize("n", range(1, 9))
    @pytest.mark.parametrize("terms", [9, 27, 144, 576, 4608])
    def test_a_typical_accumulator_takes_at_most_13_bits(self, act_bits: int, n: int, terms: int) -> None:
        product = (2**act_bits - 1) * (2**n - 1)
        assert terms * 255 * 255 < 2**31
        k = max(0, (math.isqrt(terms) * product).bit_length() - 13)
        assert math.isqrt(terms) * product >> k < 2**13

    @pytest.mark.parametrize("m", [1, 64, 2**16, 2**18])
    def test_the_weight_gradient_fits_int32_after_gs(self, m: int) -> None:
        largest = 255 * 127 * m
        assert largest <= 2**33
        gs = max(0, largest.bit_length() - 31)
        assert fx.rshift(largest, gs) < 2**31

    def test_the_page_states_the_constants_used_here(self) -> None:
        for constant in ("94548", "45549", "14917", "5103", "45426", "0x7feb352d", "0x846ca68b", "0xffff0000"):
            assert constant in PAGE
        assert round(math.log2(math.e) * 65536) == 94548
        assert round(math.log(2) * 65536) == 45426
        assert re.search(r"n \+ g ≤ 15", PAGE)
