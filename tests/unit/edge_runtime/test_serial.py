"""The serial protocol between a gateway and a device: frames, noise, lost lines, resets, wrong firmware."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpq.edge_runtime import core
from fedmpq.edge_runtime.serial import board
from fedmpq.edge_runtime.serial.board import RemoteCore
from fedmpq.edge_runtime.serial.frames import Decoder, Frame, encode, stuff, unstuff
from fedmpq.edge_runtime.serial.link import FirmwareError, Link, RefusedError
from fedmpq.edge_runtime.serial.wire import Address, Wire, WireError
from fedmpq.edge_runtime.shard import Shard, write_shard
from fedmpq.errors import ArenaTooSmall, BudgetError, LinkError, ResetError, UsageError
from tests.helpers import edge, programs, serial_line
from tests.helpers.serial_line import Kept, Noise, link_to, sample, serve_command

NET = programs.resnet(size=(8, 8, 1), width=4, crop_pad=1)
PROGRAM = core.Program(NET.build())
LIMIT = 1 << 20
PLAN = core.Plan(bits=(3,) * len(PROGRAM.weight_layers), batch=4, micro_batch=2, guard=1, momentum=True)
RATES = core.Hyper(core.fx(0.1), core.fx(1e-3), lasso=(core.fx(0.01),) * len(PROGRAM.weight_layers))


def states() -> list[core.LayerState]:
    return [core.LayerState(*state) for state in programs.states(NET, 3, 1)]


def train(session: object, steps: int = 3) -> tuple[list[core.Stats], list[core.LayerState]]:
    """Loads, trains, evaluates, prunes and reads."""
    s: core.Session = session  # type: ignore[assignment]
    for index, state in enumerate(states()):
        s.load(index, state)
    images, labels = sample(PROGRAM, 4)
    stats = [s.step(images, labels, RATES, (1, 2, 3, 2 * step)) for step in range(steps)]
    stats.append(s.evaluate(images, labels))
    s.prune(3000)
    return stats, [s.read(index) for index in range(len(PROGRAM.weight_layers))]


def expected(steps: int = 3) -> tuple[list[core.Stats], list[core.LayerState]]:
    return train(core.Session(PROGRAM, PLAN), steps)


@pytest.fixture
def link() -> Iterator[Link]:
    found = link_to(serve_command(LIMIT))
    yield found
    found.close()


# --- frames -------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=1200))
def test_stuffing_has_an_inverse_and_no_zeros(data: bytes) -> None:
    assert 0 not in stuff(data)
    assert unstuff(stuff(data)) == data
    assert len(stuff(data)) <= len(data) + len(data) // 254 + 1


@pytest.mark.parametrize("size", [0, 1, 253, 254, 255, 508, 509])
@pytest.mark.parametrize("byte", [b"\0", b"\1", b"\xff"])
def test_block_boundaries(size: int, byte: bytes) -> None:
    assert unstuff(stuff(byte * size)) == byte * size


@given(st.lists(st.binary(max_size=40), max_size=6), st.binary(max_size=30), st.integers(1, 17))
def test_frames_are_found_after_any_noise_and_in_any_pieces(payloads: list[bytes], noise: bytes, piece: int) -> None:
    frames = [Frame(3, number, payload) for number, payload in enumerate(payloads)]
    stream = noise + b"".join(encode(frame) for frame in frames)
    decoder = Decoder()
    found = [f for at in range(0, len(stream), piece) for f in decoder.feed(stream[at : at + piece])]
    assert found == frames


@given(st.binary(min_size=1, max_size=60), st.data())
def test_an_altered_frame_is_never_taken(payload: bytes, data: st.DataObject) -> None:
    whole = encode(Frame(7, 99, payload))
    at = data.draw(st.integers(1, len(whole) - 2))
    altered = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    assert not Decoder().feed(altered)
    assert not Decoder().feed(whole[:at] + whole[at + 1 :])


# --- training over the line ---------------------------------------------------------------------------------------


def test_a_remote_session_trains_the_same_bits(link: Link) -> None:
    session = RemoteCore(link).Session(PROGRAM, PLAN, LIMIT)
    assert session.planned_bytes == session.measured_bytes == core.plan_memory(PROGRAM, PLAN).total
    assert RemoteCore(link).planned_there(PROGRAM, PLAN) == session.planned_bytes
    assert train(session) == expected()
    assert link.counters.repeats == link.counters.damaged == 0


def test_a_plane_may_be_larger_than_the_step_area() -> None:
    """Wide layers over small maps at a micro-batch of one: the planes pass through all memory behind the state."""
    net = programs.Builder(8, 8, 1, 4)
    wide = net.conv("wide", net.conv("middle", net.conv("stem", 0, 16), 256, stride=4), 512, stride=2)
    net.classifier("fc", net.global_pool("pool", wide))
    program = core.Program(net.build())
    plan = core.Plan(bits=(1,) * 4, batch=2, micro_batch=1)
    planned = core.plan_memory(program, plan)
    largest = max(-(-layer.theta // 8) for layer in program.weight_layers)
    assert largest > planned.total - planned.persistent
    states = [core.LayerState(*state) for state in programs.states(net, 1)]
    images, labels = sample(program, 2)
    limit = planned.persistent + largest
    link = link_to(serve_command(limit))
    sessions = [core.Session(program, plan), RemoteCore(link).Session(program, plan, limit)]
    for session in sessions:
        for index, state in enumerate(states):
            session.load(index, state)
        for step in range(2):  # what was read in between lay where the samples come
            session.step(images, labels, core.Hyper(core.fx(0.1)), (1, 2, 3, 2 * step))
            session.read(2)
    here, there = ([session.read(index) for index in range(4)] for session in sessions)
    assert here == there
    link.close()


@pytest.mark.parametrize("rate", [1e-3, 5e-3])
def test_noise_costs_repeats_and_nothing_else(rate: float) -> None:
    noisy = link_to(serve_command(LIMIT), open_line=lambda address: Noise(Wire(address), rate, 1))
    assert train(RemoteCore(noisy).Session(PROGRAM, PLAN, LIMIT)) == expected()
    assert noisy.counters.repeats
    assert noisy.counters.damaged
    noisy.close()


def test_a_lost_line_is_opened_again_and_the_request_goes_on() -> None:
    places = iter((300, 1500, 4000, 8000))
    at = next(places)

    def cut(written: int) -> str:
        nonlocal at
        if written < at:
            return ""
        at = next(places, 10**9)
        return "hang-up"

    kept = Kept(serve_command(LIMIT), cut)
    link = link_to(serve_command(LIMIT), open_line=kept.open)
    assert train(RemoteCore(link).Session(PROGRAM, PLAN, LIMIT)) == expected()
    assert link.counters.reopened == kept.opened - 1 == 4
    kept.end()


@pytest.mark.parametrize("where", [200, 2500, 7000])
def test_a_reset_is_noticed_and_training_anew_gives_the_same_bits(where: int) -> None:
    done: list[int] = []

    def reset(written: int) -> str:
        if done or written < where:
            return ""
        done.append(written)
        return "reset"

    kept = Kept(serve_command(LIMIT), reset)
    link = link_to(serve_command(LIMIT), open_line=kept.open)
    with pytest.raises(ResetError, match="was reset"):
        train(RemoteCore(link).Session(PROGRAM, PLAN, LIMIT))
    assert link.info.program == ""
    assert train(RemoteCore(link).Session(PROGRAM, PLAN, LIMIT)) == expected()
    kept.end()


def test_a_program_the_device_holds_is_not_sent_again(link: Link) -> None:
    RemoteCore(link).Session(PROGRAM, PLAN, LIMIT)
    before = link.counters.bytes_out
    RemoteCore(link).Session(PROGRAM, PLAN, LIMIT)
    assert link.counters.bytes_out - before < 100


def test_a_request_is_done_once_however_often_it_comes() -> None:
    """Every frame to the device goes twice: a step counted twice would change the weights."""

    class Twice(Noise):
        def write(self, data: bytes) -> None:
            self._line.write(data + data)

    link = link_to(serve_command(LIMIT), open_line=lambda address: Twice(Wire(address), 0, 1))
    assert train(RemoteCore(link).Session(PROGRAM, PLAN, LIMIT)) == expected()
    link.close()


def test_images_that_stay_on_the_device(tmp_path: Path) -> None:
    images, labels = sample(PROGRAM, 9)
    path = tmp_path / "own.shard"
    write_shard(path, images, bytes(labels), shape=PROGRAM.in_shape, classes=PROGRAM.classes, mean=b"\x7d")
    link = link_to(Address.parse(f"exec:{edge.native()} serve {path} --limit {LIMIT}"))
    remote, here = RemoteCore(link), core.Session(PROGRAM, PLAN)
    own = remote.resident()
    assert own is not None
    with Shard(path) as shard:
        assert (own.count, own.shape, own.classes, own.sha256) == (9, shard.shape, shard.classes, shard.sha256)
        there = remote.Session(PROGRAM, PLAN, LIMIT)
        for session in (here, there):
            for index, state in enumerate(states()):
                session.load(index, state)
        for step, numbers in enumerate([(8, 0, 3, 3), (1, 2)]):
            key = (1, 2, 3, 2 * step)
            assert there.step(*own.batch(numbers), RATES, key) == here.step(*shard.batch(numbers), RATES, key)
    layers = range(len(PROGRAM.weight_layers))
    assert [there.read(index) for index in layers] == [here.read(index) for index in layers]
    for payload, words in [
        (struct.pack("<III", 1, 0, 9), "no such images"),
        (struct.pack("<III", 1, 1, 0), "outside"),
        (struct.pack("<III", 2**31, 0, 0), "outside"),
        (struct.pack("<II", 1, 0) + b"x", "another length"),
    ]:
        with pytest.raises(RefusedError, match=words):
            link.request(board.PICK, payload)
    link.close()


def test_a_device_without_images(link: Link) -> None:
    assert RemoteCore(link).resident() is None
    RemoteCore(link).Session(PROGRAM, PLAN, LIMIT)
    with pytest.raises(RefusedError, match="no such images"):
        link.request(board.PICK, struct.pack("<III", 1, 0, 0))


# --- memory -------------------------------------------------------------------------------------------------------


def test_a_plan_fits_to_the_byte() -> None:
    planned = core.plan_memory(PROGRAM, PLAN).total
    pixels = 64 * 4 + 2 * 4
    room = -(-planned // 64) * 64 + pixels
    good = link_to(serve_command(room))
    assert train(RemoteCore(good).Session(PROGRAM, PLAN, room)) == expected()
    good.close()
    tight = link_to(serve_command(room - 1))
    session = RemoteCore(tight).Session(PROGRAM, PLAN)
    with pytest.raises(ArenaTooSmall):
        train(session)
    tight.close()
    small = link_to(serve_command(planned - 1))
    with pytest.raises(ArenaTooSmall) as error:
        RemoteCore(small).Session(PROGRAM, PLAN)
    assert (error.value.planned, error.value.limit) == (planned, planned - 1)
    small.close()


def test_the_largest_plane_has_to_fit_behind_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it does not, profiling says that the width does not fit; the device's refusal would end the gateway."""
    largest = max(max(-(-layer.theta // 8), layer.params_bytes) for layer in PROGRAM.weight_layers)
    planned = core.plan_memory(PROGRAM, PLAN)
    tight = replace(planned, persistent=planned.total - largest + 1)
    told = serial_line.Told(
        {board.PROGRAM: bytes(32), board.OPEN: struct.pack("<QQQ", planned.total, 0, 0)},
        serial_line.hello(limit=planned.total),
    )
    remote = RemoteCore(Link(Address.parse("unix:/x"), serial_line.version(), serial_line.PATIENCE, lambda _: told))
    monkeypatch.setattr(core, "plan_memory", lambda *_: tight)
    with pytest.raises(ArenaTooSmall) as error:
        remote.Session(PROGRAM, PLAN)
    assert (error.value.planned, error.value.limit) == (planned.total + 1, planned.total)
    monkeypatch.setattr(core, "plan_memory", lambda *_: replace(tight, persistent=tight.persistent - 1))
    assert remote.Session(PROGRAM, PLAN).planned_bytes == planned.total


@pytest.mark.parametrize("code", [3, 204])
def test_a_device_without_room_to_plan_is_a_width_that_does_not_fit(code: int) -> None:
    refusal = struct.pack("<H", code) + b"no room"
    told = serial_line.Told({board.PROGRAM: bytes(32), board.OPEN: (0x7F, refusal)}, serial_line.hello(limit=LIMIT))
    remote = RemoteCore(Link(Address.parse("unix:/x"), serial_line.version(), serial_line.PATIENCE, lambda _: told))
    with pytest.raises(BudgetError, match="no room"):
        remote.Session(PROGRAM, PLAN)


def test_the_budget_leaves_room_for_a_batch(link: Link) -> None:
    remote = RemoteCore(link)
    budget = remote.budget(PROGRAM, 4)
    assert LIMIT - 512 <= budget <= LIMIT - 4 * 66
    assert remote.budget(PROGRAM, 10**6) == 0


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "payload", "words"),
    [
        (board.WRITE, b"\0" + struct.pack("<I", LIMIT) + b"x", "outside"),
        (board.WRITE, b"\1" + struct.pack("<I", 0) + b"x", "program or a session"),
        (board.WRITE, b"\2", "another length"),
        (board.PROGRAM, struct.pack("<II", 100, 1), "checksum"),
        (board.PROGRAM, struct.pack("<II", 2 * LIMIT, 1), "outside"),
        (board.PLAN, b"", "another length"),
        (board.OPEN, b"\0" * 14, "program or a session"),
        (board.STEP, b"\0" * 24, "program or a session"),
        (board.PRUNE, b"", "program or a session"),
        (board.FACTS, b"\0", "another length"),
        (60, b"", "does not know"),
    ],
)
def test_bad_requests_are_refused_with_words(link: Link, kind: int, payload: bytes, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        link.request(kind, payload)
    assert train(RemoteCore(link).Session(PROGRAM, PLAN, LIMIT)) == expected()


def test_bad_requests_in_a_session_are_refused(link: Link) -> None:
    session = RemoteCore(link).Session(PROGRAM, PLAN, LIMIT)
    for kind, payload, words in [
        (board.PLANE, struct.pack("<HHII", 0, 0, 5, 7), "checksum"),
        (board.PLANE, struct.pack("<HHII", 0, 0, LIMIT, 7), "outside"),
        (board.PLANE, struct.pack("<HHII", 99, 0, 0, 0), "no weights"),
        (board.PARAMS, struct.pack("<HHIiII", 0, 0, 1, 0, 0, 0), "step"),
        (board.READ_PLANE, struct.pack("<HHIH", 0, 0, 0, 513), "outside"),
        (board.READ_PLANE, struct.pack("<HHIH", 0, 15, 0, 1), "number of planes"),
        (board.READ_PARAMS, struct.pack("<HHIH", 99, 0, 0, 1), "no weights"),
        (board.RATES, b"\0" * 20, "another length"),
        (board.STEP, struct.pack("<6I", 0, 0, 0, 0, 2**31, 0), "outside"),
        (board.STEP, struct.pack("<6I", 0, 0, 0, 0, 1, 0), "checksum"),
    ]:
        with pytest.raises(RefusedError, match=words):
            link.request(kind, payload)
    assert train(session) == expected()


def test_a_program_with_more_records_than_the_firmware_holds() -> None:
    class Small(Noise):
        """The device's hello says that it takes 3 records."""

        def read(self, timeout_s: float) -> bytes:
            out = b""
            for frame in Decoder().feed(self._line.read(timeout_s)):
                payload = frame.payload[:16] + struct.pack("<I", 3) + frame.payload[20:]
                out += encode(Frame(frame.type, frame.seq, payload))
            return out

    link = link_to(serve_command(LIMIT), open_line=lambda address: Small(Wire(address), 0, 1))
    with pytest.raises(BudgetError, match=f"--records {len(PROGRAM.records)}: fedmpq build --what gateway"):
        RemoteCore(link).Session(PROGRAM, PLAN, LIMIT)
    link.close()


def test_firmware_of_another_version_is_named() -> None:
    with pytest.raises(FirmwareError, match=rf"built from fedmpq {serial_line.version()}, this gateway is 9\.9"):
        Link(serve_command(LIMIT), "9.9", serial_line.PATIENCE)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (struct.pack("<HH", 7, 512), "version 7 of the serial protocol, this gateway 1"),
        (struct.pack("<HH", 1, 512) + b"short", "9 bytes"),
        (b"", "not one of fedmpq's firmware"),
        (serial_line.hello(payload=127), "payloads of 127 bytes, at least 128"),
        (serial_line.hello(payload=4), "payloads of 4 bytes"),
    ],
)
def test_a_hello_of_something_else(reply: bytes, words: str) -> None:
    class Other:
        def read(self, _: float) -> bytes:
            return encode(Frame(0x41, 0, reply))

        def write(self, _: bytes) -> None:
            pass

        def close(self) -> None:
            pass

    with pytest.raises(FirmwareError, match=words):
        Link(Address.parse("unix:/x"), serial_line.version(), serial_line.PATIENCE, lambda _: Other())


