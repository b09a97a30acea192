"""C sources of an artifact, for firmware: constant arrays and one function that opens a session (C11, the core's API).

#include "resnet8.h"
static _Alignas(64) uint8_t arena[RESNET8_ARENA_BYTES], scratch[RESNET8_SCRATCH_BYTES];
static fmpq_program program;
fmpq_session *session;
int error = resnet8_open(&program, arena, sizeof arena, scratch, &session);
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from fedmpq.edge_runtime import core
from fedmpq.edge_runtime.artifact import Artifact, weight_shapes
from fedmpq.edge_runtime.native import library
from fedmpq.export.build import plan_of

_HEADER = """\
/* {title}: {weights} weights at {average} bits on average, for training with fedmpq {version}.
 * Program {program}.
 * Written by `fedmpq export --target c`; do not edit. */
#ifndef {guard}_H
#define {guard}_H
#include <fmpq/fmpq.h>

#define {upper}_ARENA_BYTES {arena}u /* exact where pointers have 8 bytes, enough where they have fewer */
#define {upper}_SCRATCH_BYTES {scratch}u /* only needed while {name}_open runs */
#define {upper}_BATCH {batch}u /* samples of a step */
#define {upper}_FLASH_BYTES {flash}u /* of program and weights */
#define {upper}_IMAGE_BYTES {image}u /* of one image, {h} x {w} x {c} */
#define {upper}_CLASSES {classes}u

extern const uint8_t {name}_program[{program_bytes}];
extern const fmpq_plan {name}_plan;

/* Reads the program into *program, puts a session into the arena (aligned to 64 bytes) and loads the weights.
 * `program` and the arena have to outlive the session. Returns FMPQ_OK or an error of fmpq/errors.inc. */
int {name}_open(fmpq_program *program, void *arena, size_t size, void *scratch, fmpq_session **session);
#endif
"""

_OPEN = """
int {name}_open(fmpq_program *program, void *arena, size_t size, void *scratch, fmpq_session **session)
{{
    int error = fmpq_program_parse({name}_program, sizeof {name}_program, program);
    if (!error)
        error = fmpq_init(program, &{name}_plan, arena, size, scratch, session);
    for (uint32_t i = 0; !error && i < sizeof layers / sizeof layers[0]; i++) {{
        const layer *l = &layers[i];
        for (uint32_t plane = 0; !error && plane < l->planes; plane++)
            error = fmpq_load_plane(*session, l->record, plane, l->data + plane * l->plane_bytes, l->plane_bytes);
        if (!error)
            error = fmpq_check_weights(*session, l->record);
        if (!error)
            error = fmpq_load_params(*session, l->record, l->step, l->data + l->planes * l->plane_bytes,
                                     l->params_bytes);
    }}
    return error;
}}
"""


def c_sources(artifact: Artifact, title: str) -> dict[str, str]:
    """File names and contents: a header and a source.

    Args:
        artifact: what to write.
        title: file name; letters that C identifiers lack become underscores.
    """
    name = identifier(title)
    program, plan = core.Program(artifact.program), replace(plan_of(artifact), threads=1)
    weights = sum(layer.theta for layer in artifact.layers)
    flash = len(artifact.program) + sum(sum(map(len, x.planes)) + len(x.params) for x in artifact.layers)
    h, w, c = program.in_shape
    header = _HEADER.format(
        title=title.replace("*/", ""), name=name, upper=name.upper(), guard=f"FMPQ_{name.upper()}", weights=weights,
        average=f"{sum(x.bits * x.theta for x in artifact.layers) / weights:.4g}", version=core.version(),
        program=program.sha256, arena=core.plan_memory(program, plan).total, scratch=int(library().fmpq_plan_scratch()),
        batch=plan.batch, flash=flash, image=h * w * c, h=h, w=w, c=c, classes=program.classes,
        program_bytes=len(artifact.program),
    )  # fmt: skip
    return {f"{name}.h": header, f"{name}.c": "".join(_source(artifact, name, plan))}


def identifier(title: str) -> str:
    """A C identifier made of a file name."""
    name = re.sub(r"\W", "_", title, flags=re.ASCII)
    return f"m_{name}" if not name or name[0].isdigit() else name


def _source(artifact: Artifact, name: str, plan: core.Plan) -> Iterator[str]:
    yield f'/* Written by `fedmpq export --target c`; do not edit. */\n#include "{name}.h"\n\n'
    yield _array(f"const uint8_t {name}_program[{len(artifact.program)}]", artifact.program)
    shapes = weight_shapes(artifact.program)
    bits = ", ".join(f"[{shape.record}] = {n}" for shape, n in zip(shapes, plan.bits, strict=True))
    micro = plan.micro_batch or plan.batch
    yield (
        f"\nconst fmpq_plan {name}_plan = {{\n"
        f"    .batch = {min(micro, plan.batch)}, .accumulate = {int(micro < plan.batch)}, .act_bits = {plan.act_bits}, "
        f".guard = {plan.guard}, .momentum = {int(plan.momentum)}, .threads = 1,\n"
        f"    .crop = {int(plan.crop)}, .flip = {int(plan.flip)}, .decay_bn = {int(plan.decay_bn)}, "
        f".recompute = {int(plan.recompute)},\n    .bits = {{{bits}}},\n}};\n\n"
    )
    for shape, layer in zip(shapes, artifact.layers, strict=True):
        label = shape.name.replace("*/", "")
        yield f"/* {label}: sign plane, {layer.bits + layer.guard} magnitude planes, parameters */\n"
        data = b"".join(layer.planes) + layer.params
        yield _array(f"static const uint8_t layer_{shape.record}[{len(data)}]", data)
    yield "\ntypedef struct layer {\n    uint32_t record, planes;\n    size_t plane_bytes, params_bytes;\n"
    yield "    fmpq_fx step;\n    const uint8_t *data;\n} layer;\n\nstatic const layer layers[] = {\n"
    for shape, layer in zip(shapes, artifact.layers, strict=True):
        mantissa, exponent = layer.step
        yield (
            f"    {{{shape.record}, {len(layer.planes)}, {layer.plane_bytes}, {len(layer.params)}, "
            f"{{{mantissa}u, {exponent}}}, layer_{shape.record}}},\n"
        )
    yield "};\n" + _OPEN.format(name=name)


def _array(declaration: str, data: bytes) -> str:
    rows = (", ".join(f"0x{byte:02x}" for byte in data[i : i + 20]) for i in range(0, len(data), 20))
    return declaration + " = {\n    " + ",\n    ".join(rows) + ",\n};\n"
