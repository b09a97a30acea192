"""Fetching the public data sets from where their authors publish them, with size and checksum."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from fedmpq.data.report import Reporter
from fedmpq.errors import DataError

_CHUNK = 1 << 18
_TIMEOUT_SECONDS = 20


@dataclass(frozen=True)
class Remote:
    """A published file. The MD5 is the one its publisher gives, against transfer faults rather than attackers."""

    url: str
    size: int
    md5: str

    @property
    def file(self) -> str:
        """The name the file is stored under."""
        return self.url.rpartition("/")[2]


_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
REMOTES: dict[str, tuple[Remote, ...]] = {
    "fashion-mnist": (
        Remote(_FASHION + "train-images-idx3-ubyte.gz", 26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        Remote(_FASHION + "train-labels-idx1-ubyte.gz", 29_515, "25c81989df183df01b3e8a0aad5dffbe"),
        Remote(_FASHION + "t10k-images-idx3-ubyte.gz", 4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
        Remote(_FASHION + "t10k-labels-idx1-ubyte.gz", 5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    "cifar10": (
        Remote(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", 170_498_071, "c58f30108f718f92721af3b95e74349a"
        ),
    ),
    "cifar100": (
        Remote(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", 169_001_437, "eb9058c3a382ffc7106e4002c42a8d85"
        ),
    ),
    "tiny-imagenet": (
        Remote("http://cs231n.stanford.edu/tiny-imagenet-200.zip", 248_100_043, "90528d7ca1a48142e341f4ef8d21d0de"),
    ),
}


def download(remotes: tuple[Remote, ...], folder: Path, report: Reporter) -> None:
    """Fetch files that `folder` does not hold yet.

    Raises:
        DataError: no network, a server that refuses, or content of the wrong size or checksum.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {folder}: {error.strerror}", "set FEDMPQ_CACHE") from None
    for remote in remotes:
        if not (folder / remote.file).exists():
            _fetch(remote, folder / remote.file, report)


def _fetch(remote: Remote, target: Path, report: Reporter) -> None:
    partial = target.with_name(target.name + ".part")
    digest = hashlib.md5(usedforsecurity=False)
    size = 0
    try:
        with (
            report(f"downloading {remote.file}", remote.size) as advance,
            urllib.request.urlopen(remote.url, timeout=_TIMEOUT_SECONDS) as answer,  # noqa: S310 -- our own table
            partial.open("wb") as file,
        ):
            while size <= remote.size and (chunk := answer.read(_CHUNK)):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                advance(len(chunk))
        if size != remote.size or digest.hexdigest() != remote.md5:
            raise DataError(f"{remote.url} sent {size} bytes that are not the published file of {remote.size} bytes")
        partial.replace(target)
    except urllib.error.HTTPError as error:
        raise DataError(f"cannot download {remote.url}: the server answers {error.code} {error.reason}") from None
    except OSError as error:  # URLError is one
        raise DataError(f"cannot download {remote.url}: {getattr(error, 'reason', error)}") from None
    finally:
        partial.unlink(missing_ok=True)
