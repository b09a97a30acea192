"""`fedmpq build`: programs for a device class, built on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedmpq.cli._common import emit, example, human_bytes, json_option, print_table, progress
from fedmpq.errors import UsageError


@click.command(
    epilog=example(
        "fedmpq build --profile rpi-zero-2w",
        "fedmpq build --profile rpi-4 --what wheel --out dist",
        "fedmpq build --profile stm32f746 --what firmware --artifact resnet8.fmpq",
        "fedmpq build --profile stm32f746 --what gateway --records 64",
    )
)
@click.option("--profile", "profile_name", required=True, help="Device class, a name or a TOML file.")
@click.option(
    "--what",
    type=click.Choice(["edge", "wheel", "firmware", "gateway"]),
    default="edge",
    help="edge: the static program fedmpq-edge; wheel: the Python package with the core for that processor; "
    "firmware: a bare-metal board's program with an artifact in it; "
    "gateway: firmware of a bare-metal board that trains behind `fedmpq device gateway`.",
)
@click.option(
    "--artifact",
    type=click.Path(path_type=Path),
    help="With --what firmware: the artifact, put into the board's flash.",
)
@click.option(
    "--shard", type=click.Path(path_type=Path), help="With --what gateway: the board's own images, put into its flash."
)
@click.option(
    "--records",
    type=click.IntRange(1, 64),
    help="With --what gateway: records of the largest program it takes.  [default: 12 or 64, by the board's memory]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the result.  [default: build/edge/PROFILE]",
)
@json_option
def command(
    profile_name: str,
    what: str,
    artifact: Path | None,
    shard: Path | None,
    records: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Build programs for a device class on this machine.

    Needs a checkout of fedmpq and the profile's compiler: `fedmpq profiles check NAME` says what is missing.
    """
    from fedmpq.firmware_profiles import load
    from fedmpq.toolchain import edge, gateway, image, wheel

    if shard is not None and what != "gateway":
        raise UsageError("--shard is for --what gateway")
    if records is not None and what != "gateway":
        raise UsageError("--records is for --what gateway")
    if (artifact is not None) != (what == "firmware"):
        raise UsageError("--artifact is for --what firmware, which needs one")
    profile = load(profile_name)
    folder = out or Path("build") / what / profile.name
    if what == "wheel":
        built = wheel.build(profile, folder)
    elif artifact is not None:
        with progress(f"compiling for {profile.name}", image.file_count(profile)) as advance:
            built = image.build(profile, artifact, folder, advance)
    elif what == "gateway":
        with progress(f"compiling for {profile.name}", gateway.file_count(profile)) as advance:
            built = gateway.build(profile, folder, advance, shard=shard, records=records or 0)
    else:
        with progress(f"compiling for {profile.name}", edge.file_count(profile)) as advance:
            built = edge.build(profile, folder, advance)
    emulated = [profile.emulator.command, *profile.emulator.options] if profile.emulator.command else []
    if what == "gateway":
        emulated += gateway.line("tcp:127.0.0.1:5000")
    if what == "firmware":
        emulated += ["-nographic", "-semihosting-config", "enable=on,target=native", "-kernel"]
    result = {
        "profile": profile.name,
        "what": what,
        "file": str(built),
        "bytes": built.stat().st_size,
        "run": [*emulated, str(built)],
    }
    emit(result, as_json, _print)


def _print(result: dict[str, Any]) -> None:
    rows = [["file", result["file"]], ["size", human_bytes(result["bytes"])]]
    if result["what"] != "wheel":
        rows.append(["run here", " ".join(result["run"]) + (" selftest" if result["what"] == "edge" else "")])
    print_table(["", ""], rows, f"{result['what']} for {result['profile']}")
