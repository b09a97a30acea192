"""Microcontrollers in emulated boards behind a gateway: the same bits, resets, noise, wrong firmware."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmpq.edge_runtime import core
from fedmpq.edge_runtime.serial.board import RemoteCore
from fedmpq.edge_runtime.serial.link import FirmwareError, Link, Patience
from fedmpq.edge_runtime.serial.wire import Wire
from fedmpq.edge_runtime.shard import Shard, write_shard
from fedmpq.errors import ArenaTooSmall, ResetError
from fedmpq.firmware_profiles import load
from fedmpq.toolchain import gateway
from fedmpq.toolchain.compile import BuildError
from tests.helpers import edge, programs
from tests.helpers.emulated_board import EmulatedBoard, emulated
from tests.helpers.serial_line import Noise, sample, version

pytestmark = [pytest.mark.arm, pytest.mark.timeout(2400)]

NET = programs.resnet()
PROGRAM = core.Program(NET.build())
PATIENCE = Patience(first=0.5, most=2.0, quick=60.0, work=300.0, closed=10.0)
RATES = core.Hyper(core.fx(0.05), core.fx(1e-3))


def plan(bits: int, **options: object) -> core.Plan:
    return core.Plan(bits=(bits,) * len(PROGRAM.weight_layers), batch=1, **options)  # type: ignore[arg-type]


def link_to(board: EmulatedBoard, noise: float = 0.0) -> Link:
    return Link(board.address, version(), PATIENCE, lambda address: Noise(Wire(address), noise, 1))


def train(session: core.Session, bits: int, steps: int = 2) -> tuple[list[core.Stats], list[core.LayerState]]:
    for index, state in enumerate(programs.states(NET, bits)):
        session.load(index, core.LayerState(*state))
    images, labels = sample(PROGRAM, 1)
    stats = [session.step(images, labels, RATES, (1, 2, 3, step)) for step in range(steps)]
    session.prune(2000)
    return stats, [session.read(index) for index in range(len(PROGRAM.weight_layers))]


def remote(link: Link, bits: int) -> core.Session:
    session: core.Session = RemoteCore(link).Session(PROGRAM, plan(bits))  # type: ignore[assignment]
    return session


@pytest.fixture
def m7() -> Iterator[EmulatedBoard]:
    with emulated("stm32f746") as board:
        yield board


@pytest.mark.parametrize(
    ("profile", "bits"), [("stm32f746", 4), ("stm32h743", 8), ("nrf52840", 2), ("corstone-300", 2)]
)
def test_a_board_trains_the_same_bits_and_plans_the_same_bytes(profile: str, bits: int) -> None:
    with emulated(profile) as board:
        link = link_to(board)
        assert link.info.board == profile
        for width, options in [(1, {}), (4, {"guard": 2, "act_bits": 8}), (8, {"momentum": True, "recompute": False})]:
            asked = plan(width, **options)
            assert RemoteCore(link).planned_there(PROGRAM, asked) == core.plan_memory(PROGRAM, asked).total
        session = remote(link, bits)
        assert session.measured_bytes == core.plan_memory(PROGRAM, plan(bits)).total
        assert train(session, bits) == train(core.Session(PROGRAM, plan(bits)), bits)
        facts = RemoteCore(link).facts()
        assert facts.stack_used < facts.stack_kept
        assert facts.limit + facts.data + facts.bss + facts.stack_kept <= board.profile.available
        link.close()


def test_noise_on_the_line_of_a_board(m7: EmulatedBoard) -> None:
    link = link_to(m7, noise=2e-4)
    assert train(remote(link, 2), 2, 1) == train(core.Session(PROGRAM, plan(2)), 2, 1)
    assert link.counters.damaged
    link.close()


def test_a_reset_in_the_middle_of_a_transfer(m7: EmulatedBoard) -> None:
    link = link_to(m7)
    session = remote(link, 2)
    state = core.LayerState(*programs.states(NET, 2)[0])
    session.load(0, state)
    m7.reset()
    with pytest.raises(ResetError):
        session.load(1, core.LayerState(*programs.states(NET, 2)[1]))
    assert link.info.program == ""
    assert train(remote(link, 2), 2, 1) == train(core.Session(PROGRAM, plan(2)), 2, 1)
    link.close()


def test_a_gateway_that_comes_back_finds_the_program_still_there(m7: EmulatedBoard) -> None:
    link = link_to(m7)
    remote(link, 2)
    link.close()
    again = link_to(m7)
    assert again.info.program == PROGRAM.sha256
    before = again.counters.bytes_out
    remote(again, 2)
    assert again.counters.bytes_out - before < 200
    again.close()


def test_images_in_the_flash_of_a_board(tmp_path: Path) -> None:
    images, labels = sample(PROGRAM, 5)
    path = tmp_path / "own.shard"
    write_shard(path, images, bytes(labels), shape=PROGRAM.in_shape, classes=PROGRAM.classes, mean=b"\x7d\x7b\x72")
    built = gateway.build(load("stm32f746"), edge.BUILD.parent / "gateway" / "resident", shard=path)
    with emulated("stm32f746", built) as board, Shard(path) as shard:
        link = link_to(board)
        own = RemoteCore(link).resident()
        assert own is not None
        assert (own.count, own.sha256) == (5, shard.sha256)
        sessions = remote(link, 2), core.Session(PROGRAM, plan(2))
        for session, data in zip(sessions, (own, shard), strict=True):
            for index, state in enumerate(programs.states(NET, 2)):
                session.load(index, core.LayerState(*state))
            session.step(*data.batch([3]), RATES, (1, 2, 3, 0))
        assert sessions[0].read(0) == sessions[1].read(0)
        link.close()
    huge = tmp_path / "huge.shard"
    count = 400
    write_shard(huge, bytes(count * 3072), bytes(2 * count), shape=(32, 32, 3), classes=10, mean=bytes(3))
    with pytest.raises(BuildError, match=r"stm32f746: .*CODE.*overflowed by \d+ bytes"):
        gateway.build(load("stm32f746"), edge.BUILD.parent / "gateway" / "resident", shard=huge)


def test_what_does_not_fit_is_refused_with_numbers(m7: EmulatedBoard) -> None:
    link = link_to(m7)
    large = plan(8, momentum=True, guard=4)
    with pytest.raises(ArenaTooSmall) as error:
        RemoteCore(link).Session(PROGRAM, large)
    assert error.value.needed == core.plan_memory(PROGRAM, large).total > error.value.available == link.info.limit
    link.close()


def test_firmware_of_another_version_is_refused_with_words(tmp_path: Path) -> None:
    old = gateway.build(load("stm32f746"), edge.BUILD.parent / "gateway" / "old", version="0.0.9")
    with emulated("stm32f746", old) as board, pytest.raises(FirmwareError, match=r"stm32f746 was built from .*0\.0\.9"):
        link_to(board)


def test_the_firmware_holds_no_floating_point() -> None:
    elf = gateway.build(load("stm32f746"), edge.BUILD.parent / "gateway" / "stm32f746")
    symbols = subprocess.run(["arm-none-eabi-nm", elf], capture_output=True, text=True, check=True).stdout
    assert not [line for line in symbols.splitlines() if "__aeabi_f" in line or "__aeabi_d" in line]
