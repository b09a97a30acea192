"""Write docs/performance.md from the JSON files that `make bench` leaves in benchmarks/results.

python benchmarks/render_performance.py            # write the page
python benchmarks/render_performance.py --check    # exit 1 if the page is not what the files give
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"

HEAD = """\
# Speed and memory

Written by `python benchmarks/render_performance.py` from the JSON files of `make bench`; do not edit. Every table
stands under the command that measured it. Engines run in processes of their own and take turns in one run; medians
of the turns count, and ratios compare figures of the same run only. 1 KB is 1,024 bytes. For a change of one kernel,
`make bench-kernels` times each layer on each instruction set, one build beside another.
"""


def render(folder: Path = RESULTS) -> str:
    """The whole page, of the files there are."""
    pages = [
        ("bench-b64.json", batch_64),
        ("bench-b1.json", batch_1),
        ("bench-avx512vnni.json", held),
        ("bench-avx2.json", held),
        ("bench-scaling.json", scaling),
        ("bench-memory.json", memory),
        ("bench-memory-resnet8.json", memory),
        ("bench-kernels.json", kernels),
        ("targets.json", targets),
    ]
    parts = [page(json.loads((folder / name).read_text())) for name, page in pages if (folder / name).exists()]
    return "\n".join([HEAD, *parts, LIMITS]).rstrip() + "\n"


def table(head: list[str], rows: list[list[str]], text: int = 1) -> str:
    """A Markdown table; all columns but the first `text` are numbers."""
    marks = ["---"] * text + ["---:"] * (len(head) - text)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, marks, *rows]) + "\n"


def command(words: str) -> str:
    """A command as a code block."""
    return f"    fedmpq bench {words} --json\n"


def conditions(result: dict[str, Any]) -> str:
    """On what, when, and how busy the machine was."""
    machine = result["machine"]
    return (
        f"{machine['processor']}, {machine['cpus']} cores, {machine['date']}; load before and after "
        f"{result['load_before'][0]:g} and {result['load_after'][0]:g}."
    )


def _train(result: dict[str, Any], title: str, words: str, note: str) -> str:
    basis = result["ratio_basis"]
    key = "step_ms" if basis == "wall" else "cpu_ms"
    ours = result["results"][0]
    rows = [
        [
            entry["engine"],
            f"{1e3 * entry['batch'] / entry[key]:,.0f}",
            f"{entry[key]:,.2f}",
            "1" if entry is ours else f"{entry[key] / ours[key]:,.2f}",
            f"{entry['memory_bytes'] / 2**20:,.1f}",
        ]
        for entry in result["results"]
    ]
    share = result["peak_fraction"]
    peak = (
        f"The core reaches **{100 * share:.1f} %** of the int8 peak measured in the same run "
        f"({result['peak_macs_per_s'] / 1e9:.0f} G multiply-accumulates a second and core, "
        f"{result['macs_per_sample'] / 1e6:.1f} M a sample)."
        if share
        else ""
    )
    return "\n".join(
        [
            f"## {title}\n",
            command(words),
            (
                f"ResNet20, 3×32×32, n = {result['bits']:g}, A{result['act_bits']}, {result['threads']} thread, "
                f"kernels {result['isa']}; times are {basis} time. {conditions(result)} {peak}\n"
            ),
            table(["engine", "images/s", "step, ms", "times ours", "process grows by, MB"], rows),
            note,
        ]
    )


def batch_64(result: dict[str, Any]) -> str:
    """The main comparison."""
    return _train(
        result,
        "A step of 64 images",
        "train --model resnet20 --bits 4 --batch 64 --threads 1 --against torch,ort-training,executorch",
        "torch: PyTorch fp32. ort-training: ONNX Runtime training 1.19.2, fp32. executorch: ExecuTorch 1.5.1\n"
        "training, fp32, its batch-norm left out (it cannot train it), kernels as its wheel ships them.\n",
    )


def batch_1(result: dict[str, Any]) -> str:
    """One image a step."""
    return _train(
        result, "A step of one image", "train --model resnet20 --bits 4 --batch 1 --threads 1 --against torch", ""
    )


#: Instruction set that a run was held to -> heading and remark.
HELD = {
    "avx512vnni": (
        "Without the matrix unit",
        "The core on AVX512-VNNI alone, against the peak of that; PyTorch's fp32 never uses the matrix unit.\n",
    ),
    "avx2": ("Held to AVX2", "PyTorch runs with `ATEN_CPU_CAPABILITY=avx2` and `ONEDNN_MAX_CPU_ISA=AVX2`.\n"),
}


def held(result: dict[str, Any]) -> str:
    """64 images a step, held to an instruction set."""
    isa = result["isa"]
    title, remark = HELD[isa]
    command = f"train --model resnet20 --bits 4 --batch 64 --threads 1 --against torch --isa {isa}"
    return _train(result, title, command, remark)


def scaling(result: dict[str, Any]) -> str:
    """Batches, threads, FedMPQ's own work."""
    return "\n".join(
        [
            "## Batches, threads, and FedMPQ's own work\n",
            command(f"scaling --model {result['model']} --bits {result['bits']:g}"),
            conditions(result) + f" Batches by {result['time_basis']} time, threads by wall time.\n",
            table(
                ["batch", "ms a sample"], [[f"{r['batch']}", f"{r['ms_per_sample']:.3f}"] for r in result["batches"]], 0
            ),
            f"Largest over smallest time a sample: {1 + result['batch_spread']:.2f}.\n",
            table(
                ["threads", "step, ms", "speed against one"],
                [[f"{r['threads']}", f"{r['step_ms']:.1f}", f"{r['speedup']:.2f}"] for r in result["threads"]],
                0,
            ),
            (
                "Group Lasso in every step, plane densities and pruning after it, against a step without (that is "
                f"AQFL's): **{100 * result['fedmpq_overhead']:+.1f} %**.\n"
            ),
        ]
    )


