"""`fedmpq data`: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json

import pytest

from fedmpq.cli._main import run
from fedmpq.edge_runtime.shard import Shard


def run_json(capsys, *arguments: str) -> dict:
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_partition_writes_the_shards_it_reports(capsys, tmp_path):
    out = tmp_path / "new" / "shards"
    result = run_json(capsys, "data", "partition", "digits", "--clients", "4", "--seed", "5", "--out", str(out))
    assert [record["client"] for record in result["shards"]] == [0, 1, 2, 3, None]
    assert result["dropped"] == []
    total = 0
    for record in result["shards"]:
        with Shard(record["file"]) as shard:
            assert shard.sha256 == record["sha256"]
            assert shard.count == record["images"] == sum(record["per_class"])
            total += shard.count
    assert total == 1797
    assert sorted(path.name for path in out.iterdir()) == [*(f"client-{i}.shard" for i in range(4)), "test.shard"]


def test_the_same_seed_writes_the_same_bytes(capsys, tmp_path):
    hashes = [
        [
            record["sha256"]
            for record in run_json(
                capsys, "data", "partition", "digits", "--clients", "3", "--seed", seed, "--out", str(tmp_path / name)
            )["shards"]
        ]
        for seed, name in (("1", "a"), ("1", "b"), ("2", "c"))
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0][:3] != hashes[2][:3]
    assert hashes[0][3] == hashes[2][3]


def test_iid_and_limits_and_validation(capsys, tmp_path):
    result = run_json(
        capsys, "data", "partition", "digits", "--clients", "3", "--iid", "--train-limit", "300", "--validation", "100",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert [record["images"] for record in result["shards"]] == [100, 100, 100, 100, 360]
    assert (result["method"], result["alpha"]) == ("iid", None)


def test_empty_clients_stop_or_are_dropped(capsys, tmp_path):
    arguments = ["data", "partition", "digits", "--clients", "40", "--alpha", "0.01", "--out", str(tmp_path)]
    assert run(arguments) == 4
    assert "leaves clients 0, 3, 4" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    result = run_json(capsys, *arguments, "--on-empty", "drop")
    clients = [record["client"] for record in result["shards"] if record["client"] is not None]
    assert sorted(clients + result["dropped"]) == list(range(40))


def test_import_writes_train_and_test(capsys, tmp_path):
    result = run_json(capsys, "data", "import", "digits", "--out", str(tmp_path))
    assert [record["images"] for record in result["shards"]] == [1437, 360]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.shard", "train.shard"]


def test_info_of_a_set_and_of_a_shard(capsys, tmp_path):
    facts = run_json(capsys, "data", "info", "digits")
    assert (facts["train"], facts["test"], facts["mean"]) == (1437, 360, [78])
    run_json(capsys, "data", "import", "digits", "--out", str(tmp_path))
    shard = run_json(capsys, "data", "info", str(tmp_path / "test.shard"))
    assert shard["per_class"] == facts["test_per_class"]
    assert run(["data", "info", "digits"]) == 0
    assert "1,437 train, 360 test images of 8x8x1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["info", "missing.shard"], 4, "missing.shard does not exist"),
        (["info", "nonsense"], 4, "known names: digits"),
        (["partition", "digits", "--clients", "2", "--out", "{file}/x"], 4, "cannot make the folder"),
        (["partition", "digits", "--clients", "2", "--validation", "5000", "--out", "{tmp}"], 4, "cannot hold"),
        (["partition", "digits", "--clients", "2", "--alpha", "0", "--out", "{tmp}"], 2, "not in the range"),
        (["import", "{tmp}", "--out", "{tmp}"], 4, "holds no files"),
    ],
)
def test_bad_input(capsys, tmp_path, arguments, code, words):
    folder = tmp_path / "empty"
    folder.mkdir()
    file = tmp_path / "file"
    file.write_text("")
    assert run(["data", *(each.format(tmp=folder, file=file) for each in arguments)]) == code
    assert words in capsys.readouterr().err
    assert list(folder.iterdir()) == []
