"""Fuzzing, long form: atheris for the parsers in Python, libFuzzer with ASan and UBSan for the readers in C.

    python -m fuzz.campaign --seconds 20                      every target for so long
    python -m fuzz.campaign --seconds 60 c-core messages      some targets
    python -m fuzz.campaign --out benchmarks/results/fuzz.json   adds to the counts of earlier runs

Needs clang for C and `pip install atheris` for Python (`make fuzz` sees to both). A crash stops the campaign with its
input under build/fuzz/crashes; new inputs that reach new code go to build/fuzz/found and, minimised, into the corpus.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "fuzz" / "corpus"
BUILD = ROOT / "build" / "fuzz"
CORE = ROOT / "edge_runtime" / "core"
C_TARGETS = {"c-artifact": "artifact.c", "c-core": "core.c", "c-files": "files.c", "c-server": "server.c"}
#: Largest input: most seeds are a few kilobytes.
MOST_BYTES = 8192


def c_sources() -> list[Path]:
    """The core in plain C and the readers of the port."""
    port = ["artifact.c", "json.c", "sha256.c", "shard.c", "serial_frame.c", "serial_server.c"]
    return [*sorted(CORE.glob("src/*.c")), *sorted(CORE.glob("src/ref/*.c")), *(CORE / "port" / name for name in port)]


def build(target: str, compiler: str, *flags: str) -> Path:
    """Compiles a C target; `flags` choose the driver. The core is compiled once for the same compiler and flags."""
    BUILD.mkdir(parents=True, exist_ok=True)
    options = ["-std=c11", "-g", "-fno-sanitize-recover=all", f"-I{CORE / 'include'}", f"-I{CORE / 'src'}"]
    options += [flag for flag in flags if flag.startswith("-")]
    made = BUILD / f"objects-{hashlib.sha256(' '.join([compiler, *options]).encode()).hexdigest()[:12]}"
    sources = c_sources()
    read = [*sources, *CORE.rglob("*.h"), *CORE.rglob("*.inc")]
    if not made.is_dir() or min(p.stat().st_mtime for p in made.iterdir()) < max(p.stat().st_mtime for p in read):
        made.mkdir(exist_ok=True)
        library = [option.replace("=fuzzer,", "=fuzzer-no-link,") for option in options]
        subprocess.run([compiler, *library, "-c", *map(str, sources)], check=True, cwd=made)
    program = BUILD / f"{target}-{Path(compiler).name}"
    drivers = [str(ROOT / "fuzz" / "c" / C_TARGETS[target]), *(flag for flag in flags if not flag.startswith("-"))]
    subprocess.run([compiler, *options, *drivers, *map(str, sorted(made.glob("*.o"))), "-o", str(program)], check=True)
    return program


def python_target(name: str) -> None:
    """Runs as a child: atheris takes over the process."""
    import atheris

    with atheris.instrument_imports(include=["fedmpq"]):
        from fuzz import targets
    arguments = [sys.argv[0], *sys.argv[3:]]
    atheris.Setup(arguments, lambda data: targets.run(name, data))
    atheris.Fuzz()


def campaign(target: str, seconds: int) -> int:
    """Fuzzes one target; returns the number of executions. CalledProcessError on a crash."""
    found, crashes = BUILD / "found" / target, BUILD / "crashes"
    for folder in (found, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}", f"-artifact_prefix={crashes}/{target}-",
        "-print_final_stats=1", "-rss_limit_mb=4096", "-timeout=20", "-verbosity=0", str(found), str(CORPUS / target),
    ]  # fmt: skip
    if target in C_TARGETS:
        compiler = next(name for name in ("clang-14", "clang") if _exists(name))
        command = [str(build(target, compiler, "-O2", "-fsanitize=fuzzer,address,undefined")), *options]
    else:
        command = [sys.executable, "-m", "fuzz.campaign", "--child", target, *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    counted = re.search(r"number_of_executed_units:\s*(\d+)", run.stderr)
    if run.returncode or counted is None:
        sys.stderr.write(run.stderr[-6000:])
        raise SystemExit(f"{target}: crashed, see {crashes}")
    return int(counted.group(1))


def _exists(program: str) -> bool:
    return any(os.access(Path(folder) / program, os.X_OK) for folder in os.environ["PATH"].split(":"))


def main() -> None:
    """See the module."""
    if sys.argv[1:2] == ["--child"]:
        python_target(sys.argv[2])
        return
    from fuzz.targets import TARGETS

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("targets", nargs="*", help="all, if none is named")
    options.add_argument("--seconds", type=int, default=20)
    options.add_argument("--out", type=Path, help="JSON of executions, added up over runs")
    asked = options.parse_args()
    total = {"executions": {}, "crashes": 0, "seconds": 0}
    if asked.out is not None and asked.out.is_file():
        total = json.loads(asked.out.read_text())
    for target in asked.targets or [*C_TARGETS, *TARGETS]:
        done = campaign(target, asked.seconds)
        total["executions"][target] = total["executions"].get(target, 0) + done
        total["seconds"] += asked.seconds
        total["total"] = sum(total["executions"].values())
        print(f"{target:14} {done:12,} executions", flush=True)
        if asked.out is not None:
            asked.out.write_text(json.dumps(total, indent=1) + "\n")


if __name__ == "__main__":
    main()
