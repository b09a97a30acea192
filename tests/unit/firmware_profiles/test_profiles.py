"""Profiles: the ones that come along, and every way a file can be wrong."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from fedmpq import firmware_profiles
from fedmpq.cli._main import run
from fedmpq.errors import ConfigError
from fedmpq.firmware_profiles import load, names

_FOLDER = Path(firmware_profiles.__file__).parent
_REQUIRED = {
    "rpi-zero", "rpi-zero-2w", "rpi-4", "rpi-5", "jetson-orin-nano", "android-arm64", "stm32f746", "stm32h743",
    "nrf52840", "corstone-300", "x86-64",
}  # fmt: skip


def test_every_device_class_has_a_profile():
    assert set(names()) >= _REQUIRED


@pytest.mark.parametrize("name", names())
def test_each_profile_is_valid_and_says_why_it_is_there(name):
    profile = load(name)
    assert profile.name == name
    assert profile.training <= profile.available <= profile.memory.ram
    assert (profile.board is not None) == (profile.kind == "bare-metal")
    assert (_FOLDER / f"{name}.toml").read_text().startswith("# ")


def _changed(tmp_path: Path, pattern: str, replacement: str, base: str = "stm32f746") -> Path:
    text, count = re.subn(pattern, replacement, (_FOLDER / f"{base}.toml").read_text(), count=1, flags=re.MULTILINE)
    assert count == 1, pattern
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("pattern", "replacement", "key"),
    [
        (r"^ram = .*$", "", "memory.ram is missing"),
        (r"^ram = .*$", "ram = -1", "memory.ram must"),
        (r"^ram = .*$", 'ram = "320 KB"', "memory.ram must"),
        (r"^ram = .*$", "ram = true", "memory.ram must"),
        (r"^ram = .*$", "ram = 99999999999999999999", "memory.ram must"),
        (r"^system = \d+", "system = 327680", "memory.system"),
        (r"^training = \d+", "training = 262144", "memory.training"),
        (r"^flash = .*$", "flash = 0", "memory.flash"),
        (r"^isa = .*$", 'isa = "z80"', "cpu.isa"),
        (r"^kernels = .*$", 'kernels = "magic"', "cpu.kernels"),
        (r"^cores = .*$", "cores = 0", "cpu.cores"),
        (r"^features = .*$", "features = [1]", "cpu.features"),
        (r"^\[cpu\]$", "[cqu]", "cqu is not a key"),
        (r"^\[training\]$", "[training]\nspeed = 1", "training.speed is not a key"),
        (r"^micro_batch = .*$", "micro_batch = 0", "training.micro_batch"),
        (r"^micro_batch = .*$", "micro_batch = 1\nact_bits = 5", "training.act_bits"),
        (r"^micro_batch = .*$", "micro_batch = 1\nthreads = 2", "training.threads"),
        (r"^compiler = .*$", 'compiler = "tcc"', "toolchain.compiler"),
        (r"^target = .*$", 'target = "a b; rm"', "toolchain.target"),
        (r"^command = .*$", "command = 7", "emulator.command"),
        (r"^stack = .*$", "stack = 10", "board.stack"),
        (r"^ram_origin = .*$", "ram_origin = 0x1_0000_0000", "board.ram_origin"),
        (r"^kind = .*$", 'kind = "linux"', "board"),
        (r"^kind = .*$", 'kind = "cloud"', "kind"),
        (r"^description = .*$", 'description = ""', "description"),
        (r"^description = .*$", "description =", "is not TOML"),
    ],
)
def test_a_bad_value_names_the_file_and_the_key(tmp_path, pattern, replacement, key):
    path = _changed(tmp_path, pattern, replacement)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert str(path) in str(caught.value)
    assert key in str(caught.value)


def test_a_copied_file_is_a_new_profile(tmp_path):
    path = _changed(tmp_path, r"^stack = .*$", "stack = 8192")
    profile = load(str(path))
    assert profile.name == "mine"
    assert profile.board is not None
    assert profile.board.stack == 8192


def test_unknown_names_and_files():
    with pytest.raises(ConfigError, match="did you mean stm32f746"):
        load("stm32f74")
    with pytest.raises(ConfigError, match="one of android-arm64"):
        load("../../etc/passwd")
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        load("nowhere.toml")


def test_binary_and_huge_files(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(str(path))
    path.write_text("#" * 70000)
    with pytest.raises(ConfigError, match="at most"):
        load(str(path))


def test_list_show_check(capsys):
    assert run(["profiles", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["profiles"]
    assert {p["name"] for p in listed} >= _REQUIRED
    assert run(["profiles", "show", "stm32f746", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    written = tomllib.loads((_FOLDER / "stm32f746.toml").read_text())
    assert shown["memory"] == written["memory"]
    assert shown["available"] == 256 * 1024
    assert run(["profiles", "check", *names()]) == 0
    assert "corstone-300" in capsys.readouterr().out
    assert run(["profiles", "show", "nothing"]) == 3
    assert "there is no profile 'nothing'" in capsys.readouterr().err
