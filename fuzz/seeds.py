"""Writes the seed corpus: one small valid input for everything a target can take. `python -m fuzz.seeds`."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

from fedmpq.coordinator.aggregate import PartialSum
from fedmpq.coordinator.config import RunConfig
from fedmpq.edge_runtime import artifact, chunks, protocol, topics, weights
from fedmpq.edge_runtime.serial import board, frames
from fedmpq.edge_runtime.shard import write_shard
from fedmpq.edge_runtime.store import Store
from tests.helpers import messages as examples
from tests.helpers import programs
from tests.helpers.fleet import LAYOUT, first_model

CORPUS = Path(__file__).parent / "corpus"
NETS = {
    "resnet": programs.resnet(1, size=(8, 8, 1), width=4, classes=4, crop_pad=0, mean=(120,)),
    "variety": programs.variety(flat=False),
}


def of_artifact() -> bytes:
    """A tiny artifact."""
    net = NETS["resnet"]
    layers = []
    for state, shape in zip(programs.states(net, 2), LAYOUT.layers, strict=True):
        layers.append(
            weights.LayerBlobs(state.bits, state.guard, state.step, shape.theta, tuple(state.planes), state.params)
        )
    plan = {"batch": 4, "micro_batch": 2, "act_bits": 4, "guard": 0, "momentum": True, "threads": 1, "crop": False,
            "flip": True, "decay_bn": True, "recompute": True, "bits": [2] * len(layers)}  # fmt: skip
    return artifact.pack(artifact.Artifact(net.build(), tuple(layers), plan, {"model": "tiny"}))


def serial_round() -> bytes:
    """What a gateway asks of a device in a round, as `c/server.c` reads it."""
    net = NETS["resnet"]
    program = net.build()
    out = bytearray()

    def ask(kind: int, payload: bytes) -> None:
        out.extend(struct.pack("<BH", kind, len(payload)) + payload)

    def write(space: int, data: bytes) -> None:
        for at in range(0, len(data), 500):
            ask(board.WRITE, struct.pack("<BI", space, at) + data[at : at + 500])

    write(0, program)
    ask(board.PROGRAM, struct.pack("<II", len(program), 0))
    plan = struct.pack("<I9B", 2, 0, 4, 0, 1, 1, 1, 1, 1, len(net.layers)) + bytes([2] * len(net.layers))
    ask(board.PLAN, plan)
    ask(board.OPEN, plan)
    for index, state in enumerate(programs.states(net, 2)):
        for number, plane in enumerate(state.planes):
            write(0, plane)
            ask(board.PLANE, struct.pack("<HHII", index, number, len(plane), 0))
        write(0, state.params)
        ask(board.PARAMS, struct.pack("<HHIiII", index, 0, *state.step, len(state.params), 0))
    ask(board.RATES, struct.pack("<IiIiIB", 1 << 30, -34, 0, 0, 0, 0))
    images, labels = programs.images(net, 2)
    write(1, images.tobytes() + labels.tobytes())
    for kind in (board.STEP, board.EVALUATE):
        ask(kind, struct.pack("<6I", 1, 2, 3, 0, 2, 0))
    ask(board.PRUNE, struct.pack("<I", 3000))
    ask(board.READ_PLANE, struct.pack("<HHIH", 0, 1, 0, 4))
    ask(board.READ_PARAMS, struct.pack("<HHIH", 0, 0, 0, 80))
    ask(board.FACTS, b"")
    ask(board.CLOSE, b"")
    return bytes(out)


def main() -> None:
    """See the module."""
    kinds = sorted(protocol.ALLOWED)
    seeds: dict[str, dict[str, bytes]] = {}
    found = seeds["messages"] = {}
    for message in examples.one_of_each().values():
        kind = next(kind for kind, allowed in protocol.ALLOWED.items() if type(message) in allowed)
        found[type(message).__name__] = bytes([kinds.index(kind)]) + protocol.encode(message)
    pieces = [chunks.encode_chunk(protocol.digest(b), b, 0) for b in (b"", b"abc", bytes(300))]
    found["Chunk"] = bytes([kinds.index(topics.CHUNK)]) + pieces[1]
    found["Bundle"] = bytes([kinds.index(topics.UPDATE)]) + b"".join(pieces)
    seeds["bundles"] = {"one": pieces[1], "three": b"".join(pieces)}
    names = topics.Topics("lab")
    seeds["topic"] = {"round": names.round.encode(), "device": names.device("pi-1", topics.UPDATE).encode()}
    seeds["artifacts"] = {"tiny": of_artifact()}
    seeds["programs"] = {name: net.build() for name, net in NETS.items()}
    config = RunConfig(budgets={"a": 2.5})
    seeds["configuration"] = {
        "json": json.dumps(config.to_dict(), sort_keys=True).encode(),
        "toml": b'strategy = "aqfl"\nrounds = 3\nlr = 0.1\n[budgets]\na = 2.0\n',
    }
    model = first_model()
    blob = model.to_bytes()
    seeds["models"] = {"model": b"M" + blob, "sum": PartialSum.zero(LAYOUT, "models").to_bytes()[4:]}
    with tempfile.TemporaryDirectory() as folder:
        with Store(Path(folder), "pi-1") as state:
            state.update(bd_seq=1, plan=b"plan", update=b"update")
        seeds["device_state"] = {"slot": (Path(folder) / "state.b").read_bytes()}
        shard = Path(folder) / "a.shard"
        write_shard(shard, bytes(2 * 16), bytes(4), shape=(4, 4, 1), classes=2, mean=b"\x7d")
        seeds["shards"] = {"two": shard.read_bytes()}
    frame = frames.encode(frames.Frame(3, 7, b"payload"))
    seeds["serial"] = {"frame": frame, "two": frame + frame[:-2] + b"\x00" + frame}
    # The C targets.
    seeds["c-artifact"] = {"tiny": of_artifact()}
    tiny = NETS["resnet"].build()
    (Path(__file__).parent / "c" / "tiny_program.inc").write_text(
        "".join(", ".join(map(str, tiny[at : at + 20])) + ",\n" for at in range(0, len(tiny), 20))
    )
    loads = b"".join(
        bytes([op, record, plane, 90, 0, 0, 0, 0]) + bytes(90)
        for op in range(7) for record in (0, 2) for plane in (0, 1)
    )  # fmt: skip
    seeds["c-core"] = {"planes": b"\0" + loads}
    choices = bytes([2, 1, 8, 1, 1, 1, 1, 1, 1, 1, 2, 3, 1, 4, 2])
    for name, net in NETS.items():
        for planned in range(2 if name == "resnet" else 1):
            program = net.build()
            head = b"\1" + choices + bytes([1 - planned]) + struct.pack("<H", len(program))
            seeds["c-core"][f"{name}-{planned}"] = head + program + (loads if planned else b"")
    seeds["c-server"] = {"round": serial_round()}
    seeds["c-files"] = {"shard": b"\0" + seeds["shards"]["two"], "frames": b"\1" + seeds["serial"]["two"]}
    for target, inputs in seeds.items():
        folder_of = CORPUS / target
        folder_of.mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (folder_of / f"seed-{name}").write_bytes(data)


if __name__ == "__main__":
    main()
