"""The transport over an MQTT broker: paho-mqtt, MQTT 5, with 3.1.1 for brokers that know no better.

Sessions are persistent (clean start off, one day of expiry) under a stable client id, so QoS 1 messages wait for a
device that reboots. The network runs in paho's thread, which only fills a bounded queue.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fedmpq.edge_runtime.protocol import MAX_MESSAGE
from fedmpq.edge_runtime.transport import Connected, Disconnected, Event, Incoming, Traffic, Will, check_size
from fedmpq.errors import NetworkError, UsageError

if TYPE_CHECKING:
    from fedmpq.edge_runtime.credentials import Credentials

SESSION_EXPIRY_S: Final = 24 * 3600
KEEPALIVE_S: Final = 30
#: Bytes of topic, properties and fixed header that a packet adds to its payload, generously.
PACKET_OVERHEAD: Final = 512
_TAKEN_OVER: Final = 0x8E
_BAD_CREDENTIALS: Final = (0x86, 0x87, 0x8A, 0x8C)


#: What a broker's TLS alerts mean for the one whose certificate it judged.
_ALERTS: Final = {
    "alert certificate expired": ("it has ended", "run `fedmpq coordinator enroll` again"),
    "alert certificate revoked": ("it was taken back", "ask for new credentials"),
    "alert unknown ca": ("it is of another fleet's authority", "are these the credentials of this fleet?"),
    "alert certificate required": ("there is none", "--credentials FILE of `fedmpq coordinator enroll`"),
}


@dataclass(frozen=True, slots=True)
class Broker:
    """Where a broker is and how to log in. `version` is 5, 4 (MQTT 3.1.1), or 0 for 5 with 4 as the fallback.

    `server_name` is the name its certificate must carry if it is not `host`. `identity` is what enrolment gave: it
    stands for the three files.
    """

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    version: int = 0
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""
    identity: Credentials | None = field(default=None, repr=False)

    @classmethod
    def from_credentials(cls, credentials: Credentials, url: str = "") -> Broker:
        """The broker that credentials name, or another one under `url`, with their certificate."""
        broker = cls.from_url(url or credentials.broker)
        if not broker.tls:
            raise UsageError(f"broker {broker} is in plain text, credentials are for TLS", "mqtts://HOST:8883")
        return replace(broker, server_name=credentials.server_name, identity=credentials)

    @classmethod
    def from_url(
        cls, url: str, *, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
    ) -> Broker:
        """Parse ``mqtt[s]://[user[:password]@]host[:port][?version=5|3.1.1]``.

        The password may also come from ``FEDMPQ_MQTT_PASSWORD``. Raises `UsageError` for anything else.
        """
        hint = "mqtt://host:port or mqtts://user@host"
        shown = url.rpartition("@")[2]  # never the password, wherever a slip in the URL puts it
        try:
            parts = urlsplit(url if "://" in url else f"mqtt://{url}")
        except ValueError:  # such as mqtt://[::1
            raise UsageError(f"broker {shown!r} is not understood", hint) from None
        try:
            port = parts.port
        except ValueError:
            raise UsageError(f"broker {shown!r} has no usable port", hint) from None
        versions = {"5": 5, "3.1.1": 4, "": 0}
        asked = parse_qs(parts.query).get("version", [""])[0]
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or asked not in versions:
            raise UsageError(f"broker {shown!r} is not understood", hint)
        tls = parts.scheme == "mqtts"
        return cls(
            host=parts.hostname,
            port=port or (8883 if tls else 1883),
            tls=tls,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else os.environ.get("FEDMPQ_MQTT_PASSWORD"),
            version=versions[asked],
            ca=ca,
            certificate=certificate,
            key=key,
        )

    def __str__(self) -> str:
        """The address without credentials, for messages."""
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


class MqttTransport:
    """One client of an MQTT broker; see `transport.Transport`.

    Args:
        broker: address and credentials.
        client_id: stable over restarts; two clients of one id push each other out (reported as a final disconnect).
        inbox: events that may wait for `poll` before the network thread stops reading the socket.
        receive_maximum: unacknowledged messages the broker may have under way to us.
    """

    def __init__(self, broker: Broker, client_id: str, *, inbox: int = 4096, receive_maximum: int = 16) -> None:
        self.broker = broker
        self.client_id = client_id
        self.traffic = Traffic()
        self._receive_maximum = receive_maximum
        self._events: queue.Queue[Event] = queue.Queue(maxsize=inbox)
        self._limit = MAX_MESSAGE
        self._client: paho.Client | None = None
        self._published = self._confirmed = 0
        self._patterns: list[str] = []
        self._first = threading.Event()
        self._refused = ""
        self._refused_code = 0
        self._closing = False

    def connect(self, subscriptions: Iterable[str], will: Will | None = None, timeout_s: float = 10.0) -> None:
        """Connect, subscribe, and keep reconnecting from then on (1 to 30 s apart) until closed."""
        self._patterns = list(subscriptions)
        versions = {0: (5, 4), 5: (5,), 4: (4,)}[self.broker.version]
        for version in versions:
            self._start(version, will, timeout_s)
            # A broker that does not know MQTT 5 may just stay silent: leave time for the older version.
            patience = min(timeout_s, 3.0) if version != versions[-1] else timeout_s
            if not self._first.wait(patience):
                self._refused = self._refused or f"no answer to CONNECT within {patience:g} s"
            if not self._refused:
                return
            self._stop()
            if self._refused_code in _BAD_CREDENTIALS:
                break
            if self.broker.tls:
                _probe_tls(self.broker)
        raise NetworkError(
            f"broker {self.broker} refuses the connection: {self._refused}",
            "check user name and password" if self._refused_code in _BAD_CREDENTIALS else "is it an MQTT broker?",
        )

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> bool:
        """Queue a QoS 1 message; False while offline."""
        check_size(topic, payload, self._limit)
        client = self._client
        if client is None or not client.is_connected():
            return False
        properties = None
        if expiry_s is not None and client.protocol == paho.MQTTv5:
            properties = _properties(PacketTypes.PUBLISH, MessageExpiryInterval=max(1, expiry_s))
        info = client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            return False
        self._published += 1
        self.traffic.sent += 1
        self.traffic.sent_bytes += len(payload)
        return True

    def backlog(self) -> int:
        """What the broker has not confirmed (a new session forgets what an old one owed)."""
        return max(0, self._published - self._confirmed)

    def poll(self, timeout_s: float) -> Event | None:
        """The next event from the network thread."""
        try:
            event = self._events.get(timeout=timeout_s) if timeout_s > 0 else self._events.get_nowait()
        except queue.Empty:
            return None
        if isinstance(event, Incoming):
            self.traffic.received += 1
            self.traffic.received_bytes += len(event.payload)
        return event

    def close(self, *, graceful: bool = True) -> None:
        """Say goodbye (no will), or drop the socket so that the broker publishes the will."""
        client = self._client
        self._closing = True
        if client is None:
            return
        if not graceful:
            sock = client.socket()
            if sock is not None:
                sock.close()
        self._stop()

    # --- inside -------------------------------------------------------------------------------------------------

    def _start(self, version: int, will: Will | None, timeout_s: float) -> None:
        self._first.clear()
        self._refused, self._refused_code = "", 0
        v5 = version == 5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self.client_id,
            protocol=paho.MQTTv5 if v5 else paho.MQTTv311,
            clean_session=None if v5 else False,
        )
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.connect_timeout = timeout_s
        client.max_inflight_messages_set(20)
        client.max_queued_messages_set(2000)
        client.reconnect_delay_set(1, 30)
        if self.broker.username is not None:
            client.username_pw_set(self.broker.username, self.broker.password)
        if self.broker.tls:
            self._use_tls(client)
        if will is not None:
            delay = _properties(PacketTypes.WILLMESSAGE, WillDelayInterval=will.delay_s) if v5 else None
            client.will_set(will.topic, will.payload, qos=1, retain=True, properties=delay)
        settings: dict[str, Any] = {}
        if v5:
            settings["clean_start"] = False
            settings["properties"] = _properties(
                PacketTypes.CONNECT,
                SessionExpiryInterval=SESSION_EXPIRY_S,
                ReceiveMaximum=self._receive_maximum,
                MaximumPacketSize=MAX_MESSAGE + PACKET_OVERHEAD,
            )
        self._client = client
        try:
            client.connect(self.broker.host, self.broker.port, keepalive=KEEPALIVE_S, **settings)
        except ssl.SSLError as error:
            self._client = None
            raise NetworkError(*_tls_problem(self.broker, error)) from None
        except OSError as error:
            self._client = None
            if self.broker.tls and isinstance(error, ConnectionResetError | TimeoutError):
                raise NetworkError(
                    f"broker {self.broker} does not answer in TLS: {error.strerror or error}", "is its port for mqtts?"
                ) from None
            reason = error.strerror or str(error) or type(error).__name__
            raise NetworkError(f"broker {self.broker} is unreachable: {reason}", "is it running?") from None
        client.loop_start()

    def _use_tls(self, client: paho.Client) -> None:
        try:
            client.tls_set_context(_context(self.broker))
        except (OSError, ValueError) as error:
            raise NetworkError(
                f"TLS for broker {self.broker}: {error}", "check the CA, certificate and key files"
            ) from None

    def _stop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            # paho forgets its thread when that ends, even between two looks of loop_stop: then there is none to join.
            with contextlib.suppress(AttributeError):
                client.loop_stop()

    def _on_connect(self, client: paho.Client, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        del userdata, flags
        if reason.is_failure:
            self._refused, self._refused_code = str(reason), reason.value
            if self._first.is_set():
                self._events.put(Disconnected(str(reason), final=reason.value in _BAD_CREDENTIALS))
            self._first.set()
            return
        broker_limit = getattr(properties, "MaximumPacketSize", None)
        self._limit = min(MAX_MESSAGE, broker_limit - PACKET_OVERHEAD) if broker_limit else MAX_MESSAGE
        if self._patterns:
            client.subscribe([(pattern, 1) for pattern in self._patterns])
        self._events.put(Connected())
        self._first.set()

    def _on_disconnect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        del userdata, flags, properties
        if self._closing:
            return
        if not self._first.is_set():
            said_nothing = reason.value == 0 or reason.getName() == "Unspecified error"
            self._refused = "no answer to CONNECT" if said_nothing else str(reason)
            self._refused_code = reason.value
            self._first.set()
            return
        taken_over = reason.value == _TAKEN_OVER
        if taken_over:
            client.disconnect()  # ends paho's reconnecting: two clients of one id would take turns for ever
        text = "another client uses this client id" if taken_over else str(reason)
        self._events.put(Disconnected(text, final=taken_over))

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        del client, userdata, mid, reason, properties
        self._confirmed += 1

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        del client, userdata
        event = Incoming(message.topic, bytes(message.payload), message.retain)
        while not self._closing:
            try:
                self._events.put(event, timeout=1.0)
            except queue.Full:
                continue
            return


class _NamedContext(ssl.SSLContext):
    """Checks the peer's certificate against a fixed name instead of the address it was reached under."""

    name: str | None = None

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """As in the base class, but for the name."""
        if self.name:
            options["server_hostname"] = self.name
        return super().wrap_socket(*args, **options)


