"""The C core's library: where it lies, its structures and its functions' signatures (ctypes, no other package)."""

from __future__ import annotations

import ctypes as c
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedmpq.errors import CoreError

MAX_RECORDS = 64


class Fx(c.Structure):
    """`fmpq_fx`: m·2^e."""

    _fields_ = [("m", c.c_uint32), ("e", c.c_int32)]


class RecordStruct(c.Structure):
    """`fmpq_record`."""

    _fields_ = [
        *((name, c.c_uint8) for name in ("kind", "kh", "kw", "stride", "pad", "skip_kind", "t_out", "flags")),
        *(
            (name, c.c_uint16)
            for name in ("groups", "cin", "cout", "h_in", "w_in", "h_out", "w_out", "input", "skip", "skip_pad_c")
        ),
        ("name", c.c_char * 32),
    ]


class ProgramStruct(c.Structure):
    """`fmpq_program`."""

    _fields_ = [
        *((name, c.c_uint16) for name in ("n_records", "in_h", "in_w", "in_c", "classes", "crop_pad")),
        ("mean", c.c_uint8 * 16),
        ("rec", RecordStruct * MAX_RECORDS),
    ]


class PlanStruct(c.Structure):
    """`fmpq_plan`."""

    _fields_ = [
        ("batch", c.c_uint32),
        ("accumulate", c.c_uint32),
        *(
            (name, c.c_uint8)
            for name in ("act_bits", "guard", "momentum", "threads", "crop", "flip", "decay_bn", "recompute")
        ),
        ("bits", c.c_uint8 * MAX_RECORDS),
    ]


class BufferStruct(c.Structure):
    """`fmpq_buffer`."""

    _fields_ = [
        ("offset", c.c_uint32),
        ("size", c.c_uint32),
        ("first", c.c_uint16),
        ("last", c.c_uint16),
        ("kind", c.c_uint8),
        ("record", c.c_uint8),
        ("spare", c.c_uint8 * 2),
    ]


class MemoryStruct(c.Structure):
    """`fmpq_memory`."""

    _fields_ = [
        ("total", c.c_uint64),
        ("state", c.c_uint64),
        ("step", c.c_uint64),
        ("n_buffers", c.c_uint32),
        ("n_ops", c.c_uint32),
    ]


class HyperStruct(c.Structure):
    """`fmpq_hyper`."""

    _fields_ = [
        ("lr", Fx),
        ("decay", Fx),
        ("momentum_q15", c.c_int32),
        ("has_lasso", c.c_int32),
        ("lasso", Fx * MAX_RECORDS),
    ]


class KeyStruct(c.Structure):
    """`fmpq_key`."""

    _fields_ = [(name, c.c_uint32) for name in ("seed", "round", "client", "step")]


class StatsStruct(c.Structure):
    """`fmpq_stats`."""

    _fields_ = [("loss_q16", c.c_int64), ("correct", c.c_uint32), ("count", c.c_uint32)]


