"""Every message survives a round trip, and nothing malformed gets through with another error than ProtocolError."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpq.coordinator.config import RunConfig
from fedmpq.edge_runtime import protocol, topics
from fedmpq.errors import ConfigError, ProtocolError, UsageError
from tests.helpers import messages

EACH = messages.one_of_each()


def kind(key: str) -> str:
    return key.partition("#")[0]


def canonical(fields: dict[str, object]) -> bytes:
    """As `schema.dump_json` for ASCII, but of anything: what is not ASCII is escaped."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("key", EACH)
def test_round_trip(key: str) -> None:
    data = protocol.encode(EACH[key])
    assert protocol.decode(kind(key), data) == EACH[key]


@pytest.mark.parametrize("key", EACH)
def test_a_message_on_another_topic_is_refused(key: str) -> None:
    data = protocol.encode(EACH[key])
    for other, allowed in protocol.ALLOWED.items():
        if type(EACH[key]) not in allowed:
            with pytest.raises(ProtocolError, match="does not belong here"):
                protocol.decode(other, data)


@pytest.mark.parametrize("key", EACH)
def test_missing_and_unknown_keys_are_named(key: str) -> None:
    fields = json.loads(protocol.encode(EACH[key]))
    for name in fields:
        less = {k: v for k, v in fields.items() if k != name}
        with pytest.raises(ProtocolError, match=f"'{name}'|version|type"):
            protocol.decode(kind(key), canonical(less))
    with pytest.raises(ProtocolError, match="unknown key 'extra'"):
        protocol.decode(kind(key), canonical({**fields, "extra": 1}))


@pytest.mark.parametrize("key", EACH)
def test_truncation_at_every_byte_is_refused(key: str) -> None:
    data = protocol.encode(EACH[key])
    for end in range(len(data)):
        with pytest.raises(ProtocolError):
            protocol.decode(kind(key), data[:end])


@pytest.mark.parametrize("key", EACH)
def test_flipped_bits_never_raise_anything_else(key: str) -> None:
    data = protocol.encode(EACH[key])
    rng = random.Random(key)
    for _ in range(500):
        bad = bytearray(data)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        with contextlib.suppress(ProtocolError):
            protocol.decode(kind(key), bytes(bad))


@pytest.mark.parametrize("key", EACH)
@pytest.mark.parametrize(
    "value", [None, True, -1, 2**70, 1.5, "", "x" * 500, [], {}, [[]], float("nan"), "\n", "\ud800"]
)
def test_a_wrong_value_in_any_field_gives_a_protocol_error_or_a_message(key: str, value: object) -> None:
    fields = json.loads(protocol.encode(EACH[key]))
    for name in fields:
        try:
            found = protocol.decode(kind(key), canonical({**fields, name: value}))
        except ProtocolError:
            continue
        protocol.encode(found)  # what is let in can be sent on