def memory(result: dict[str, Any]) -> str:
    """Planned bytes and the growth of a process."""
    fit = result["arena"]
    batches = ",".join(str(entry["batch"]) for entry in result["results"])
    rows = [
        [f"{e['batch']}", f"{e['planned_bytes']:,}", f"{e['memory_bytes']:,}", f"{e['over_plan_bytes']:,}"]
        for e in result["results"]
        if e["engine"] == "fedmpq"
    ]
    return "\n".join(
        [
            f"## Memory: {result['model']}\n",
            command(f"memory --model {result['model']} --bits {result['bits']:g} --batch {batches}"),
            "Everything a step needs: weights as planes, batch-norm, activations, errors, work areas; momentum "
            + ("on" if result["momentum"] else "off")
            + ". Growth is the largest resident size of a process that trains, less that of the idle one.\n",
            table(["batch", "arena, planned = measured, bytes", "process grows by, bytes", "over the arena"], rows, 0),
            (
                f"From batch {fit['batches'][0]} to {fit['batches'][-1]} the arena is {fit['fixed_bytes']:,} + "
                f"{fit['bytes_per_sample']:,} × batch bytes (within {100 * fit['largest_deviation']:.2f} %); "
                "a batch of one works in strips of rows and takes less.\n"
            ),
        ]
    )


def kernels(result: dict[str, Any]) -> str:
    """Layer by layer."""
    rows = [
        [
            entry["name"], str(entry["count"]), f"{entry['forward_ms']:.2f}", f"{entry['step_ms']:.2f}",
            f"{entry['macs_per_sample'] / 1e6:.1f}",
            "" if entry["peak_fraction"] is None else f"{100 * entry['peak_fraction']:.0f}",
        ]
        for entry in result["layers"]
        if entry["stride"] == 1
    ]  # fmt: skip
    return "\n".join(
        [
            "## Layer by layer\n",
            command(f"kernels --model {result['model']} --bits {result['bits']}"),
            (
                "A whole layer: convolution, batch-norm, requantisation; both backward convolutions and update. Times "
                "are differences of programs with and without the layer, so one that shrinks the map is left out.\n"
            ),
            table(["layer", "times", "forward, ms", "step, ms", "M MAC a sample", "of peak, %"], rows),
        ]
    )


def targets(result: dict[str, Any]) -> str:
    """The targets of `fedmpq export` beside the native core, as in docs/executorch.md."""
    spec = importlib.util.spec_from_file_location("render_targets", Path(__file__).with_name("render_targets.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return f"## Export targets\n\n{module.table(result)}"


LIMITS = """\
## What limits each figure

- **Speed at batch 64.** On the matrix unit the products of a step take little more than a third of it; the rest is
  passes over tensors that do not fit the second-level cache (x̂ one byte an element, y and errors two), some four
  megabytes an image. They are bound by memory, not by instructions: asking for lines a page ahead was worth more than
  halving a pass's instructions. What is left is to do several passes over one sample while it is in cache, where batch
  statistics and error exponents of the whole batch do not stand in between. The same holds for the fraction of the
  peak: the matrix unit multiplies seven times as fast as AVX512-VNNI, and the passes are what they are.
- **Without the matrix unit** the convolution kernels run near the rate of vpdpbusd and take half of the step.
- **Two threads.** Unpacking the weights of a layer runs on one thread, every pass ends when its last sample is done,
  and both threads share the way to memory.
- **A batch of one.** Unpacking planes to bytes and packing them again costs the most next to the convolutions, as
  each weight is used for one image only.
- **Memory at a batch of one.** ResNet8 peaks in the first stage: x̂ of the layers before, one error map of two
  bytes an element that waits for its shortcut, and e8 with the error to the input growing over it; what is lost
  between buffers is about 2 %.
"""


def main() -> None:
    """Write or check the page."""
    page = render()
    if "--check" in sys.argv:
        sys.exit(
            0 if PAGE.read_text() == page else f"{PAGE.name} is not what the files give: run {Path(__file__).name}"
        )
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