_P = c.POINTER
#: name -> (result, arguments)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "fmpq_error_name": (c.c_char_p, [c.c_int]),
    "fmpq_error_text": (c.c_char_p, [c.c_int]),
    "fmpq_error_code": (c.c_int, [c.c_uint]),
    "fmpq_version": (c.c_char_p, []),
    "fmpq_sizeof_program": (c.c_size_t, []),
    "fmpq_program_parse": (c.c_int, [c.c_char_p, c.c_size_t, _P(ProgramStruct)]),
    "fmpq_record_theta": (c.c_uint32, [_P(RecordStruct)]),
    "fmpq_params_size": (c.c_size_t, [_P(RecordStruct)]),
    "fmpq_plan_scratch": (c.c_size_t, []),
    "fmpq_plan_memory": (
        c.c_int,
        [_P(ProgramStruct), _P(PlanStruct), c.c_void_p, _P(MemoryStruct), _P(BufferStruct), c.c_uint32],
    ),
    "fmpq_init": (
        c.c_int,
        [_P(ProgramStruct), _P(PlanStruct), c.c_void_p, c.c_size_t, c.c_void_p, _P(c.c_void_p)],
    ),
    "fmpq_load_plane": (c.c_int, [c.c_void_p, c.c_uint32, c.c_uint32, c.c_char_p, c.c_size_t]),
    "fmpq_load_params": (c.c_int, [c.c_void_p, c.c_uint32, Fx, c.c_char_p, c.c_size_t]),
    "fmpq_read_plane": (c.c_int, [c.c_void_p, c.c_uint32, c.c_uint32, c.c_void_p, c.c_size_t]),
    "fmpq_read_params": (c.c_int, [c.c_void_p, c.c_uint32, _P(Fx), c.c_void_p, c.c_size_t]),
    "fmpq_check_weights": (c.c_int, [c.c_void_p, c.c_uint32]),
    "fmpq_bits": (c.c_int, [c.c_void_p, c.c_uint32]),
    "fmpq_reset_momentum": (c.c_int, [c.c_void_p]),
    "fmpq_step": (
        c.c_int,
        [c.c_void_p, c.c_void_p, c.c_void_p, c.c_uint32, _P(HyperStruct), KeyStruct, _P(StatsStruct)],
    ),
    "fmpq_evaluate": (c.c_int, [c.c_void_p, c.c_void_p, c.c_void_p, c.c_uint32, _P(StatsStruct)]),
    "fmpq_predict": (c.c_int, [c.c_void_p, c.c_void_p, c.c_uint32, c.c_void_p]),
    "fmpq_set_counts": (c.c_int, [c.c_void_p, c.c_uint32, _P(c.c_uint32), c.c_uint32]),
    "fmpq_prune": (c.c_int, [c.c_void_p, c.c_uint32]),
    "fmpq_isa": (c.c_char_p, []),
    "fmpq_isa_name": (c.c_char_p, [c.c_uint]),
    "fmpq_isa_available": (c.c_int, [c.c_char_p]),
    "fmpq_set_isa": (c.c_int, [c.c_char_p]),
    "fmpq_threads_new": (c.c_void_p, [c.c_uint32]),
    "fmpq_threads_free": (None, [c.c_void_p]),
    "fmpq_threads_attach": (None, [c.c_void_p, c.c_void_p]),
}


def _candidates() -> list[Path]:
    """FEDMPQ_CORE where it is set; otherwise beside this package as installed (editable ones in site-packages)."""
    name = "libfmpq.dylib" if sys.platform == "darwin" else "libfmpq.so"
    found = [Path(p) / "fedmpq" / "edge_runtime" / name for p in sys.path if p]
    here = Path(__file__).resolve().parent / name
    given = os.environ.get("FEDMPQ_CORE")
    return [Path(given)] if given else [here, *found]


@lru_cache(maxsize=1)
def library() -> Any:
    """The loaded core.

    Raises:
        CoreError: the library is missing, or FEDMPQ_ISA names an instruction set that is not available.
    """
    for path in _candidates():
        if path.is_file():
            break
    else:
        if given := os.environ.get("FEDMPQ_CORE"):
            raise CoreError(f"FEDMPQ_CORE={given} is not there", "unset it for the core that is installed")
        raise CoreError("the integer core libfmpq is not installed", "run `make core` or reinstall the package")
    try:
        lib = c.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(lib, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as problem:
        raise CoreError(f"{path} is not this version's integer core: {problem}", "reinstall the package") from None
    if lib.fmpq_sizeof_program() != c.sizeof(ProgramStruct):
        raise CoreError(f"{path} was built with another record limit", "reinstall the package")
    isa = os.environ.get("FEDMPQ_ISA")
    if isa and lib.fmpq_set_isa(isa.encode()):
        raise CoreError(f"FEDMPQ_ISA={isa} is not available here", f"one of: {', '.join(available(lib))}")
    return lib


def available(lib: Any) -> list[str]:
    """Names of the instruction sets that this build has and this processor runs, slowest first."""
    names: list[str] = []
    index = 0
    while (name := lib.fmpq_isa_name(index)) is not None:
        if lib.fmpq_isa_available(name):
            names.append(name.decode())
        index += 1
    return names


class View:
    """A C pointer to the bytes of any buffer, read-only ones (a memory-mapped shard) included, without a copy."""

    def __init__(self, data: Any, size: int, what: str) -> None:
        view = memoryview(data)
        if view.nbytes < size or not view.c_contiguous:
            raise CoreError(f"{what}: {size} contiguous bytes are needed, got {view.nbytes}")
        self._view = view
        self._buffer = (c.c_byte * 128)()  # a Py_buffer is smaller on every platform
        pythonapi = c.pythonapi
        if pythonapi.PyObject_GetBuffer(c.py_object(view), c.byref(self._buffer), 0):
            raise CoreError(f"{what}: not a readable buffer")
        self.pointer = c.cast(self._buffer, c.POINTER(c.c_void_p))[0]

    def __enter__(self) -> Any:
        """The address."""
        return self.pointer

    def __exit__(self, *exc: object) -> None:
        """Lets the buffer go."""
        c.pythonapi.PyBuffer_Release(c.byref(self._buffer))
