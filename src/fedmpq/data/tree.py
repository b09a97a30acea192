"""Files of a data set, wherever they lie: a folder, a zip or a tar archive, read by the same three calls."""

from __future__ import annotations

import hashlib
import lzma
import os
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from fedmpq.errors import DataError

#: A single file of an image data set larger than this is taken for a mistake or an attack.
MAX_FILE_BYTES = 1 << 30
#: What the standard library raises for archives that are damaged or meant to harm.
_UNREADABLE = (
    OSError, EOFError, LookupError, ValueError, OverflowError, RuntimeError, MemoryError,
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError,
)  # fmt: skip
_SPLIT_NAMES = {"train", "test", "val", "valid", "validation"}


class Tree(ABC):
    """Read access to a set of files named by relative POSIX paths.

    A single folder that wraps everything (as archives often have) is left out of the names.
    """

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.path = path
        kept = sorted(name for name in names if not _hidden(name))
        if not kept:
            raise DataError(f"{path} holds no files", "give a folder or archive of images")
        self._prefix = _wrapper(kept)
        self.names = [name[len(self._prefix) :] for name in kept]

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            DataError: the file cannot be read; the message names it and its archive.
        """
        try:
            return self._read(self._prefix + name)
        except _UNREADABLE as error:
            raise DataError(f"cannot read {name} in {self.path}: {error}") from None

    @abstractmethod
    def _read(self, full_name: str) -> bytes: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes when the files do, from sizes and times, not from contents.

        Raises:
            DataError: a file that is listed is not there, for example a link to nothing.
        """


class FolderTree(Tree):
    """The files under a folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _walk(path))

    def _read(self, full_name: str) -> bytes:
        return (self.path / full_name).read_bytes()

    def fingerprint(self) -> str:
        """Hash of every file's name, size and modification time."""
        digest = hashlib.sha256(os.fsencode(self.path.resolve()))
        for name in self.names:
            try:
                info = (self.path / (self._prefix + name)).stat()
            except OSError as error:
                raise DataError(f"cannot read {name} in {self.path}: {error.strerror}") from None
            digest.update(os.fsencode(name) + f"\0{info.st_size}\0{info.st_mtime_ns}\n".encode())
        return digest.hexdigest()


class ZipTree(Tree):
    """The files in a zip archive, decompressed one at a time and never extracted to disk."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
            names = [info.filename for info in self._zip.infolist() if not info.is_dir()]
        except _UNREADABLE as error:
            raise DataError(f"{path} is not a readable zip archive: {error}") from None
        super().__init__(path, names)

    def _read(self, full_name: str) -> bytes:
        if (size := self._zip.getinfo(full_name).file_size) > MAX_FILE_BYTES:
            raise ValueError(f"it claims {size} bytes")
        with self._zip.open(full_name) as file:
            return file.read(size)  # not all there is: packed data may unpack to far more than the archive claims

    def fingerprint(self) -> str:
        """Hash of the archive's path, size and modification time."""
        return _file_fingerprint(self.path)


class TarTree(Tree):
    """The files in a tar archive, compressed or not. Meant for archives of a few large files."""

    def __init__(self, path: Path) -> None:
        try:
            self._tar = tarfile.open(path)  # noqa: SIM115 -- lives as long as the tree
            members = self._tar.getmembers()
            following = self._after(self._tar.offset)
        except _UNREADABLE as error:
            raise DataError(f"{path} is not a readable tar archive: {error}") from None
        # tarfile takes a header that it cannot read for the end of the archive, but the end is two blocks of zeros.
        if following.strip(b"\0"):
            last = f"member {members[-1].name}" if members else "its start"
            raise DataError(f"{path} is damaged after {last}")
        self._members = {str(PurePosixPath(member.name)): member for member in members if member.isfile()}
        super().__init__(path, self._members)

    def _after(self, offset: int) -> bytes:
        """The two blocks at an offset, or what there is of them."""
        assert self._tar.fileobj is not None
        self._tar.fileobj.seek(offset)
        return self._tar.fileobj.read(2 * tarfile.BLOCKSIZE)

    def _read(self, full_name: str) -> bytes:
        member = self._members[full_name]
        if member.size > MAX_FILE_BYTES:
            raise ValueError(f"it claims {member.size} bytes")
        file = self._tar.extractfile(member)
        if file is None:
            raise KeyError(full_name)
        return file.read()

    def fingerprint(self) -> str:
        """Hash of the archive's path, size and modification time."""
        return _file_fingerprint(self.path)


def open_tree(path: Path) -> Tree:
    """The tree at `path`: a folder, a .zip, or a .tar, .tar.gz, .tgz, .tar.xz.

    Raises:
        DataError: nothing there, nothing in it, or a file of another kind.
    """
    if path.is_dir():
        return FolderTree(path)
    if not path.exists():
        raise DataError(f"no data at {path}", "give a folder or archive of images, or a known name such as digits")
    if zipfile.is_zipfile(path) or path.suffix == ".zip":
        return ZipTree(path)
    if path.suffix in {".tar", ".tgz", ".gz", ".xz", ".bz2"}:
        return TarTree(path)
    raise DataError(f"{path} is neither a folder nor a zip or tar archive")


def printable(name: str) -> str:
    """A file name as it can be printed and stored: bytes that are not UTF-8 become question marks in diamonds."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _walk(folder: Path) -> Iterable[str]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(parent).relative_to(folder)
        for file in files:
            yield (relative / file).as_posix()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _wrapper(names: list[str]) -> str:
    """The folder all names share, with its slash, unless it is a split or holds the files directly."""
    first, slash, _ = names[0].partition("/")
    shared = slash and first not in _SPLIT_NAMES and all(name.startswith(first + "/") for name in names)
    return first + "/" if shared else ""


def _file_fingerprint(path: Path) -> str:
    info = path.stat()
    text = f"{path.resolve()}\0{info.st_size}\0{info.st_mtime_ns}"
    return hashlib.sha256(os.fsencode(text)).hexdigest()
