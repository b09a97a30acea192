"""The closed broker: who gets in, who hears what, and what each is told. A real Mosquitto with TLS."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import logging
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmpq.coordinator import enrolment as enrolments
from fedmpq.coordinator.broker import BrokerTls, ManagedBroker
from fedmpq.coordinator.enrolment import Enrolment
from fedmpq.coordinator.service import Service, Where
from fedmpq.edge_runtime.credentials import Credentials
from fedmpq.edge_runtime.mqtt import Broker, MqttTransport
from fedmpq.edge_runtime.topics import Topics
from fedmpq.edge_runtime.transport import Connected, Incoming
from fedmpq.errors import NetworkError, UsageError
from tests.helpers.fleet import config
from tests.network.test_coordinator_mqtt import ORIGIN

pytestmark = pytest.mark.network
PREFIX = "fmpq/v1/lab/"


@dataclasses.dataclass
class Lab:
    enrolment: Enrolment
    broker: ManagedBroker

    def link(self, credentials: Credentials, patterns: list[str], client_id: str = "") -> MqttTransport:
        link = MqttTransport(Broker.from_credentials(credentials), client_id or f"fmpq-lab-{credentials.device}")
        link.connect(patterns)
        assert link.poll(5.0) == Connected()
        return link

    def enroll(self, device: str) -> Credentials:
        return self.enrolment.enroll(device, self.broker.url)

    def coordinator(self) -> MqttTransport:
        files = self.enrolment.coordinator_files()
        address = Broker.from_url(self.broker.url, ca=files.ca, certificate=files.certificate, key=files.key)
        link = MqttTransport(dataclasses.replace(address, server_name=enrolments.SERVER_NAME), "fmpq-lab-coordinator")
        link.connect([PREFIX + "#"])
        assert link.poll(5.0) == Connected()
        return link

    def refusal(self, credentials: Credentials, url: str = "") -> str:
        with pytest.raises(NetworkError) as refused:
            MqttTransport(Broker.from_credentials(credentials, url), "x").connect(["#"], timeout_s=4)
        return str(refused.value)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("lab")
    enrolment = Enrolment(directory / "security", "lab")
    server = enrolment.server_files(enrolments.host_names("127.0.0.1"))
    tls = BrokerTls(
        server.ca, server.certificate, server.key, enrolment.revocation_file(), enrolments.COORDINATOR, PREFIX
    )
    broker = ManagedBroker(directory / "broker", port=0, tls=tls)
    broker.start()
    yield Lab(enrolment, broker)
    broker.stop()


def heard(link: MqttTransport, seconds: float = 0.5) -> list[str]:
    """Topics of the messages that come."""
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        event = link.poll(0.1)
        if isinstance(event, Incoming):
            found.append(event.topic)
    return found


def test_a_device_hears_and_says_only_what_is_its_own(lab: Lab) -> None:
    """By delivery: a broker may well grant a subscription that it never serves."""
    coordinator = lab.coordinator()
    everything = ["#", PREFIX + "#", PREFIX + "d/b/#", PREFIX + "d/+/dn/plan", "$SYS/#"]
    a = lab.link(lab.enroll("a"), everything)
    b = lab.link(lab.enroll("b"), [PREFIX + "d/b/dn/+", PREFIX + "round"])
    for topic in ("d/b/dn/plan", "d/b/dn/chunk", "d/a/dn/plan", "coord/state", "round", "other"):
        coordinator.publish(PREFIX + topic, b"x", retain=True)
    assert sorted(set(heard(a))) == [PREFIX + "coord/state", PREFIX + "d/a/dn/plan", PREFIX + "round"]
    heard(coordinator)
    heard(b)
    said = (
        "d/b/up/update",
        "d/b/state",
        "coord/state",
        "round",
        "d/b/dn/plan",
        "d/a/dn/plan",
        "d/a/up/update",
        "d/a/state",
    )
    for topic in said:
        a.publish(PREFIX + topic, b"from a")
    assert sorted(set(heard(coordinator))) == [PREFIX + "d/a/state", PREFIX + "d/a/up/update"]
    assert heard(b) == []
    for link in (a, b, coordinator):
        link.close()


def test_a_client_id_cannot_be_taken_over(lab: Lab) -> None:
    first = lab.link(lab.enroll("c"), [PREFIX + "d/c/dn/+"])
    thief = lab.link(lab.enroll("d"), [PREFIX + "d/d/dn/+"], client_id="fmpq-lab-c")
    assert first.poll(0.5) is None
    for link in (thief, first):
        link.close()


def test_certificates_that_are_refused_and_why(lab: Lab, tmp_path: Path) -> None:
    good = lab.enroll("e")
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=3)
    ended = lab.enrolment.authority.issue("e", days=1, now=past)
    assert "it has ended (run `fedmpq coordinator enroll` again)" in lab.refusal(
        dataclasses.replace(good, certificate=ended.certificate, key=ended.key)
    )
    foreign = Enrolment(tmp_path / "foreign", "lab").enroll("e", lab.broker.url)
    assert "of another fleet's authority" in lab.refusal(dataclasses.replace(foreign, ca=good.ca))
    assert f"the certificate of broker {lab.broker.url} is not trusted" in lab.refusal(foreign)
    lab.enrolment.revoke("e")
    lab.enrolment.revocation_file()
    lab.broker.reload()
    time.sleep(0.5)
    assert "it was taken back" in lab.refusal(good)
    assert lab.broker.refused()["certificate"] >= 3
    counted = lab.broker.refused()["certificate"]
    assert lab.broker.refused()["certificate"] == counted  # every line of the log counts once


def test_a_device_cannot_pose_as_the_broker(lab: Lab, tmp_path: Path) -> None:
    """Its certificate is for clients: another device that is lured to it does not talk."""
    mallory = lab.enroll("mallory")
    (tmp_path / "chain.pem").write_text(mallory.certificate)
    (tmp_path / "chain.key").write_text(mallory.key)
    (tmp_path / "chain.key").chmod(0o600)
    authority = lab.enrolment.authority.certificate_path
    tls = BrokerTls(
        authority, tmp_path / "chain.pem", tmp_path / "chain.key", lab.enrolment.revocation_file(), "x", PREFIX
    )
    posing = ManagedBroker(tmp_path / "posing", port=0, tls=tls)
    posing.start()
    try:
        told = lab.refusal(lab.enroll("victim"), posing.url)
    finally:
        posing.stop()
    assert "is not trusted" in told


def test_a_broker_without_tls_is_told_apart(lab: Lab, tmp_path: Path) -> None:
    plain = ManagedBroker(tmp_path / "plain", port=0)
    plain.start()
    try:
        told = lab.refusal(lab.enroll("f"), plain.url.replace("mqtt:", "mqtts:"))
    finally:
        plain.stop()
    assert "TLS" in told
    assert "is its port for mqtts?" in told
    with pytest.raises(UsageError, match="plain text"):
        Broker.from_credentials(lab.enroll("f"), "mqtt://127.0.0.1")
    with pytest.raises(NetworkError, match="refuses the connection"):
        MqttTransport(Broker.from_url(lab.broker.url.replace("mqtts", "mqtt")), "p").connect(["#"], timeout_s=3)
    assert lab.broker.refused()["tls"] >= 1


def test_plain_text_must_be_asked_for(tmp_path: Path, lab: Lab) -> None:
    with pytest.raises(UsageError, match=r"in plain text.*--insecure"):
        Service(tmp_path / "run", config(), ORIGIN, None, Where(broker="mqtt://127.0.0.1:1"))
    service = Service(tmp_path / "run", config(), ORIGIN, None, Where(port=0))
    assert service.url.startswith("mqtts://")
    service.close()


def test_secrets_stay_in_their_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing secret in logs, in the journal, in what is printed; files are the owner's alone."""
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    service = Service(tmp_path / "run", config(), ORIGIN, None, Where(port=0), say=said.append)
    security = tmp_path / "run" / "security"
    assert service.enrolment is not None
    file = tmp_path / "a.credentials"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fedmpq",
            "coordinator",
            "enroll",
            "a",
            "--dir",
            str(tmp_path / "run"),
            "--out",
            str(file),
            "--json",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    credentials = Credentials.read(file)
    credentials.check_date()
    assert json.loads(done.stdout)["broker"] == credentials.broker == service.url
    link = MqttTransport(Broker.from_credentials(credentials), "a")
    link.connect(Topics("fleet").for_device("a"))
    service.serve(stop=lambda: link.poll(0.1) is not None)
    link.close()
    service.close()
    secrets = [credentials.message_key.hex(), (security / "fleet.key").read_text().strip()]
    secrets += [line for key in (*security.glob("*.key"), file) for line in _key_lines(key.read_text())]
    assert len(secrets) > 10
    public = [done.stdout, done.stderr, caplog.text, repr(credentials), repr(credentials.seal), "\n".join(said)]
    public += [repr(Broker.from_credentials(credentials))]
    places = [p for p in (tmp_path / "run").rglob("*") if p.is_file() and security not in p.parents]
    public += [path.read_bytes().decode("latin-1") for path in places]
    for secret in secrets:
        assert not any(secret in text for text in public)
    for path in (file, *security.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def _key_lines(text: str) -> list[str]:
    """The secret lines of the PEM keys in a text."""
    _, begin, rest = text.partition("-----BEGIN PRIVATE KEY-----\n")
    return [line for line in rest.partition("-----END")[0].split("\n") if line] if begin else []
