"""`fedmpq-edge train` on an artifact and a shard against the same training through the Python binding."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pytest

from fedmpq.edge_runtime import artifact, container, core, sampling, shard
from tests.helpers import edge, programs
from tests.helpers.artifacts import artifact_of, plan_of, session_of


@pytest.fixture
def files(tmp_path):
    """An artifact of a small net with five plans' worth of options, and a shard of 21 images."""
    net = programs.resnet(1, size=(12, 12, 3), classes=4, crop_pad=2)
    bits = (4, 8, 2, 1, 6, 3, 5, 7)[: len(net.layers)]
    made = artifact_of(
        net, bits, 8, micro_batch=3, guard=1, momentum=True,
        manifest={"model": "täst\n", "n": [1, {"a": None}, 1.5e-3, "\u2028"]},
    )  # fmt: skip
    artifact.write(tmp_path / "a.fmpq", made)
    images, labels = programs.images(net, 21)
    shard.write_shard(
        tmp_path / "s.shard", images.tobytes(), labels.tobytes(), shape=(12, 12, 3), classes=4, mean=b"abc"
    )
    return tmp_path / "a.fmpq", tmp_path / "s.shard", made


def _train_here(path, shard_path, epochs, lr, seed):
    session = session_of(path)
    plan = session.plan
    rates = core.Hyper(core.fx(lr), core.fx(5e-4), round(0.9 * 32768))
    size = min(plan.batch, 21)
    micro = -(-size // plan.micro_batch)
    with shard.Shard(shard_path) as data:
        for step, indices in enumerate(sampling.batches(21, plan.batch, epochs, seed, 0, 0)):
            session.step(*data.batch(indices), rates, (seed, 0, 0, step * micro))
    return session


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_weights_come_out(files, tmp_path, threads):
    path, shard_path, _ = files
    out = tmp_path / "trained.fmpq"
    options = ("--epochs", "3", "--lr", "0.07", "--seed", "5", "--threads", str(threads))
    text = edge.run("train", path, shard_path, "--out", out, *options)
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["epoch"] for line in lines[:-1]] == [1, 2, 3]
    assert all(line["count"] == 16 for line in lines[:-1])
    session = _train_here(path, shard_path, 3, 0.07, 5)
    assert lines[-1]["state"] == session.state_hash()
    trained = artifact.read(out)  # checks every hash of the file that the C program wrote
    for i, layer in enumerate(trained.layers):
        state = session.read(i)
        assert (layer.planes, layer.params) == (state.planes, state.params)


def test_inspect_and_profile(files):
    path, _, made = files
    seen = json.loads(edge.run("inspect", path))
    program = core.Program(made.program)
    plan = plan_of(made)
    assert seen["program"] == made.program_id
    assert seen["bits"] == made.plan["bits"]
    assert seen["planned_bytes"] == core.plan_memory(program, plan).total
    profile = json.loads(edge.run("profile", path, "--limit", "150000"))
    assert profile["isas"] == core.isas()
    assert profile["budget_bytes"] == 150000
    for row in profile["plans"]:
        bits = core.Plan(**{**made.plan, "bits": (row["bits"],) * len(made.plan["bits"])})
        assert row["planned_bytes"] == core.plan_memory(program, bits).total
        assert row["fits"] == (row["planned_bytes"] <= 150000)


def test_a_plan_one_byte_too_large_is_refused_with_both_numbers(files):
    path, shard_path, _ = files
    planned = json.loads(edge.run("inspect", path))["planned_bytes"]
    error = edge.run("train", path, shard_path, "--limit", str(planned - 1), expect=7)
    assert re.search(rf"takes {planned} bytes but {planned - 1} are allowed, 1 too few", error)
    edge.run("train", path, shard_path, "--limit", str(planned))


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000, 100_000])
def test_sha256(tmp_path, size):
    data = np.random.default_rng(size).bytes(size)
    path = tmp_path / "x"
    path.write_bytes(data)
    if size:
        assert edge.run("hash", path).strip() == hashlib.sha256(data).hexdigest()
    else:
        assert "not a file with contents" in edge.run("hash", path, expect=5)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "usage"),
        (["fly"], 2, "no command fly"),
        (["selftest", "nothing"], 2, "no case nothing"),
        (["selftest", "--isa", "mmx"], 8, "mmx is not available"),
        (["train", "a"], 2, "an artifact and a shard"),
        (["train", "a", "b", "--epochs", "-1"], 2, "--epochs cannot be"),
        (["train", "a", "b", "--lr", "nan"], 2, "--lr cannot be"),
        (["train", "a", "b", "--momentum", "1"], 2, "--momentum cannot be"),
        (["train", "a", "b", "--wings", "2"], 2, "no option --wings"),
        (["train", "a", "b", "--out"], 2, "--out cannot be"),
        (["inspect", "/nowhere/a"], 5, "No such file"),
        (["inspect", "/"], 5, "not a file"),
    ],
)
def test_wrong_usage(arguments, code, words):
    assert words in edge.run(*arguments, expect=code)