@pytest.mark.parametrize("wrong", [-1, 1])
@pytest.mark.parametrize(
    ("kind", "ask"),
    [
        (board.FACTS, lambda core, _: core.facts()),
        (board.SHARD, lambda core, _: core.resident()),
        (board.PLAN, lambda core, _: core.planned_there(PROGRAM, PLAN)),
        (board.PROGRAM, lambda core, _: core.planned_there(PROGRAM, PLAN)),
        (board.OPEN, lambda core, _: core.Session(PROGRAM, PLAN)),
        (board.READ_PARAMS, lambda _, session: session.read(0)),
        (board.READ_PLANE, lambda _, session: session._read_plane(0, 0, 4)),
        (board.WRITE, lambda _, session: session.load(0, states()[0])),
        (board.PLANE, lambda _, session: session.load(0, states()[0])),
        (board.PARAMS, lambda _, session: session.load(0, states()[0])),
        (board.RATES, lambda _, session: session.step(*sample(PROGRAM, 4), RATES, (1, 2, 3, 4))),
        (board.STEP, lambda _, session: session.step(*sample(PROGRAM, 4), RATES, (1, 2, 3, 4))),
        (board.EVALUATE, lambda _, session: session.evaluate(*sample(PROGRAM, 4))),
        (board.PICK, lambda _, session: session.evaluate(board.Picked((0,)), memoryview(bytes(2)).cast("H"))),
        (board.PRUNE, lambda _, session: session.prune(1)),
    ],
)
def test_a_reply_of_another_length_is_an_error(kind: int, ask: Callable[[RemoteCore, Any], object], wrong: int) -> None:
    """Before anything is made of it: a short one would not unpack, an empty one be asked for again and again."""
    total = core.plan_memory(PROGRAM, PLAN).total
    params = PROGRAM.weight_layers[0].params_bytes
    replies = {
        board.FACTS: bytes(36), board.SHARD: bytes(44), board.PLAN: bytes(16), board.PROGRAM: bytes(32),
        board.OPEN: struct.pack("<QQQ", total, 0, LIMIT), board.READ_PARAMS: bytes(10 + params),
        board.READ_PLANE: bytes(4), board.STEP: bytes(16), board.EVALUATE: bytes(16), board.PICK: bytes(4),
        board.PRUNE: bytes(len(PROGRAM.weight_layers)),
    }  # fmt: skip
    good = replies.get(kind, b"")
    told = serial_line.Told(replies, serial_line.hello(limit=LIMIT))
    remote = RemoteCore(Link(Address.parse("unix:/x"), serial_line.version(), serial_line.PATIENCE, lambda _: told))
    session = remote.Session(PROGRAM, PLAN, LIMIT)
    remote.link.info = remote.link.info.with_program("")
    size = max(0, len(good) + wrong) or 1
    replies[kind] = (good + b"x")[:size]
    with pytest.raises(LinkError, match=f"has {size} bytes instead of {len(good)}"):
        ask(remote, session)


