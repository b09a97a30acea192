"""The demo's picture: accuracy by round, and what memory and traffic each device spent for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a PNG of a demo's result (the JSON document)."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    runs = [("FedMPQ", result["rounds"], "tab:blue")]
    if result["aqfl"] is not None:
        runs.append(("AQFL", result["aqfl"]["rounds"], "tab:orange"))
    for name, rounds, colour in runs:
        left.plot([r["round"] for r in rounds], [r["accuracy"] for r in rounds], marker="o", color=colour, label=name)
    left.set(xlabel="round", ylabel="test accuracy, %", title=f"{result['data']}, Dirichlet α = {result['alpha']}")
    left.grid(alpha=0.3)
    left.legend()

    last = result["rounds"][-1]["devices"]
    places = range(len(last))
    names = [f"{d['device']}\n{d['bits']:.2f} bits" for d in last]
    middle.bar(places, [d["limit_bytes"] / 1024 for d in last], color="lightgrey", label="memory limit")
    middle.bar(places, [(d["measured_bytes"] or 0) / 1024 for d in last], width=0.5, color="tab:blue", label="measured")
    low = min(d["measured_bytes"] or d["limit_bytes"] for d in last) / 1024
    middle.set(
        xticks=list(places), xticklabels=names, ylabel="KiB (axis cut)", title="training arena", ylim=(0.9 * low, None)
    )
    middle.legend(loc="upper left")

    width = 0.4
    for shift, (name, rounds, colour) in zip((-width / 2, width / 2), runs, strict=False):
        totals = [sum(r["devices"][i]["bytes_up"] for r in rounds) / 1024 for i in places]
        right.bar([p + shift for p in places], totals, width=width, color=colour, label=name)
    right.set(
        xticks=list(places), xticklabels=[d["device"] for d in last], ylabel="KiB", title="uploaded in all rounds"
    )
    right.legend(loc="upper left")
    figure.savefig(path, dpi=120)
    plt.close(figure)
