"""Strict schemas for JSON messages: every field has one check, and what no check allows is refused.

A message is a frozen dataclass whose fields are annotated with their check, for example
``round: Annotated[int, Int(0, U32)]``. `load_object` turns parsed JSON into the dataclass and `dump_object` does the
reverse; both run the same checks, so a peer cannot send what we would not, nor we what a peer would refuse.
Floating point never travels: scales and rates are integer pairs (docs/arithmetic.md, section 1).
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin, get_type_hints

from fedmpq.errors import ProtocolError

U16: Final = 2**16 - 1
U32: Final = 2**32 - 1
U53: Final = 2**53 - 1  # the largest integer every JSON reader keeps exactly

T = TypeVar("T")


def refuse(where: str, problem: str) -> ProtocolError:
    """The error for a value at the path `where` (dots and indices from the message's type on)."""
    return ProtocolError(f"{where}: {problem}")


class Check:
    """What a field may hold. `load` takes a JSON value, `dump` gives one; both raise `ProtocolError`."""

    def load(self, value: object, where: str) -> Any:
        """The Python value of a JSON value."""
        raise NotImplementedError

    def dump(self, value: Any, where: str) -> object:
        """The JSON value of a Python value."""
        return self.load(value, where)


@dataclasses.dataclass(frozen=True)
class Int(Check):
    """An integer in lo..hi (a JSON true is not an integer)."""

    lo: int
    hi: int

    def load(self, value: object, where: str) -> int:
        """Refuses other types and values out of range."""
        if type(value) is not int:
            raise refuse(where, f"expected an integer, found {_kind(value)}")
        if not self.lo <= value <= self.hi:
            raise refuse(where, f"{value} is outside {self.lo}..{self.hi}")
        return value


class Bool(Check):
    """true or false."""

    def load(self, value: object, where: str) -> bool:
        """Refuses 0 and 1."""
        if type(value) is not bool:
            raise refuse(where, f"expected true or false, found {_kind(value)}")
        return value


@dataclasses.dataclass(frozen=True)
class Str(Check):
    """A string matching a pattern from end to end."""

    pattern: str
    what: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "_matches", re.compile(self.pattern).fullmatch)

    def load(self, value: object, where: str) -> str:
        """Refuses other types and strings that do not match."""
        if type(value) is not str:
            raise refuse(where, f"expected a string, found {_kind(value)}")
        if self._matches(value) is None:  # type: ignore[attr-defined]
            raise refuse(where, f"{value[:80]!r} is not {self.what}")
        return value


@dataclasses.dataclass(frozen=True)
class Choice(Check):
    """One of a few strings or integers."""

    options: tuple[str | int, ...]

    def load(self, value: object, where: str) -> str | int:
        """Refuses what is not listed; types are compared too (1 is not true)."""
        for option in self.options:
            if type(value) is type(option) and value == option:
                return option
        raise refuse(where, f"{str(value)[:80]!r} is none of {', '.join(map(str, self.options))}")


@dataclasses.dataclass(frozen=True)
class Opt(Check):
    """null, or what another check allows."""

    inner: Check

    def load(self, value: object, where: str) -> Any:
        """Lets None through."""
        return None if value is None else self.inner.load(value, where)

    def dump(self, value: Any, where: str) -> object:
        """Lets None through."""
        return None if value is None else self.inner.dump(value, where)


@dataclasses.dataclass(frozen=True)
class List(Check):
    """A list of lo..hi items; a tuple in Python."""

    inner: Check
    lo: int
    hi: int

    def _size(self, value: object, where: str) -> None:
        if not isinstance(value, list | tuple):
            raise refuse(where, f"expected a list, found {_kind(value)}")
        if not self.lo <= len(value) <= self.hi:
            raise refuse(where, f"{len(value)} items, allowed are {self.lo}..{self.hi}")

    def load(self, value: Any, where: str) -> tuple[Any, ...]:
        """Checks the length before any item."""
        self._size(value, where)
        return tuple(self.inner.load(item, f"{where}[{i}]") for i, item in enumerate(value))

    def dump(self, value: Any, where: str) -> object:
        """Checks the length before any item."""
        self._size(value, where)
        return [self.inner.dump(item, f"{where}[{i}]") for i, item in enumerate(value)]


@dataclasses.dataclass(frozen=True)
class Nested(Check):
    """An object of another schema."""

    cls: type[Any]

    def load(self, value: object, where: str) -> Any:
        """Checks every field of the object."""
        return load_object(self.cls, value, where)

    def dump(self, value: Any, where: str) -> object:
        """Checks every field of the object."""
        if type(value) is not self.cls:
            raise refuse(where, f"expected {self.cls.__name__}, found {_kind(value)}")
        return dump_object(value, where)


