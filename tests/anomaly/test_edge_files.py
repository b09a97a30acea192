"""The C reader of artifacts and shards: truncated at every byte and with every byte changed, under sanitizers."""

from __future__ import annotations

import subprocess

import pytest

from fedmpq.edge_runtime import artifact, shard
from fedmpq.toolchain import sources
from tests.helpers import edge, programs
from tests.helpers.artifacts import artifact_of

#: Calls both readers on a file at every length below its own and with every byte changed, and counts what got through.
_HARNESS = r"""
#include "artifact.h"
#include "shard.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static fmpq_artifact a;
static int open_copy(const unsigned char *d, size_t n, int shard)
{
    unsigned char *exact = malloc(n ? n : 1); /* its own block, so that a read behind the end is seen */
    fmpq_shard s;
    int err;
    memcpy(exact, d, n);
    err = shard ? fmpq_shard_open(exact, n, &s) : fmpq_artifact_open(exact, n, &a);
    free(exact);
    return err;
}
int main(int argc, char **argv)
{
    static unsigned char d[1 << 20];
    FILE *f = fopen(argv[1], "rb");
    const size_t n = fread(d, 1, sizeof(d), f), step = (size_t)atoi(argv[3]);
    const int shard = argv[2][0] == 's';
    unsigned through = 0;
    (void)argc;
    if (open_copy(d, n, shard))
        return 1;
    for (size_t k = 0; k < n; k += k < 2048 ? 1 : step)
        through += !open_copy(d, k, shard);
    for (size_t k = 0; k < n; k += k < 2048 ? 1 : step) {
        d[k] ^= 0x41;
        through += !open_copy(d, n, shard);
        d[k] ^= 0x41;
    }
    printf("%u\n", through);
    return 0;
}
"""


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    (folder / "harness.c").write_text(_HARNESS)
    root = sources.root()
    units, _ = sources.core(edge.native_profile())
    plain = [str(u.path) for u in units if "__" not in u.path.name or "scalar" in u.path.name]
    files = [*plain, *map(str, sources.ports("artifact.c", "json.c", "sha256.c", "shard.c")), str(folder / "harness.c")]
    flags = ["-std=c11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    include = [f"-I{root / 'include'}", f"-I{root / 'port'}", f"-I{root / 'src'}"]
    subprocess.run(["gcc", *flags, *include, *files, "-o", str(folder / "harness")], check=True)
    return folder / "harness"


def _through(harness, path, kind, step):
    done = subprocess.run([harness, path, kind, str(step)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


def test_no_damaged_artifact_gets_through(harness, tmp_path):
    net = programs.resnet(1, size=(8, 8, 1), mean=(9,), classes=3, width=4)
    artifact.write(tmp_path / "a.fmpq", artifact_of(net, 2, 4, manifest={"model": "x"}))
    assert _through(harness, tmp_path / "a.fmpq", "artifact", 7) == 0


def test_no_damaged_shard_gets_through(harness, tmp_path):
    pixels = bytes(range(256)) * 3
    shard.write_shard(tmp_path / "s", pixels, b"\0\0\1\0\2\0", shape=(16, 16, 1), classes=3, mean=b"\7")
    assert _through(harness, tmp_path / "s", "shard", 1) == 0
