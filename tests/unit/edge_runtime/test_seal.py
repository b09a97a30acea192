"""Seals and credentials files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpq.coordinator.enrolment import Enrolment
from fedmpq.edge_runtime.chunks import encode_chunk
from fedmpq.edge_runtime.credentials import Credentials
from fedmpq.edge_runtime.protocol import digest
from fedmpq.edge_runtime.seal import SEAL_SIZE, Seal, SealError
from fedmpq.errors import ConfigError, StateError, UsageError

KEY = Seal(bytes(range(32)))


@given(st.binary(max_size=300), st.text(max_size=20))
def test_a_sealed_message_opens_on_its_topic_only(body: bytes, topic: str) -> None:
    if body[:4] == b"FMQC":
        return
    sealed = KEY.close(topic, body)
    assert len(sealed) == len(body) + SEAL_SIZE
    assert KEY.open(topic, sealed) == body
    with pytest.raises(SealError):
        KEY.open(topic + "x", sealed)
    with pytest.raises(SealError):
        Seal(bytes(32)).open(topic, sealed)


@given(st.integers(0, SEAL_SIZE + 20), st.integers(1, 255))
def test_any_changed_byte_is_noticed(at: int, change: int) -> None:
    sealed = bytearray(KEY.close("t", b"a message of some length"))
    sealed[at % len(sealed)] ^= change
    with pytest.raises(SealError):
        KEY.open("t", bytes(sealed))


@given(st.binary(max_size=200))
def test_garbage_has_no_seal(data: bytes) -> None:
    if data[:4] != b"FMQC":
        with pytest.raises(SealError):
            KEY.open("t", data)


def test_chunks_pass_as_they_are() -> None:
    chunk = encode_chunk(digest(b"blob"), b"blob", 0)
    assert KEY.close("t", chunk) == chunk == KEY.open("t", chunk)


def test_credentials_survive_their_file(tmp_path: Path) -> None:
    enrolment = Enrolment(tmp_path / "s", "lab")
    made = enrolment.enroll("pi-1", "mqtts://broker.example:8883", days=2)
    made.write(tmp_path / "file")
    assert Credentials.read(tmp_path / "file") == made
    with pytest.raises(ConfigError, match="is there already"):
        made.write(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"of device pi-1 ended on .*enroll` again"):
        made.check_date(made.not_after)
    again = enrolment.enroll("pi-1", "mqtts://broker.example:8883")
    assert again.message_key != made.message_key
    assert enrolment.enroll("pi-2", "mqtts://x").message_key not in {made.message_key, again.message_key}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("message-key: ", "message-key: zz"), "a value is missing or wrong"),
        (lambda text: text.replace("message-key", "x"), "line 'message-key' is missing"),
        (lambda text: text.replace("fedmpq-credentials: 1", "fedmpq-credentials: 2"), "the version"),
        (lambda text: text.replace("fleet: lab", "fleet: ../lab"), "a value"),
        (lambda text: text.split("-----BEGIN PRIVATE")[0], "the certificate or its key"),
        (lambda text: "", "the header"),
        (lambda text: "x" * 100_000, "the header"),
    ],
)
def test_a_wrong_file_is_one_line_without_secrets(tmp_path: Path, change: object, words: str) -> None:
    text = Enrolment(tmp_path / "s", "lab").enroll("pi-1", "mqtts://x").to_text()
    path = tmp_path / "file"
    path.touch(0o600)
    path.write_text(change(text))  # type: ignore[operator]
    with pytest.raises(ConfigError, match=words) as found:
        Credentials.read(path)
    assert text.split("message-key: ")[1][:20] not in str(found.value)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by other users"):
        Credentials.read(path)


def test_the_security_directory_belongs_to_one_fleet(tmp_path: Path) -> None:
    first = Enrolment(tmp_path / "s", "lab")
    assert Enrolment(tmp_path / "s").fleet == "lab"
    assert Enrolment(tmp_path / "s").authority.pem == first.authority.pem
    with pytest.raises(StateError, match="belongs to fleet 'lab', not 'other'"):
        Enrolment(tmp_path / "s", "other")
    with pytest.raises(UsageError, match="no broker is known yet"):
        first.enroll("pi-1")
    with pytest.raises(StateError, match="is not enrolled"):
        first.revoke("pi-1")
    (tmp_path / "s" / "ca.key").write_text("nonsense")
    with pytest.raises(StateError, match="is damaged"):
        Enrolment(tmp_path / "s")
