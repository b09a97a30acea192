"""Results of a preset as a Markdown table beside the paper's numbers, with what was sent and what memory it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def markdown(title: str, command: str, results: Sequence[dict[str, Any]]) -> str:
    """The page of a preset.

    Args:
        title: of the table.
        command: that makes it.
        results: one entry a finished cell: row, column, printed, seed, final_accuracy, bytes, memory (`play.play`).
    """
    rows = list(dict.fromkeys(result["row"] for result in results))
    columns = list(dict.fromkeys(result["column"] for result in results))
    lines = [f"# {title}", "", f"    {command}", "", *_notes(results), "", *accuracies(results, rows, columns), ""]
    return "\n".join([*lines, *costs(results, rows)]) + "\n"


def of_runs(result: dict[str, Any]) -> str:
    """The page of several strategies on one setting."""
    setting = result["setting"]
    rows = [{**run, "row": run["strategy"], "trainings": trainings(run["rounds"])} for run in result["runs"]]
    spread = "evenly" if setting["alpha"] is None else f"by Dirichlet(α = {setting['alpha']:g})"
    how = (
        f"Images dealt out {spread}, {setting['rounds']} rounds of {setting['epochs']} local epochs, batch "
        f"{setting['batch']}, seed {setting['seed']}; accuracy in percent on the {result['judged_on']} images."
    )
    lines = [
        f"# {result['data']}, {result['model']}, {result['clients']} clients",
        "",
        how,
        "",
        "| | last round | best round |",
        "|---|---:|---:|",
        *(
            f"| {run['strategy']} | {run['final_accuracy']:.2f} | "
            f"{max(row['accuracy'] for row in run['rounds'] if row['accuracy'] is not None):.2f} |"
            for run in result["runs"]
        ),
        "",
        *costs(rows, [row["row"] for row in rows]),
    ]
    return "\n".join(lines) + "\n"


def accuracies(results: Sequence[dict[str, Any]], rows: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Ours, and in brackets the paper's; several seeds as mean ± half of their spread."""
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for row in rows:
        cells = []
        for column in columns:
            found = [result for result in results if (result["row"], result["column"]) == (row, column)]
            cells.append(_accuracy(found))
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines


def costs(results: Sequence[dict[str, Any]], rows: Sequence[str]) -> list[str]:
    """What a client sends and receives in a round and the training memory of the smallest and largest device."""
    lines = [
        "| | sent a round and client, bytes | received | training memory, least | most |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        found = next(result for result in results if result["row"] == row)
        count = max(1, found["trainings"])
        numbers = (
            found["bytes_up"] // count,
            found["bytes_down"] // count,
            found["least_device_bytes"],
            found["device_bytes"],
        )
        lines.append(f"| {row} | " + " | ".join(f"{number:,}" for number in numbers) + " |")
    return lines


def trainings(rounds: Sequence[dict[str, Any]]) -> int:
    """How often a client was given something to train: `per_round` asks only some of them."""
    return sum(device.get("state") != "refused" for row in rounds for device in row["devices"])


def _accuracy(found: Sequence[dict[str, Any]]) -> str:
    if not found:
        return "–"
    values = [result["final_accuracy"] for result in found]
    text = f"{sum(values) / len(values):.2f}"
    if len(values) > 1:
        text += f" ± {(max(values) - min(values)) / 2:.2f}"
    printed = found[0]["printed"]
    return text if printed is None else f"{text} ({printed:g})"


def _notes(results: Sequence[dict[str, Any]]) -> list[str]:
    seeds = sorted({result["seed"] for result in results})
    judged = " and ".join(sorted({result["judged_on"] for result in results}))
    accuracy = f"Accuracy in percent of the last global model on the {judged} images; in brackets the paper's."
    return [f"{accuracy} Seeds: {', '.join(map(str, seeds))}."]
