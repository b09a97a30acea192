"""The golden runs: the same final state from the PyTorch reference (recorded), the Python binding and the C program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmpq.edge_runtime import core
from fedmpq.models.reference import ReferenceSession
from tests.helpers import edge, golden

RECORDED = json.loads((Path(__file__).parent / "edge.json").read_text())["cases"]


def test_every_case_is_recorded():
    assert set(RECORDED) == set(golden.CASES)


@pytest.mark.parametrize("name", golden.CASES)
def test_the_reference_gives_the_recorded_state(name):
    assert golden.run(golden.CASES[name], ReferenceSession) == RECORDED[name]


@pytest.mark.parametrize("name", golden.CASES)
def test_the_binding_gives_the_recorded_state(name):
    assert golden.run(golden.CASES[name], core.Session) == RECORDED[name]


@pytest.mark.parametrize("isa", core.isas())
def test_the_program_gives_the_recorded_states_on_every_instruction_set(isa):
    cases = ["resnet8-mixed", "resnet8-n8", "resnet20-n4", "branches-mixed"] if isa == "scalar" else list(golden.CASES)
    found = edge.parse_selftest(edge.run("selftest", *cases, "--isa", isa))
    assert set(found) == set(cases)
    for name, fields in found.items():
        check(name, fields)
        assert fields["isa"] == isa


def test_threads_do_not_change_a_state():
    found = edge.parse_selftest(edge.run("selftest", "resnet8-mixed", "resnet8-n2", "--threads", "3"))
    for name, fields in found.items():
        check(name, fields)


def check(name: str, fields: dict[str, str]) -> None:
    """Compares a line of `selftest` with the recorded run."""
    for key, value in RECORDED[name].items():
        assert fields[key] == str(value), f"{name}: {key} is {fields[key]}, recorded is {value}"
