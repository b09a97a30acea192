"""`fedmpq coordinator enroll`: what is refused, and that a refusal leaves the device's credentials as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fedmpq.cli.coordinator import command
from fedmpq.coordinator.enrolment import Enrolment
from fedmpq.edge_runtime.credentials import Credentials
from fedmpq.errors import FedmpqError, UsageError

BROKER = "mqtts://u:secret@broker.example:8883"


def enroll(directory: Path, *arguments: str) -> str:
    words = ["enroll", "pi-1", "--dir", str(directory), *arguments]
    return CliRunner().invoke(command, words, catch_exceptions=False, standalone_mode=False).output


def test_a_password_goes_to_the_device_and_nowhere_else(tmp_path: Path) -> None:
    for number, extra in enumerate(([], ["--json"])):
        out = tmp_path / f"{number}.credentials"
        said = enroll(tmp_path / "run", "--out", str(out), "--broker", BROKER, *extra)
        assert "mqtts://broker.example:8883" in said
        assert "secret" not in said
        assert Credentials.read(out).broker == BROKER


def test_a_refusal_leaves_the_credentials_good(tmp_path: Path) -> None:
    enroll(tmp_path / "run", "--out", str(tmp_path / "first"), "--broker", BROKER)
    der, text, out = tmp_path / "ca.der", tmp_path / "ca.txt", str(tmp_path / "second")
    der.write_bytes(bytes(range(128, 256)))
    text.write_text("no certificate\n")
    for arguments, message in (
        (["--out", str(tmp_path / "missing" / "x")], r"missing is no folder that can be written"),
        (["--out", str(tmp_path / "first")], "is there already"),
        (["--out", out, "--ca", str(der)], r"--ca .*ca\.der is no certificate in PEM .*openssl"),
        (["--out", out, "--ca", str(text)], r"--ca .*ca\.txt is no certificate in PEM"),
        (["--out", out, "--ca", str(tmp_path / "none")], r"--ca .*none cannot be read"),
        (["--out", out, "--broker", "not a url"], "is no host"),
        (["--out", out, "--broker", "mqtts://["], "not understood"),
        (["--out", out, "--broker", "mqtt://broker"], "mqtt://broker:1883 is in plain text"),
        (["--out", out, "--broker", "http://broker"], "not understood"),
        (["--out", out, "--broker", "mqtts://u:secret@h:port"], r"broker 'h:port' is not understood \(mqtts"),
    ):
        with pytest.raises(UsageError, match=message):
            enroll(tmp_path / "run", "--broker", BROKER, *arguments)
    member = Enrolment(tmp_path / "run" / "security").member("pi-1")
    assert member is not None
    assert member.number == 1
    assert not Path(out).exists()


def test_nothing_is_made_for_arguments_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(FedmpqError):
        enroll(tmp_path / "run", "--out", str(tmp_path / "x"), "--broker", "not a url")
    assert not (tmp_path / "run").exists()


def test_the_authority_of_another_broker_is_taken(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(Enrolment(tmp_path / "other").authority.pem)
    enroll(tmp_path / "run", "--out", str(tmp_path / "x"), "--broker", BROKER, "--ca", str(ca))
    assert Credentials.read(tmp_path / "x").ca.strip() == ca.read_text().strip()
