"""Builds bare-metal firmware with an artifact in it, as C arrays: loads it, trains, reports (port/artifact_main.c)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from fedmpq.edge_runtime import artifact, core
from fedmpq.edge_runtime.native import MAX_RECORDS, library
from fedmpq.errors import BudgetError, ConfigError
from fedmpq.firmware_profiles import Profile
from fedmpq.toolchain import firmware, sources
from fedmpq.toolchain.compile import BuildError

PORTS = (
    "artifact.c", "artifact_main.c", "golden.c", "json.c", "memory_bare.c", "semihost.c", "sha256.c", "startup.c",
)  # fmt: skip

_ALIGN = 64


def c_array(data: bytes, name: str) -> str:
    """A C file that defines `name`_data and `name`_size."""
    rows = (", ".join(map(str, data[at : at + 24])) for at in range(0, len(data), 24))
    body = ",\n    ".join(rows)
    head = f"#include <stdint.h>\nextern const uint8_t {name}_data[];\nextern const uint32_t {name}_size;\n"
    array = f"const uint8_t {name}_data[] __attribute__((aligned(8))) = {{\n    {body}}};\n"
    return f"{head}{array}const uint32_t {name}_size = {len(data)};\n"


def build(
    profile: Profile, file: Path, out: Path, advance: Callable[[int], None] = lambda _: None, *, steps: int = 2
) -> Path:
    """Compiles and links; returns `out/image.elf`. The arena is as large as the artifact's plan needs it.

    Args:
        profile: a bare-metal profile.
        file: an artifact; its plan says micro-batch and bits.
        out: folder for objects, the artifact as `artifact_data.c`, and the result.
        advance: told of each compiled file.
        steps: training steps that the firmware does.

    Raises:
        ConfigError: not a bare-metal profile, or its compiler is not installed.
        FormatError: not an artifact.
        BudgetError: RAM or flash is too small; says by how many bytes.
        BuildError: the compiler refused.
    """
    if profile.board is None:
        raise ConfigError(f"profile {profile.name} is no bare-metal board, firmware needs one", "--what edge")
    held = artifact.read(file)
    program = core.Program(held.program)
    plan = core.Plan(**{**held.plan, "bits": tuple(held.plan["bits"]), "threads": 1})
    records = max(firmware.RECORDS, len(program.records))
    needed = _arena(program, plan, records)
    height, width, channels = program.in_shape
    images = plan.batch * height * width * channels
    # the tables of the parsed artifact are sized by its records
    total = needed + profile.board.stack + images
    if total > profile.available:
        raise BudgetError(
            f"{file.name} needs {needed} bytes of arena, {images} for a batch and {profile.board.stack} of stack: "
            f"{total - profile.available} bytes more than the {profile.available} of {profile.name}",
            needed=total,
            available=profile.available,
            hint="export it with fewer bits or a smaller --micro-batch",
        )
    out.mkdir(parents=True, exist_ok=True)
    data = out / "artifact_data.c"
    data.write_text(c_array(file.read_bytes(), "fmpq_artifact"))
    given = {
        "FMPQ_ARENA": needed, "FMPQ_BATCH": plan.batch, "FMPQ_IMAGES": images, "FMPQ_STEPS": steps,
        "FMPQ_MAX_RECORDS": records,
    }  # fmt: skip
    try:
        return firmware.program(profile, [*sources.ports(*PORTS), data], given, out, "image.elf", advance)
    except BuildError as error:
        found = re.search(r"region `(\w+)' overflowed by (\d+) bytes", error.message)
        if not found:
            raise
        what = {"CODE": "flash", "RAM": "RAM"}.get(found[1], found[1])
        size = profile.memory.flash if what == "flash" else profile.available
        more = int(found[2])
        problem = f"{file.name} and its firmware need {more} bytes more than the {size} of {what} of {profile.name}"
        raise BudgetError(problem, needed=size + more, available=size) from None


def _arena(program: core.Program, plan: core.Plan, records: int) -> int:
    """Bytes of the arena: a session; before it the planner's tables, after it planes to be hashed, behind the state."""
    planned = core.plan_memory(program, plan)
    # the tables of a build grow with its records; here they are for MAX_RECORDS, with a few bytes of any number
    tables = int(library().fmpq_plan_scratch()) * records // MAX_RECORDS + _ALIGN
    blob = max(max((layer.theta + 7) // 8, layer.params_bytes) for layer in program.weight_layers)
    needed = max(planned.total, planned.persistent + max(tables, blob))
    return -(-needed // _ALIGN) * _ALIGN


def file_count(profile: Profile) -> int:
    """Number of files that `build` compiles."""
    return len(sources.core(profile)[0]) + len(PORTS) + 1