def test_a_request_that_the_firmware_cannot_take_is_an_error() -> None:
    told = serial_line.Told({}, serial_line.hello(payload=128))
    link = Link(Address.parse("unix:/x"), serial_line.version(), serial_line.PATIENCE, lambda _: told)
    with pytest.raises(FirmwareError, match="has 129 bytes, the firmware of board takes 128"):
        link.request(board.RATES, bytes(129))


def test_silence_is_an_error_that_names_the_line() -> None:
    patience = serial_line.Patience(first=0.05, most=0.1, quick=0.4)
    with pytest.raises(LinkError, match=r"exec:sleep 5: no answer for 0 s .*gateway firmware"):
        Link(Address.parse("exec:sleep 5"), "1", patience)


# --- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "kind", "place", "number"),
    [
        ("/dev/ttyACM0", "tty", "/dev/ttyACM0", 115200),
        ("/dev/ttyUSB1?baud=921600", "tty", "/dev/ttyUSB1", 921600),
        ("tcp://127.0.0.1:5000", "tcp", "127.0.0.1", 5000),
        ("tcp://[::1]:5000", "tcp", "::1", 5000),
        ("unix:/tmp/x", "unix", "/tmp/x", 0),
        ("exec:ssh pi serve", "exec", "ssh pi serve", 0),
    ],
)
def test_addresses(url: str, kind: str, place: str, number: int) -> None:
    assert Address.parse(url) == Address(kind, place, number)


@pytest.mark.parametrize(
    "url", ["", "serial", "tcp://host", "tcp://host:99999", "tcp://:1", "exec:", "exec:'", "/dev/tty?baud=7", "unix:"]
)
def test_bad_addresses(url: str) -> None:
    with pytest.raises(UsageError, match="--serial"):
        Address.parse(url)


def test_a_line_that_cannot_be_opened() -> None:
    for url in ("/dev/absent", "unix:/tmp/absent.socket", "tcp://127.0.0.1:1", "exec:/absent/command"):
        with pytest.raises(WireError, match="cannot be opened"):
            Wire(Address.parse(url))
    wire = Wire(Address.parse("exec:sh -c 'exit 3'"))
    with pytest.raises(WireError, match="exit code 3"):
        wire.read(5.0)