def test_a_shard_of_another_shape(files, tmp_path):
    path, _, _ = files
    other = tmp_path / "other.shard"
    shard.write_shard(other, bytes(8 * 8 * 3), b"\0\0", shape=(8, 8, 3), classes=4, mean=b"abc")
    assert "do not have the shape" in edge.run("train", path, other, expect=5)
    other.write_bytes(other.read_bytes()[:-1])
    assert "ends before" in edge.run("train", path, other, expect=5)


def test_sections_changed_with_matching_hashes(files, tmp_path):
    """Contents that contradict each other although every hash is right."""
    path, _, _ = files
    sections = {name: bytes(view) for name, view in container.unpack(path.read_bytes()).items()}
    plan = json.loads(sections["plan"])

    def refused(words: str, **changed: bytes) -> None:
        parts = {**sections, **changed}
        if "manifest" not in changed:
            names = ("program", "weights", "plan")
            hashes = {name: artifact.sha256(parts[name]) for name in names if name in parts}
            parts["manifest"] = artifact.canonical({"sha256": hashes})
        bad = tmp_path / "bad.fmpq"
        bad.write_bytes(container.pack(parts))
        assert words in edge.run("inspect", bad, expect=5)

    for field, value in [
        ("batch", 0), ("batch", 65536), ("micro_batch", 9), ("act_bits", 4.0), ("guard", 2), ("momentum", 1),
        ("bits", []), ("bits", [9] * 8), ("bits", plan["bits"][:-1]), ("bits", "4"),
    ]:  # fmt: skip
        refused("[FMPQ_E_FILE_", plan=artifact.canonical({**plan, field: value}))
    refused("FMPQ_E_FILE_PLAN", plan=artifact.canonical({**plan, "more": 1}))
    refused("FMPQ_E_FILE_PLAN", plan=artifact.canonical({k: v for k, v in plan.items() if k != "crop"}))
    unsorted = json.dumps(dict(reversed(plan.items())), separators=(",", ":")).encode()
    refused("FMPQ_E_FILE_JSON", plan=unsorted)
    refused("FMPQ_E_FILE_JSON", plan=sections["plan"][:-1] + b',"threads":1}')
    hashes = {name: artifact.sha256(sections[name]) for name in ("weights", "program", "plan")}
    refused("FMPQ_E_FILE_MANIFEST", manifest=json.dumps({"sha256": hashes}, separators=(",", ":")).encode())
    bad = tmp_path / "reversed.fmpq"
    bad.write_bytes(container.pack(dict(reversed(sections.items()))))
    assert "FMPQ_E_FILE_SECTION" in edge.run("inspect", bad, expect=5)
    refused("FMPQ_E_FILE_JSON", plan=b"[]")
    refused("FMPQ_E_FILE_JSON", plan=sections["plan"] + b" ")
    refused("FMPQ_E_FILE_JSON", manifest=b'{"deep":' + b"[" * 100)
    refused("FMPQ_E_FILE_MANIFEST", manifest=b'{"sha256":{"else":"0"}}')
    zeros = dict.fromkeys(("plan", "program", "weights"), "0" * 64)
    refused("FMPQ_E_FILE_HASH", manifest=artifact.canonical({"sha256": zeros}))
    refused("FMPQ_E_FILE_TRUNCATED", weights=sections["weights"][:-1])
    refused("FMPQ_E_FILE_WEIGHTS", weights=sections["weights"] + b"\0")
    refused("FMPQ_E_PROGRAM_", program=sections["program"][:-1])
    refused("FMPQ_E_FILE_SECTION", extra=b"")
