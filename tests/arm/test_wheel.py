"""The device wheel for another processor: its tag, its size, and the library in it."""

from __future__ import annotations

import csv
import hashlib
import io
from base64 import urlsafe_b64encode
from zipfile import ZipFile

import pytest
from elftools.elf.elffile import ELFFile

from fedmpq.firmware_profiles import load
from fedmpq.toolchain import wheel

pytestmark = pytest.mark.arm


@pytest.mark.parametrize(("profile", "machine"), [("rpi-4", "AArch64"), ("armv7-neon", "ARM")])
def test_a_wheel_for_another_processor(profile, machine, tmp_path):
    made = wheel.build(load(profile), tmp_path)
    assert made.name.endswith(f"-py3-none-{load(profile).toolchain.wheel}.whl")
    assert made.stat().st_size <= 1 << 20
    with ZipFile(made) as held:
        names = {name.rpartition("/")[2]: name for name in held.namelist()}
        library = ELFFile(io.BytesIO(held.read(names["libfmpq.so"])))
        assert library.get_machine_arch() == machine
        tags = [line for line in held.read(names["WHEEL"]).decode().splitlines() if line.startswith("Tag: ")]
        assert tags == [f"Tag: py3-none-{tag}" for tag in load(profile).toolchain.wheel.split(".")]
        for name, digest, size in csv.reader(io.StringIO(held.read(names["RECORD"]).decode())):
            if digest:
                data = held.read(name)
                assert len(data) == int(size)
                assert digest == "sha256=" + urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
