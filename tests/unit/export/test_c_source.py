"""The C sources compile without a warning and train to the same bits as the artifact."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import fedmpq
from fedmpq.edge_runtime import core
from fedmpq.export import build, from_module, resolve
from fedmpq.export.c_source import c_sources, identifier
from tests.unit.export.nets import ds_cnn

CORE = Path(fedmpq.__file__).resolve().parents[2] / "edge_runtime" / "core"

MAIN = """
#include "net.h"
#include <stdio.h>
#include <stdlib.h>
static _Alignas(64) uint8_t arena[NET_ARENA_BYTES], scratch[NET_SCRATCH_BYTES];
static fmpq_program program;
static uint8_t images[NET_BATCH * NET_IMAGE_BYTES], plane[65536];
static uint16_t labels[NET_BATCH];
int main(void)
{
    fmpq_session *s;
    const fmpq_hyper h = {.lr = {1717986918u, -34}, .momentum_q15 = 29491};
    fmpq_stats stats;
    int error = net_open(&program, arena, sizeof arena, scratch, &s);
    if (error)
        return error;
    for (uint32_t i = 0; i < sizeof images; i++)
        images[i] = (uint8_t)(i * 2654435761u >> 24);
    for (uint32_t i = 0; i < NET_BATCH; i++)
        labels[i] = (uint16_t)(i % NET_CLASSES);
    for (uint32_t step = 0; step < 3; step++) {
        const fmpq_key key = {7, 0, 0, step};
        if ((error = fmpq_step(s, images, labels, NET_BATCH, &h, key, &stats)))
            return error;
    }
    for (uint32_t r = 0; r < program.n_records; r++) {
        const size_t size = (fmpq_record_theta(&program.rec[r]) + 7) / 8;
        fmpq_fx step;
        if (!size)
            continue;
        for (uint32_t p = 0; p <= (uint32_t)(fmpq_bits(s, r) + net_plan.guard); p++) {
            if ((error = fmpq_read_plane(s, r, p, plane, size)))
                return error;
            fwrite(plane, 1, size, stdout);
        }
        if ((error = fmpq_read_params(s, r, &step, plane, fmpq_params_size(&program.rec[r]))))
            return error;
        fwrite(plane, 1, fmpq_params_size(&program.rec[r]), stdout);
    }
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("name", ["resnet8", "ds_cnn"])
def test_the_sources_train_to_the_same_bits(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    if name == "resnet8":
        model = from_module(resolve("resnet8", num_classes=10, in_channels=3), (3, 12, 12), mean=(120, 110, 100))
    else:
        model = from_module(ds_cnn(16), (1, 49, 10))
    program = core.Program(model.program)
    bits = tuple((4, 2, 8)[i % 3] for i in range(len(program.weight_layers)))
    plan = core.Plan(bits=bits, batch=5, guard=1, momentum=True, flip=False, threads=2)
    artifact = build.build_artifact(model, plan)
    for file, text in c_sources(artifact, "net").items():
        (tmp_path / file).write_text(text)
    (tmp_path / "main.c").write_text(MAIN)
    sources = [*(CORE / "src").glob("*.c"), *(CORE / "src" / "ref").glob("*.c")]
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-Wconversion"]
    folders = ["-I", str(CORE / "include"), "-I", str(CORE / "src"), "-I", str(tmp_path)]
    command = ["cc", *flags, *folders, "net.c", "main.c", *map(str, sources), "-o", "net"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    ours = subprocess.run([str(tmp_path / "net")], check=True, capture_output=True, timeout=60).stdout

    session = build.open_session(program, plan, build.states_of(artifact))
    size = 5 * program.in_shape[0] * program.in_shape[1] * program.in_shape[2]
    images = bytes((i * 2654435761 & 0xFFFFFFFF) >> 24 for i in range(size))
    labels = memoryview(b"".join(int(i % program.classes).to_bytes(2, "little") for i in range(5))).cast("H")
    for step in range(3):
        session.step(images, labels, core.Hyper((1717986918, -34)), (7, 0, 0, step))
    states = [session.read(i) for i in range(len(program.weight_layers))]
    assert ours == b"".join(b"".join((*state.planes, state.params)) for state in states)


def test_sources_are_the_same_twice_and_end_where_they_should() -> None:
    torch.manual_seed(3)
    model = from_module(ds_cnn(4), (1, 49, 10))
    plan = core.Plan(bits=(1,) * len(model.thetas), batch=1)
    first, second = (c_sources(build.build_artifact(model, plan), "my net-2") for _ in range(2))
    assert first == second
    assert list(first) == ["my_net_2.h", "my_net_2.c"]
    assert all(text.endswith("\n") for text in first.values())


@pytest.mark.parametrize(
    ("title", "name"), [("resnet8", "resnet8"), ("8net", "m_8net"), ("a-b.c", "a_b_c"), ("", "m_")]
)
def test_titles_become_identifiers(title: str, name: str) -> None:
    assert identifier(title) == name
