"""What `fedmpq coordinator status`, `devices`, `profile` and `verify` print where nobody asked for JSON."""

from __future__ import annotations

from typing import Any

import click

from fedmpq.cli._common import human_bytes, print_table


def print_status(result: dict[str, Any]) -> None:
    """Where the run stands, and its rounds."""
    counts = result["devices"]
    print_table(
        ["run", "strategy", "round", "phase", "accuracy %", "devices", "online", "admitted", "refused"],
        [
            [
                result["run"],
                result["strategy"],
                f"{result['round']} of {result['rounds_planned']}",
                result["phase"],
                result["last_accuracy"],
                counts["known"],
                counts["online"],
                counts["admitted"],
                counts["refused"],
            ]
        ],
    )
    if result["failure"]:
        click.echo(f"failed: {result['failure']}")
    if result["waiting_for"]:
        click.echo(f"waiting for {result['waiting_for']}")
    for row in result["refused"]:
        click.echo(f"refused {row['device']}: {row['reason']}: {row['detail']}")
    print_table(
        ["round", "accuracy %", "loss", "updates", "bytes up", "bytes down", "seconds", "not counted"],
        [
            [
                row["round"],
                row["accuracy"],
                row["loss"],
                f"{row['accepted']} of {row['selected']}",
                row["bytes_up"],
                row["bytes_down"],
                row["seconds"],
                ", ".join(
                    f"{d['device']}: {d['state']} ({d['reason']})" for d in row["devices"] if d["reason"] is not None
                ),
            ]
            for row in result["rounds"]
        ],
    )


def print_verified(result: dict[str, Any]) -> None:
    """What `verify` has checked and found."""
    click.echo(", ".join(f"{count} {what}" for what, count in result["checked"].items()) + " checked")
    for problem in result["problems"]:
        click.echo(f"problem: {problem}")


def print_devices(result: dict[str, Any]) -> None:
    """A row a device: bits, memory, bytes, last round."""
    from fedmpq.coordinator.status import why

    names = ["device", "state", "samples", "budget", "running", "target", "planned", "measured", "limit", "left"]
    print_table(
        [*names, "last round", "up", "down", "why"],
        [
            [
                row["device"],
                ("online" if row["online"] else "offline") + f", {row['admission']}",
                row["samples"],
                row["budget_bits"],
                "".join(map(str, row["running_bits"])) if row["running_bits"] else None,
                "".join(map(str, row["bits"])) if row["bits"] else None,
                row["planned_bytes"],
                row["measured_bytes"],
                row["limit_bytes"],
                row["headroom_bytes"],
                f"{row['last_round']} {row['last_state']}" if row["last_round"] else None,
                row["last_bytes_up"],
                row["last_bytes_down"],
                why(row),
            ]
            for row in result["devices"]
        ],
    )


def print_profiles(result: dict[str, Any]) -> None:
    """What every device has measured, and what became of it."""
    for row in result["devices"]:
        if row["budget_bits"]:
            verdict = f"budget {row['budget_bits']} bits ({row['planned_bytes']:,} bytes)"
        elif row["admission"] == "admitted":
            verdict = f"full precision, a step takes {row['planned_bytes']:,} bytes (measured)"
        else:
            verdict = f"refused, {row['reason']}: {row['detail']}"
        click.echo(
            f"{row['device']}: {row['machine']}, {row['isa']}, {row['samples']} samples, "
            f"RAM {human_bytes(row['ram_bytes'])}, arena limit {row['limit_bytes']:,} bytes ({row['limit_source']})"
        )
        click.echo(f"  → {verdict}")
        if row["plans"]:
            print_table(
                ["bits", "planned", "measured", "fits"],
                [[p["bits"], p["planned_bytes"], p["measured_bytes"], p["fits"]] for p in row["plans"]],
            )
