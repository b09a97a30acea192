"""Finding data sets by name, holding images out, limiting, and downloading from a server on this machine."""

from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from fedmpq.data import Dataset, Split, load
from fedmpq.data.download import REMOTES, Remote, download
from fedmpq.data.report import silent
from fedmpq.data.sources import find_named, locate
from fedmpq.errors import DataError


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def test_digits_are_scaled_and_split_the_same_way_every_time(digits):
    assert (len(digits.train), len(digits.test), digits.shape) == (1437, 360, (8, 8, 1))
    assert digits.train.images.max() == 255
    assert digits.train.images.min() == 0
    counts = digits.describe()["test_per_class"]
    assert max(counts) - min(counts) <= 2
    assert (
        hashlib.sha256(digits.test.images.tobytes()).hexdigest()
        == hashlib.sha256(load("digits").test.images.tobytes()).hexdigest()
    )
    train = {row.tobytes() for row in digits.train.images}
    assert not any(row.tobytes() in train for row in digits.test.images)


def test_the_mean_is_rounded_to_a_pixel_value(digits):
    assert digits.mean == (round(float(digits.train.images.mean())),)


def test_holding_out_validation_images(digits):
    for count in (137, 137 / 1437):
        dataset = digits.hold_out(count, seed=3)
        assert (len(dataset.train), len(dataset.validation)) == (1300, 137)
    both = np.concatenate([dataset.train.images, dataset.validation.images]).reshape(1437, -1)
    assert np.array_equal(np.sort(both, axis=0), np.sort(digits.train.images.reshape(1437, -1), axis=0))
    assert dataset.mean == digits.mean
    assert dataset.test is digits.test
    with pytest.raises(DataError, match="cannot hold 1437 of 1437"):
        digits.hold_out(1437)


def test_limits_keep_every_class(digits):
    dataset = digits.limit(train=100, test=5000)
    assert len(dataset.train) == 100
    assert set(dataset.describe()["train_per_class"]) == {10}
    assert dataset.test is digits.test
    with pytest.raises(DataError, match="cannot take 0 images"):
        digits.limit(test=0)


@pytest.mark.parametrize(
    ("images", "labels", "problem"),
    [
        (np.zeros((2, 3, 3, 1), np.float32), [0, 1], "is float32"),
        (np.zeros((2, 3, 3), np.uint8), [0, 1], "not uint8"),
        (np.zeros((2, 3, 3, 1), np.uint8), [0, 1, 1], "2 images but 3 labels"),
        (np.zeros((2, 3, 3, 1), np.uint8), [0, 2], "label 2 but there are 2 classes"),
        (np.zeros((0, 3, 3, 1), np.uint8), [], "training split is empty"),
    ],
)
def test_a_data_set_checks_its_parts(images, labels, problem):
    split = Split(images, np.array(labels, dtype=np.uint16))
    with pytest.raises(DataError, match=problem):
        Dataset.build("x", ["a", "b"], split, split)


def test_named_sets_are_found_in_the_given_folder(image_files, write_folder, tmp_path, monkeypatch):
    write_folder(image_files(), tmp_path / "given" / "cifar100")
    monkeypatch.setenv("FEDMPQ_DATA", f"{tmp_path / 'absent'}:{tmp_path / 'given'}")
    assert load("cifar100").name == "cifar100"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError, match="no data set called mnits") as caught:
        load("mnits")
    assert "fashion-mnist" in caught.value.hint


def test_resizing_what_is_no_image_file_is_refused():
    with pytest.raises(DataError, match="digits is 8x8"):
        load("digits", size=(4, 4))
    assert load("digits", size=(8, 8)).shape == (8, 8, 1)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path):
    """A web server on the loopback interface; yields its URL and the folder it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/", folder
        http.shutdown()
        thread.join()


def remote_of(url: str, content: bytes) -> Remote:
    return Remote(url + "file.bin", len(content), hashlib.md5(content).hexdigest())


def test_a_download_is_checked_stored_and_not_repeated(server, tmp_path):
    url, folder = server
    content = bytes(range(256)) * 5000
    (folder / "file.bin").write_bytes(content)
    remotes = (remote_of(url, content),)
    download(remotes, tmp_path / "d", silent)
    assert (tmp_path / "d/file.bin").read_bytes() == content
    (folder / "file.bin").unlink()
    download(remotes, tmp_path / "d", silent)


@pytest.mark.parametrize("sent", [b"", b"other", b"right!" * 3, b"wrong!"])
def test_a_download_of_the_wrong_content_is_refused_and_leaves_nothing(server, tmp_path, sent):
    url, folder = server
    (folder / "file.bin").write_bytes(sent)
    with pytest.raises(DataError, match="not the published file of 6 bytes"):
        download((remote_of(url, b"right!"),), tmp_path / "d", silent)
    assert list((tmp_path / "d").iterdir()) == []


def test_a_download_stops_reading_when_it_is_too_long(server, tmp_path):
    url, folder = server
    (folder / "file.bin").write_bytes(bytes(4_000_000))
    received = []

    @contextmanager
    def report(description, total):
        yield received.append

    with pytest.raises(DataError, match="not the published file"):
        download((remote_of(url, b"right!"),), tmp_path / "d", report)
    assert sum(received) < 1_000_000


def test_a_missing_file_and_a_dead_server_are_told(server, tmp_path):
    url, _ = server
    with pytest.raises(DataError, match=r"cannot download .*file\.bin: the server answers 404"):
        download((remote_of(url, b"x"),), tmp_path / "d", silent)
    with pytest.raises(DataError, match="cannot download"):
        download((remote_of("http://127.0.0.1:9/", b"x"),), tmp_path / "d", silent)


def test_offline_says_where_it_looked_and_what_to_do(monkeypatch, tmp_path):
    dead = Remote("http://127.0.0.1:9/cifar.tar.gz", 5, "00")
    monkeypatch.setitem(REMOTES, "cifar100", (dead,))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="cifar100 is not on this machine and cannot be fetched") as caught:
        load("cifar100")
    assert "FEDMPQ_DATA" in caught.value.hint
    assert "cifar100.zip" in caught.value.hint


def test_a_single_archive_is_located_after_its_download(server, monkeypatch, tmp_path):
    url, folder = server
    (folder / "file.bin").write_bytes(b"right!")
    monkeypatch.setitem(REMOTES, "cifar100", (remote_of(url, b"right!"),))
    monkeypatch.chdir(tmp_path)
    path, name = locate("cifar100")
    assert path.read_bytes() == b"right!"
    assert name == "cifar100"


@pytest.mark.data
@pytest.mark.skipif(not find_named("fashion-mnist"), reason="fashion-mnist is not on this machine (make system)")
def test_fashion_mnist_as_published():
    dataset = load("fashion-mnist")
    assert (len(dataset.train), len(dataset.test), dataset.shape) == (60_000, 10_000, (28, 28, 1))
    assert dataset.classes[9] == "Ankle boot"
    assert set(dataset.describe()["train_per_class"]) == {6000}
    assert dataset.mean == (73,)


@pytest.mark.data
@pytest.mark.skipif(not find_named("cifar10"), reason="cifar10 is not on this machine (set FEDMPQ_DATA)")
def test_cifar10_as_published():
    dataset = load("cifar10")
    assert (len(dataset.train), len(dataset.test), dataset.shape) == (50_000, 10_000, (32, 32, 3))
    assert dataset.classes[:3] == ("airplane", "automobile", "bird")
    assert set(dataset.describe()["test_per_class"]) == {1000}
    assert dataset.mean == (125, 123, 114)