@dataclasses.dataclass(frozen=True)
class OneOf(Check):
    """An object of one of several schemas, told apart by their keys."""

    classes: tuple[type[Any], ...]

    def load(self, value: object, where: str) -> Any:
        """An object whose keys are nobody's is judged by the first schema, whose errors name the key."""
        keys = set(value) if isinstance(value, dict) else set()
        cls = next((cls for cls in self.classes if keys == set(checks_of(cls))), self.classes[0])
        return load_object(cls, value, where)

    def dump(self, value: Any, where: str) -> object:
        """Checks every field of the object."""
        if type(value) not in self.classes:
            names = " or ".join(cls.__name__ for cls in self.classes)
            raise refuse(where, f"expected {names}, found {_kind(value)}")
        return dump_object(value, where)


class Fx(Check):
    """A small float (m, e) of docs/arithmetic.md section 1: m = 0 or 2^30 <= m < 2^31."""

    def load(self, value: object, where: str) -> tuple[int, int]:
        """Refuses a mantissa that is not normalised and an exponent beyond ±512."""
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise refuse(where, "expected [mantissa, exponent]")
        m, e = value
        if type(m) is not int or type(e) is not int:
            raise refuse(where, "expected two integers [mantissa, exponent]")
        if not (m == 0 or 2**30 <= m < 2**31) or not -512 <= e <= 512:
            raise refuse(where, f"[{m}, {e}] is not a normalised scale (m = 0 or 2^30 <= m < 2^31, |e| <= 512)")
        return m, e

    def dump(self, value: Any, where: str) -> object:
        """As a list of two."""
        return list(self.load(value, where))


_CHECKS: dict[type[Any], dict[str, Check]] = {}


def checks_of(cls: type[Any]) -> dict[str, Check]:
    """The check of each field of an annotated dataclass, in order."""
    if cls in _CHECKS:
        return _CHECKS[cls]
    hints = get_type_hints(cls, include_extras=True)
    found: dict[str, Check] = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if get_origin(hint) is not Annotated:
            raise TypeError(f"{cls.__name__}.{field.name} has no check")
        found[field.name] = next(arg for arg in get_args(hint)[1:] if isinstance(arg, Check))
    _CHECKS[cls] = found
    return found


def load_object(cls: type[T], value: object, where: str) -> T:
    """A checked instance of `cls` from a JSON object; missing and unknown keys are refused by name."""
    if not isinstance(value, dict):
        raise refuse(where, f"expected an object, found {_kind(value)}")
    checks = checks_of(cls)
    unknown = sorted(str(key)[:40] for key in value if key not in checks)
    missing = [name for name in checks if name not in value]
    if unknown:
        raise refuse(where, f"unknown key {unknown[0]!r}")
    if missing:
        raise refuse(where, f"missing key {missing[0]!r}")
    return cls(**{name: check.load(value[name], f"{where}.{name}") for name, check in checks.items()})


def dump_object(value: Any, where: str) -> dict[str, object]:
    """The JSON object of an instance, checked on the way out."""
    return {name: check.dump(getattr(value, name), f"{where}.{name}") for name, check in checks_of(type(value)).items()}


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """One JSON object from canonical bytes (`dump_json`).

    Refuses duplicate keys, floats, NaN, huge integers, deep nesting, bad UTF-8, and escaped halves of surrogate pairs:
    JSON can write them, but no text that holds one can be encoded again, for a database or a log.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise refuse(where, "the same key twice in one object")
        return found

    def no_float(text: str) -> Any:
        raise refuse(where, f"{text[:40]} is not an integer; numbers travel as integers")

    def integer(text: str) -> int:
        if len(text) > 20:
            raise refuse(where, "an integer of more than 20 digits")
        return int(text)

    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_float=no_float,
            parse_constant=no_float,
            parse_int=integer,
        )
        if not isinstance(found, dict):
            raise refuse(where, f"expected an object, found {_kind(found)}")
        if dump_json(found) != data:
            raise refuse(where, "not canonical JSON (keys sorted, no spaces)")
    except UnicodeEncodeError:
        raise refuse(where, "a text that is not Unicode") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise refuse(where, f"not JSON: {reason}") from None
    return found


def dump_json(value: dict[str, object]) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8. Equal objects give equal bytes (and hashes)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
