"""`fedmpq profiles`: the device classes that programs are planned and built for."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from fedmpq.cli._common import emit, example, human_bytes, json_option, print_table


@click.group(epilog=example("fedmpq profiles list", "fedmpq profiles show stm32f746"))
def command() -> None:
    """List, show and check device profiles."""


@command.command("list", epilog=example("fedmpq profiles list"))
@json_option
def list_(as_json: bool) -> None:
    """List the profiles that come with fedmpq."""
    from fedmpq.firmware_profiles import load, names

    emit({"profiles": [_document(load(name)) for name in names()]}, as_json, _print_list)


@command.command("show", epilog=example("fedmpq profiles show rpi-5", "fedmpq profiles show ./my-board.toml --json"))
@click.argument("profile")
@json_option
def show(profile: str, as_json: bool) -> None:
    """Show every value of a profile.

    PROFILE is a name from `fedmpq profiles list` or a path to a TOML file.
    """
    from fedmpq.firmware_profiles import load

    emit(_document(load(profile)), as_json, _print_profile)


@command.command("check", epilog=example("fedmpq profiles check my-board.toml"))
@click.argument("profiles", nargs=-1, required=True)
@json_option
def check(profiles: tuple[str, ...], as_json: bool) -> None:
    """Check profiles and whether this machine has what builds and emulates them.

    PROFILES are names or paths to TOML files; copy one of fedmpq's to start your own. A wrong or missing key is an
    error that names it; a compiler or emulator that is not installed is only reported.
    """
    from fedmpq.firmware_profiles import load
    from fedmpq.toolchain import tools

    rows = []
    for name in profiles:
        profile = load(name)
        missing = tools.missing(profile)
        rows.append({"profile": profile.name, "valid": True, "missing": missing})
    emit({"checked": rows}, as_json, _print_checked)


def _document(profile: Any) -> dict[str, Any]:
    document = asdict(profile)
    document["training"] = document.pop("training_defaults")
    document["available"] = profile.available
    return document


def _print_list(result: dict[str, Any]) -> None:
    columns = ["profile", "device", "kernels", "RAM", "training"]
    rows = [
        [p["name"], p["description"], p["cpu"]["kernels"], *(human_bytes(p["memory"][k]) for k in ("ram", "training"))]
        for p in result["profiles"]
    ]
    print_table(columns, rows)


def _print_profile(profile: dict[str, Any]) -> None:
    rows = [["description", profile["description"]], ["kind", profile["kind"]]]
    for table, values in profile.items():
        if isinstance(values, dict):
            rows += [[f"{table}.{key}", _value(table, key, value)] for key, value in values.items()]
    rows.append(["available to us", human_bytes(profile["available"])])
    print_table(["key", "value"], rows, profile["name"])


def _value(table: str, key: str, value: Any) -> str:
    if table == "memory" or key in {"l1d", "l2", "stack"}:
        return human_bytes(value)
    if table == "board" and key != "clock":
        return f"{value:#010x}"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _print_checked(result: dict[str, Any]) -> None:
    rows = [[row["profile"], "valid", ", ".join(row["missing"]) or "nothing"] for row in result["checked"]]
    print_table(["profile", "file", "not installed here"], rows)
