from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmpq.errors import FormatError, TruncatedError
from fedmpq.models import codec

BITS = st.integers(1, 15)


@st.composite
def weights(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    n = draw(BITS)
    top = 2**n - 1
    return draw(hnp.arrays(np.int32, st.integers(1, 70), elements=st.integers(-top, top))), n


@given(weights())
def test_unpack_inverts_pack(case: tuple[np.ndarray, int]) -> None:
    q, n = case
    planes = codec.pack(q, n)
    assert len(planes) == n + 1
    assert {len(plane) for plane in planes} == {codec.plane_bytes(q.size)}
    assert np.array_equal(codec.unpack(planes, q.size), q)


@given(weights())
def test_planes_are_the_bits_of_sign_and_magnitude(case: tuple[np.ndarray, int]) -> None:
    q, n = case
    for j, value in enumerate(q.tolist()):
        bits = [plane[j // 8] >> (j % 8) & 1 for plane in codec.pack(q, n)]
        assert bits == [int(value < 0), *(abs(value) >> i & 1 for i in range(n))]


@given(weights())
def test_drop_saturates_and_keeps_the_rest(case: tuple[np.ndarray, int]) -> None:
    q, n = case
    planes = codec.pack(q, n)
    if n == 1:
        with pytest.raises(ValueError, match="last"):
            codec.drop(planes)
        return
    top = 2 ** (n - 1) - 1
    assert np.array_equal(codec.unpack(codec.drop(planes), q.size), np.clip(q, -top, top))


@given(weights())
def test_grow_changes_no_value_and_drop_undoes_it(case: tuple[np.ndarray, int]) -> None:
    q, n = case
    planes = codec.pack(q, n)
    if n == codec.MAX_PLANES:
        with pytest.raises(ValueError, match="at most"):
            codec.grow(planes)
        return
    assert np.array_equal(codec.unpack(codec.grow(planes), q.size), q)
    assert codec.drop(codec.grow(planes)) == planes


@given(weights())
def test_density_counts_set_bits(case: tuple[np.ndarray, int]) -> None:
    q, n = case
    expected = tuple(float(np.mean(np.abs(q) >> i & 1)) for i in range(n))
    assert codec.density(codec.pack(q, n), q.size) == pytest.approx(expected)


@given(
    hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-8, 8, width=32)),
    st.integers(1, 8),
    st.integers(0, 4),
)
def test_quantising_at_max_scale_errs_by_half_a_step(values: np.ndarray, n: int, guard: int) -> None:
    q, step = codec.quantise(values, n, guard=guard)
    assert 2**30 <= step[0] < 2**31
    assert np.abs(q).max() <= (2**n - 1) << guard
    error = np.abs(codec.dequantise(q, step, guard=guard) - values)
    assert error.max() <= codec.fx_to_float(step) / 2**guard * 0.5 + 1e-7


@pytest.mark.parametrize(("n", "decibels"), [(1, 7.2), (2, 13.3), (3, 18.9), (4, 24.4)])
def test_mse_clipping_reaches_the_optimum_on_gaussian_weights(n: int, decibels: float) -> None:
    values = np.random.default_rng(n).normal(0, 0.05, 40_000)
    q, step = codec.quantise(values, n, "mse")
    noise = np.square(codec.dequantise(q, step) - values).mean()
    assert 10 * np.log10(np.square(values).mean() / noise) == pytest.approx(decibels, abs=0.25)


@given(hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-8, 8)), st.integers(1, 8))
def test_mse_is_never_worse_than_max(values: np.ndarray, n: int) -> None:
    def noise(scale: codec.Scale) -> float:
        q, step = codec.quantise(values, n, scale)
        return float(np.square(codec.dequantise(q, step) - values).sum())

    assert noise("mse") <= noise("max") * (1 + 1e-6) + 1e-12


def test_zero_weights_get_a_usable_step() -> None:
    q, step = codec.quantise(np.zeros((2, 3, 3, 4)), 4)
    assert not q.any() and q.shape == (2, 3, 3, 4) and 2**30 <= step[0] < 2**31
    with pytest.raises(ValueError, match="finite"):
        codec.quantise([np.inf], 4)


@pytest.mark.parametrize(
    ("planes", "theta", "error"),
    [
        ([b"\0", b"\0", b""], 5, TruncatedError),
        ([b"\0", b"\0\0"], 5, TruncatedError),
        ([b"\0", b"\x20"], 5, FormatError),
        ([b"\1", b"\0"], 5, FormatError),
        ([b"\0"], 5, FormatError),
        ([b"\0"] * 18, 5, FormatError),
    ],
)
def test_malformed_planes_are_named(planes: list[bytes], theta: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        codec.unpack(planes, theta)


def test_packing_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="magnitude 4"):
        codec.pack([1, -4], 2)