def _context(broker: Broker) -> ssl.SSLContext:
    """TLS 1.2 or newer, the peer always verified; OSError or ValueError for files that cannot be used."""
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.name = broker.server_name or None
    identity = broker.identity
    if identity is not None and identity.ca:
        context.load_verify_locations(cadata=identity.ca)
    elif broker.ca is not None:
        context.load_verify_locations(broker.ca)
    else:
        context.load_default_certs()
    if identity is not None:
        # The ssl module reads chains from files only; this one is the owner's alone and gone at once.
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as chain:
            chain.write(identity.certificate + identity.key)
            chain.flush()
            context.load_cert_chain(chain.name)
    elif broker.certificate is not None:
        context.load_cert_chain(broker.certificate, broker.key)
    return context


def _probe_tls(broker: Broker) -> None:
    """Raises `NetworkError` with the broker's reason if it takes no client certificate of ours.

    Under TLS 1.3 that comes after the handshake, where the MQTT client sees a lost link only.
    """
    try:
        with (
            socket.create_connection((broker.host, broker.port), timeout=3.0) as link,
            _context(broker).wrap_socket(link, server_hostname=broker.host) as secure,
        ):
            secure.settimeout(1.0)
            secure.recv(1)
    except ssl.SSLError as error:
        raise NetworkError(*_tls_problem(broker, error)) from None
    except OSError:
        return


def _tls_problem(broker: Broker, error: ssl.SSLError) -> tuple[str, str]:
    """What went wrong in a handshake, and the way out."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of broker {broker} is not trusted: {error.verify_message}",
            "are these the credentials of this fleet? Is the clock right?",
        )
    reason = (error.reason or str(error)).replace("_", " ").lower()
    for code, (what, hint) in _ALERTS.items():
        if code in reason:
            return f"broker {broker} refuses this client's certificate: {what}", hint
    if "wrong version number" in reason or "unexpected eof" in reason or "record layer" in reason:
        return f"broker {broker} does not speak TLS ({reason})", "is its port for mqtts?"
    return f"broker {broker} refuses TLS: {reason}", "check the device's credentials"


def _properties(packet: int, **values: int) -> Properties:
    """MQTT 5 properties of a packet type."""
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties
