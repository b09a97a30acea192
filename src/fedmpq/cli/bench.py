"""`fedmpq bench`: speed and memory of a training step, beside other trainers on the same machine."""

from __future__ import annotations

from typing import Any

import click

from fedmpq.cli._common import emit, example, human_bytes, json_option, note, print_table, progress
from fedmpq.cli._models import MODEL_HELP, ImageShape
from fedmpq.errors import UsageError

_PEERS = ("torch", "ort-training", "executorch")


class Engines(click.ParamType[tuple[str, ...]]):
    """An option type for a comma-separated list of peers; "none" for an empty one."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Parse names."""
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in str(value).split(",") if name.strip())
        if names in {(), ("none",)}:
            return ()
        for name in names:
            if name not in _PEERS:
                self.fail(f"{name!r} is no engine; choose from {', '.join(_PEERS)} or none", param, ctx)
        return tuple(dict.fromkeys(names))


class Batches(click.ParamType[tuple[int, ...]]):
    """An option type for comma-separated batch sizes."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse numbers from 1 on."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(part.strip().isdecimal() and 0 < int(part) < 65536 for part in parts):
            self.fail(f"{value!r} is no list of batches; write 1,64", param, ctx)
        return tuple(int(part) for part in parts)


@click.group(
    epilog=example(
        "fedmpq bench train --model resnet20 --batch 64 --against torch",
        "fedmpq bench memory --model resnet8",
        "fedmpq bench kernels --model resnet20",
    )
)
def command() -> None:
    """Measure speed and memory of training here."""


@command.command(
    epilog=example(
        "fedmpq bench train --model resnet20 --bits 4 --batch 64 --threads 1 "
        "--against torch,ort-training,executorch --json",
        "fedmpq bench train --model resnet8 --isa avx2",
    )
)
@click.option("--model", default="resnet20", help=f"What to train: {MODEL_HELP}.")
@click.option("--input", "shape", type=ImageShape(), default="3x32x32", help="Image shape, channels first.")
@click.option("--classes", type=click.IntRange(2, 1024), default=10, help="Number of classes.")
@click.option("--bits", type=click.FloatRange(1, 8), default=4, help="Average bit-width of the core.")
@click.option("--act-bits", type=click.Choice(["4", "8"]), default="4", help="Bits of an activation of the core.")
@click.option("--batch", type=click.IntRange(1, 65535), default=64, help="Samples of a step.")
@click.option("--threads", type=click.IntRange(1, 64), default=1, help="Threads of every engine.")
@click.option("--momentum/--no-momentum", default=False, help="Keep a momentum (ort-training's SGD has none).")
@click.option("--against", type=Engines(), default="torch", help="Peers: torch, ort-training, executorch, or none.")
@click.option("--isa", help="Hold the core and PyTorch to an instruction set, e.g. avx2.")
@click.option("--repetitions", type=click.IntRange(1, 1000), default=7, help="Turns of each engine; medians count.")
@click.option("--seconds", type=click.FloatRange(0.001, 600), default=1.0, help="Length of a turn.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, help="Fixes weights and images.")
@json_option
def train(
    model: str, shape: tuple[int, int, int], against: tuple[str, ...], repetitions: int, seconds: float,
    isa: str | None, act_bits: str, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Time a training step beside other trainers.

    Forward, backward and update of the same model on the same batch. Every engine has a process of its own; they take
    turns, and the median counts. `memory_bytes` is the growth of that process over its idle size.
    """
    from fedmpq.bench import compare
    from fedmpq.bench.job import Job
    from fedmpq.edge_runtime import core

    if isa is not None and isa not in core.isas():
        raise UsageError(f"--isa {isa} is not available here", f"one of: {', '.join(core.isas())}")
    job = Job("fedmpq", model, shape, isa=isa, act_bits=int(act_bits), **options)
    with progress("turns", total=repetitions * (2 + len(against))) as advance:
        result = compare.train(job, against, repetitions, seconds, advance)
    emit(result, as_json, _print_train)


def _print_train(result: dict[str, Any]) -> None:
    time = "step_ms" if result["ratio_basis"] == "wall" else "cpu_ms"
    ours = result["results"][0][time]
    print_table(
        ["engine", "images/s", "step, ms", "processor, ms", "times ours", "memory", "what"],
        [
            [
                entry["engine"], float(entry["images_per_s"]), float(entry["step_ms"]), float(entry["cpu_ms"]),
                entry[time] / ours,
                human_bytes(entry["memory_bytes"]), entry["model"],
            ]
            for entry in result["results"]
        ],
        f"{result['model']}, batch {result['batch']}, {result['threads']} thread(s), {result['isa']}",
    )  # fmt: skip
    if result["peak_fraction"] is not None:
        print(
            f"{100 * result['peak_fraction']:.1f} % of the int8 peak measured in this run "
            f"({result['peak_macs_per_s'] / 1e9:.0f} G multiply-accumulates a second and core)"
        )
    busy = max(result["load_before"][0], result["load_after"][0])
    if busy > result["threads"] + 1:
        note(f"the machine was busy (load {busy:g}); ratios are of {result['ratio_basis']} time")


@command.command(
    epilog=example("fedmpq bench memory --model resnet20 --batch 1,64", "fedmpq bench memory --against torch --json")
)
@click.option("--model", default="resnet20", help=f"What to train: {MODEL_HELP}.")
@click.option("--input", "shape", type=ImageShape(), default="3x32x32", help="Image shape, channels first.")
@click.option("--classes", type=click.IntRange(2, 1024), default=10, help="Number of classes.")
@click.option("--bits", type=click.FloatRange(1, 8), default=4, help="Average bit-width of the core.")
@click.option("--batch", "batches", type=Batches(), default="1,64", help="Batches to measure, e.g. 1,8,64.")
@click.option("--against", type=Engines(), default="none", help="Peers: torch, ort-training, executorch, or none.")
@json_option
def memory(
    model: str, shape: tuple[int, int, int], classes: int, bits: float, batches: tuple[int, ...],
    against: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Measure how far a process grows by training.

    Each engine trains a few steps in a process of its own, whose largest resident size is compared with that before
    the model was loaded. The core's arena is planned for batches 2 to 256 and fitted by fixed + slope x batch.
    """
    from fedmpq.bench import memory as measure
    from fedmpq.bench.job import Job

    jobs = [Job("fedmpq", model, shape, classes, batch, bits=bits) for batch in batches]
    with progress("processes", total=len(jobs) * (1 + len(against))) as advance:
        result = measure.run(jobs, against, advance)
    emit(result, as_json, _print_memory)


def _print_memory(result: dict[str, Any]) -> None:
    print_table(
        ["engine", "batch", "planned, bytes", "grew by, bytes", "over plan"],
        [
            [
                entry["engine"], entry["batch"], entry.get("planned_bytes"), entry["memory_bytes"],
                entry.get("over_plan_bytes"),
            ]
            for entry in result["results"]
        ],
        f"{result['model']}, {result['bits']:g} bits",
    )  # fmt: skip
    fit = result["arena"]
    print(
        f"arena = {fit['fixed_bytes']:,} + {fit['bytes_per_sample']:,} × batch bytes "
        f"(within {100 * fit['largest_deviation']:.2f} % from batch {fit['batches'][0]} to {fit['batches'][-1]})"
    )


@command.command(epilog=example("fedmpq bench scaling --batches 8,64,256 --threads 2 --json"))
@click.option("--model", default="resnet20", help=f"What to train: {MODEL_HELP}.")
@click.option("--input", "shape", type=ImageShape(), default="3x32x32", help="Image shape, channels first.")
@click.option("--classes", type=click.IntRange(2, 1024), default=10, help="Number of classes.")
@click.option("--bits", type=click.FloatRange(1, 8), default=4, help="Average bit-width.")
@click.option("--batch", type=click.IntRange(1, 65535), default=64, help="Samples of a step to compare with.")
@click.option("--batches", type=Batches(), default="8,256", help="Further batches, with one thread.")
@click.option("--threads", type=Batches(), default="2", help="Further numbers of threads.")
@click.option("--repetitions", type=click.IntRange(1, 1000), default=7, help="Turns of each; medians count.")
@click.option("--seconds", type=click.FloatRange(0.001, 600), default=0.7, help="Length of a turn.")
@json_option
def scaling(
    model: str, shape: tuple[int, int, int], classes: int, bits: float, batch: int, batches: tuple[int, ...],
    threads: tuple[int, ...], repetitions: int, seconds: float, as_json: bool,
) -> None:  # fmt: skip
    """Compare the core with itself: batches, threads, FedMPQ's own work.

    That work is the group Lasso in every step, counting set bits and pruning top planes after it; without it a device
    trains as in AQFL.
    """
    from fedmpq.bench import scaling as measure
    from fedmpq.bench.job import Job

    job = Job("fedmpq", model, shape, classes, batch, bits=bits)
    total = repetitions * len(measure.jobs_of(job, batches, threads))
    with progress("turns", total=total) as advance:
        result = measure.run(job, batches, threads, repetitions, seconds, advance)
    emit(result, as_json, _print_scaling)


def _print_scaling(result: dict[str, Any]) -> None:
    print_table(
        ["batch", "ms a sample"], [[row["batch"], row["ms_per_sample"]] for row in result["batches"]], result["model"]
    )
    print_table(
        ["threads", "step, ms", "times one"],
        [[row["threads"], row["step_ms"], row["speedup"]] for row in result["threads"]],
        f"batch {result['batch']}",
    )
    print(f"Lasso, densities and pruning add {100 * result['fedmpq_overhead']:.1f} % to a step")


@command.command(epilog=example("fedmpq bench targets --model resnet8 --batch 16 --json"))
@click.option("--model", default="resnet8", help=f"What to train: {MODEL_HELP}.")
@click.option("--input", "shape", type=ImageShape(), default="3x32x32", help="Image shape, channels first.")
@click.option("--classes", type=click.IntRange(2, 1024), default=10, help="Number of classes.")
@click.option("--bits", type=click.FloatRange(1, 8), default=4, help="Average bit-width of the integer targets.")
@click.option("--batch", type=click.IntRange(1, 65535), default=16, help="Samples of a step.")
@click.option("--repetitions", type=click.IntRange(1, 1000), default=5, help="Turns of each target; medians count.")
@click.option("--seconds", type=click.FloatRange(0.001, 600), default=1.0, help="Length of a turn.")
@json_option
def targets(
    model: str, shape: tuple[int, int, int], classes: int, bits: float, batch: int, repetitions: int, seconds: float,
    as_json: bool,
) -> None:  # fmt: skip
    """Size, memory and time per step of every export target.

    The native core, the delegate of a .pte in ExecuTorch, the ONNX graph in onnxruntime (the same integers) and
    ONNX Runtime training (fp32) train the same model on the same batch with one thread; they take turns.
    """
    from fedmpq.bench import targets as measure
    from fedmpq.bench.job import TARGETS, Job

    job = Job("fedmpq", model, shape, classes, batch, bits=bits)
    with progress("turns", total=repetitions * len(TARGETS)) as advance:
        result = measure.run(job, repetitions, seconds, advance)
    emit(result, as_json, _print_targets)


def _print_targets(result: dict[str, Any]) -> None:
    print_table(
        ["target", "files", "runtime", "idle process", "grows by", "step, ms", "times native"],
        [
            [
                row["target"], human_bytes(row["file_bytes"]), human_bytes(row["runtime_bytes"]),
                human_bytes(row["idle_bytes"]), human_bytes(row["memory_bytes"]), float(row["step_ms"]),
                float(row["times_native"]),
            ]
            for row in result["targets"]
        ],
        f"{result['model']}, batch {result['batch']}, {result['bits']:g} bits, 1 thread",
    )  # fmt: skip


@command.command(
    epilog=example("fedmpq bench kernels --model resnet20 --batch 64", "fedmpq bench kernels --isa avx2 --json")
)
@click.option("--model", default="resnet20", help=f"Whose layers to time: {MODEL_HELP}.")
@click.option("--input", "shape", type=ImageShape(), default="3x32x32", help="Image shape, channels first.")
@click.option("--bits", type=click.IntRange(1, 8), default=4, help="Bit-width of every layer.")
@click.option("--batch", type=click.IntRange(1, 65535), default=64, help="Samples of a step.")
@click.option("--isa", help="Hold the core to an instruction set, e.g. avx2.")
@click.option("--repetitions", type=click.IntRange(1, 1000), default=9, help="Turns of each layer; medians count.")
@json_option
def kernels(
    model: str, shape: tuple[int, int, int], bits: int, batch: int, isa: str | None, repetitions: int, as_json: bool
) -> None:
    """Time each layer shape of a model.

    Every distinct convolution runs in a small program of its own; the same program without it is subtracted. Times are
    whole layers: convolution, batch-norm and requantisation forward; both backward convolutions and update.
    """
    from fedmpq.bench import kernels as measure
    from fedmpq.edge_runtime import core

    if isa is not None:
        core.set_isa(isa)
    with progress("turns", total=repetitions) as advance:
        result = measure.run(model, shape, bits, batch, repetitions, advance)
    emit(result, as_json, _print_kernels)


def _print_kernels(result: dict[str, Any]) -> None:
    print_table(
        ["layer", "in", "out", "kernel", "stride", "times", "forward, ms", "step, ms", "M MAC/sample", "of peak, %"],
        [
            [
                entry["name"], entry["input"], entry["output"], entry["kernel"], entry["stride"], entry["count"],
                entry["forward_ms"], entry["step_ms"], entry["macs_per_sample"] / 1e6,
                None if entry["peak_fraction"] is None else 100 * entry["peak_fraction"],
            ]
            for entry in result["layers"]
        ],
        f"{result['model']}, batch {result['batch']}, {result['bits']} bits, {result['isa']}",
    )  # fmt: skip
