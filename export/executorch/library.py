"""The backend library: compiled once against the installed executorch and core, kept in a cache, loaded by ctypes.

It needs a C++ compiler on the machine that runs `.pte` files through Python. `FEDMPQ_EXECUTORCH` names a library built
elsewhere. A C++ application builds it with CMake instead (examples/executorch_runner), the core linked in.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import sys
import tempfile
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from fedmpq.edge_runtime import native
from fedmpq.errors import ConfigError, CoreError, MissingExtraError

#: Version of executorch that the backend is written and tested against.
TESTED: Final = "1.5.1"
_PORTS = ("artifact.c", "json.c", "sha256.c")
_OWN = ("backend.cpp", "section.cpp", "session.cpp")
_DEFINES = ("-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED")
_FLAGS = ("-O2", "-fPIC", "-fvisibility=hidden", "-pthread")


@lru_cache(maxsize=1)
def library() -> Any:
    """The loaded backend; ExecuTorch knows it from then on.

    Raises:
        MissingExtraError: executorch is not installed.
        ConfigError: there is no C++ compiler, or it refused.
        CoreError: the library does not load.
    """
    runtime()
    path = Path(os.environ["FEDMPQ_EXECUTORCH"]) if "FEDMPQ_EXECUTORCH" in os.environ else build()
    try:
        found = ctypes.CDLL(str(path))
        found.fedmpq_executorch_error.restype = ctypes.c_char_p
        found.fedmpq_executorch_limit.argtypes = [ctypes.c_uint64]
        found.fedmpq_executorch_limit.restype = None
        found.fedmpq_executorch_core.restype = ctypes.c_char_p
        found.fedmpq_executorch_isa.argtypes = [ctypes.c_char_p]
    except (OSError, AttributeError) as problem:
        raise CoreError(f"{path} is not this version's ExecuTorch backend: {problem}", "delete it") from None
    return found


def build() -> Path:
    """The library's file, compiled now if it is not in the cache.

    Raises:
        MissingExtraError, ConfigError: see `library`.
    """
    executorch, core = runtime(), Path(native.library()._name).resolve()
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    files = _files()
    key = hashlib.sha256(repr((version("executorch"), str(executorch), str(core), compiler, _FLAGS)).encode())
    for path in (*files, core):
        key.update(path.read_bytes())
    target = cache() / f"fedmpq_executorch-{key.hexdigest()[:16]}.so"
    if target.is_file():
        return target
    if shutil.which(compiler[0]) is None:
        raise ConfigError(
            f"the ExecuTorch backend has to be compiled once and there is no {compiler[0]}",
            "install g++, set CXX, or set FEDMPQ_EXECUTORCH to a built library",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = _compile(compiler, files, executorch, core, Path(folder))
        made.replace(target)  # in one step: another process may do the same now
    return target


def _compile(compiler: list[str], files: list[Path], executorch: Path, core: Path, folder: Path) -> Path:
    from fedmpq.toolchain.compile import run

    include = executorch / "include"
    headers = [include, include / "executorch" / "runtime" / "core" / "portable_type" / "c10"]
    ours = sorted({path.parent for path in files} | {path.parent.parent for path in files if path.name == "fmpq.h"})
    search = [f"-I{path}" for path in ours] + [word for path in headers for word in ("-isystem", str(path))]
    objects = []
    for path in files:
        if path.suffix not in {".c", ".cpp"}:
            continue
        language = ["-x", "c", "-std=c11"] if path.suffix == ".c" else ["-std=c++17", *_DEFINES]
        objects.append(folder / f"{path.stem}.o")
        run([*compiler, *_FLAGS, *search, *language, "-c", str(path), "-o", str(objects[-1])], f"compiling {path.name}")
    made = folder / "backend.so"
    libraries = [str(core), f"-L{executorch / 'lib'}", "-lexecutorch"]
    paths = [f"-Wl,-rpath,{core.parent}", f"-Wl,-rpath,{executorch / 'lib'}"]
    run([*compiler, "-shared", *map(str, objects), "-o", str(made), *libraries, *paths], "linking the backend")
    return made


def _files() -> list[Path]:
    """Everything the library is made of, headers included."""
    here = Path(__file__).resolve().parent / "native"
    own = [here / name for name in (*_OWN, "backend.h", "section.h", "session.h")]
    installed = here / "ports"  # a wheel has them there
    return own + (_ports(installed, installed) if installed.is_dir() else _checkout())


def _checkout() -> list[Path]:
    from fedmpq.toolchain import sources

    core = sources.root()
    return _ports(core / "port", core / "include")


def _ports(port: Path, include: Path) -> list[Path]:
    headers = [*(port / f"{Path(name).stem}.h" for name in _PORTS), port / "artifact_errors.inc"]
    return [*(port / name for name in _PORTS), *headers, *sorted((include / "fmpq").iterdir())]


def runtime() -> Path:
    """The folder of the installed executorch package.

    Raises:
        MissingExtraError, ConfigError: there is none, or one without a C++ runtime.
    """
    try:
        spec = find_spec("executorch")
    except ValueError:  # imports of it are blocked
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("executorch", "export")
    folder = Path(next(iter(spec.submodule_search_locations)))
    if not (folder / "include").is_dir() or not (folder / "lib" / "libexecutorch.so").is_file():
        try:
            installed = version("executorch")
        except PackageNotFoundError:
            installed = "without a version"
        raise ConfigError(
            f"executorch {installed} has no C++ runtime to build the backend with", f"pip install executorch=={TESTED}"
        )
    return folder


def cache() -> Path:
    """Folder of what is made once on this machine (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fedmpq" / f"executorch-{sys.platform}"