@given(st.binary(max_size=300), st.sampled_from(sorted(protocol.ALLOWED)))
@settings(max_examples=300)
def test_arbitrary_bytes(data: bytes, where: str) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode(where, data)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"v":1,"v":1,"type":"round"}', "twice"),
        (b'{"v":1.0,"type":"round"}', "not an integer"),
        (b'{"v":NaN,"type":"round"}', "not an integer"),
        (b'{"type":"round","v":2}', "version 2"),
        (b'{"type":"round","v":true}', "version True"),
        (b'{"v":1,"type":"round"}', "not canonical"),
        (b'{"type": "round","v":1}', "not canonical"),
        (b'{"type":"round","v":1}\n', "not canonical"),
        (b'{"type":"\\u0072ound","v":1}', "not canonical"),
        (b'{"type":"\\ud800","v":1}', "not Unicode"),
        (b'{"\\udfff":0}', "not Unicode"),
        (b"[]", "expected an object"),
        (b"[" * 50000, "not JSON"),
        (b'{"v":' + b"9" * 30 + b"}", "20 digits"),
        (b"\xff\xfe", "not JSON"),
        (b" " * (protocol.MAX_MESSAGE + 1), "at most"),
    ],
)
def test_named_problems(text: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        protocol.decode("round", text)


@pytest.mark.parametrize("key", EACH)
def test_the_same_object_in_another_form_is_refused(key: str) -> None:
    data = protocol.encode(EACH[key])
    fields = json.loads(data)
    assert canonical(fields) == data
    turned = dict(reversed(fields.items()))
    for other in (json.dumps(fields, indent=1), json.dumps(turned, separators=(",", ":")), f" {data.decode()}"):
        with pytest.raises(ProtocolError, match="not canonical JSON"):
            protocol.decode(kind(key), other.encode())


def test_guard_planes_leave_room_for_every_trial() -> None:
    """Devices try all widths up to 8 bits: with more guard planes the core would refuse the last one."""
    most = 15 - protocol.MAX_BITS
    assert protocol.decode("dn/plan", protocol.encode(messages.plan(settings=messages.settings(guard=most))))
    with pytest.raises(ProtocolError, match=r"guard: 8 is outside 0\.\.7"):
        protocol.encode(messages.plan(settings=messages.settings(guard=most + 1)))
    assert RunConfig(guard=most).settings.guard == most
    with pytest.raises(ConfigError, match=r"guard = 8 is outside 0\.\.7"):
        RunConfig(guard=most + 1)


def test_what_no_peer_would_take_cannot_be_sent() -> None:
    plan = messages.plan()
    for changes in (
        {"round": -1},
        {"round": 2**32},
        {"lr": (5, 0)},
        {"lr": (2**31, 0)},
        {"eps_q16": 70000},
        {"run": "Upper"},
        {"lasso": (messages.FX,)},
        {"layers": ()},
        {"layers": (dataclasses.replace(messages.layer(), bits=3),), "lasso": ()},
        {"program": "g" * 64},
    ):
        with pytest.raises(ProtocolError):
            protocol.encode(dataclasses.replace(plan, **changes))


def test_the_largest_plan_and_a_full_request_fit_a_message() -> None:
    layers = (messages.layer(8),) * protocol.MAX_LAYERS
    plan = messages.plan(layers=layers, lasso=(messages.FX,) * protocol.MAX_LAYERS)
    assert len(protocol.encode(plan)) < protocol.MAX_MESSAGE
    wants = tuple(protocol.Want(messages.HASH, "ff") for _ in range(protocol.MAX_WANTS))
    assert len(protocol.encode(protocol.Request("r" * 63, 1, False, wants))) < protocol.MAX_MESSAGE


def test_the_identity_of_a_plan_leaves_its_times_out() -> None:
    plan = messages.plan()
    assert plan.identity == messages.plan(sent_ms=77, deadline_ms=99).identity
    assert plan.identity != messages.plan(seed=8).identity


def test_an_ack_has_a_reason_exactly_when_it_rejects() -> None:
    with pytest.raises(ProtocolError, match="reason"):
        protocol.encode(protocol.Ack("r1", 3, "update", messages.HASH, True, "late", ""))
    with pytest.raises(ProtocolError, match="reason"):
        protocol.encode(protocol.Ack("r1", 3, "update", messages.HASH, False, "", ""))
    assert EACH["dn/ack"].verdict == "rejected:stale-round"  # type: ignore[union-attr]


def test_topics_round_trip_and_refuse() -> None:
    fleet = topics.Topics("lab")
    for name in topics.DEVICE_KINDS:
        assert fleet.parse(fleet.device("pi-1", name)) == topics.Route(name, "pi-1")
    assert fleet.parse(fleet.round) == topics.Route("round", None)
    for bad in ("", "fmpq/v1/other/round", "fmpq/v1/lab/d/pi-1", "fmpq/v1/lab/d//state", "fmpq/v1/lab/d/a/b/state",
                "fmpq/v1/lab/d/PI/state", "fmpq/v1/lab/x/pi/state", "fmpq/v1/lab/d/pi/up/other"):  # fmt: skip
        with pytest.raises(ProtocolError):
            fleet.parse(bad)
    for bad in ("", "a/b", "a+", "#", "A", "x" * 64, "-a", "é"):
        with pytest.raises(UsageError):
            topics.Topics(bad)
        with pytest.raises(UsageError):
            fleet.device(bad, topics.STATE)


@pytest.mark.parametrize(
    ("pattern", "topic", "covers"),
    [("a/+/c", "a/b/c", True), ("a/+/c", "a/b/d", False), ("a/#", "a/b/c", True), ("a/+", "a/b/c", False),
     ("a/b/c", "a/b", False), ("a/b", "a/b", True)],
)  # fmt: skip
def test_subscription_patterns(pattern: str, topic: str, covers: bool) -> None:
    assert topics.matches(pattern, topic) is covers
