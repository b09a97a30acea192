"""Image folders and archives: layouts, colours, sizes, and one clear line for each thing that can be wrong."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile

import numpy as np
import pytest

from fedmpq.cli._main import run
from fedmpq.data import load
from fedmpq.errors import DataError


def test_a_folder_and_a_zip_give_the_same_images(image_files, write_folder, write_zip):
    files = image_files()
    from_folder, from_zip = load(write_folder(files)), load(write_zip(files))
    assert from_folder.classes == ("cat", "dog")
    assert from_folder.shape == (6, 5, 3)
    assert from_folder.train.labels.tolist() == [0] * 4 + [1] * 4
    for part in ("train", "test"):
        assert np.array_equal(getattr(from_folder, part).images, getattr(from_zip, part).images)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    assert np.array_equal(from_folder.train.images[0], pixels)


def test_the_second_load_comes_from_the_cache(image_files, write_folder, monkeypatch):
    folder = write_folder(image_files())
    first = load(folder)
    monkeypatch.setattr("fedmpq.data.images._pixels", lambda *_: pytest.fail("decoded twice"))
    second = load(folder)
    assert isinstance(second.train.images, np.memmap)
    assert np.array_equal(first.train.images, second.train.images)
    assert (first.mean, first.classes, first.name) == (second.mean, second.classes, second.name)


def test_a_changed_folder_is_read_again(image_files, write_folder, encode):
    folder = write_folder(image_files())
    assert len(load(folder).train) == 8
    (folder / "train/cat/new.png").write_bytes(encode(np.zeros((6, 5, 3), dtype=np.uint8)))
    assert len(load(folder).train) == 9


def test_a_damaged_cache_is_read_again(image_files, write_folder, cache_folder):
    folder = write_folder(image_files())
    first = load(folder)
    for file in cache_folder.glob("datasets/*/train-images.npy"):
        file.write_bytes(b"damaged")
    assert np.array_equal(load(folder).train.images, first.train.images)
    assert isinstance(load(folder).train.images, np.memmap)


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(image_files, write_folder, cache_folder):
    cache_folder.write_text("a file where the folder should be")
    assert len(load(write_folder(image_files())).train) == 8


def test_a_wrapping_folder_and_hidden_files_are_ignored(image_files, write_zip):
    files = {f"archive/{name}": content for name, content in image_files().items()}
    files |= {
        "__MACOSX/archive/train/cat/000.png": b"x",
        "archive/.DS_Store": b"x",
        "archive/train/cat/notes.txt": b"x",
    }
    assert len(load(write_zip(files)).train) == 8


def test_without_splits_a_fifth_of_each_class_is_for_testing(image_files, write_folder):
    dataset = load(write_folder(image_files(splits=("",), per_class=10)))
    assert dataset.describe()["train_per_class"] == [8, 8]
    assert dataset.describe()["test_per_class"] == [2, 2]
    both = np.concatenate([dataset.train.images, dataset.test.images]).reshape(20, -1)
    assert len(np.unique(both, axis=0)) == 20


def test_val_is_the_test_set_unless_there_is_one(image_files, write_folder, write_zip):
    files = image_files(splits=("train", "val"))
    assert len(load(write_folder(files)).test) == 8
    dataset = load(write_zip(files | image_files(splits=("test",), per_class=3)))
    assert (len(dataset.validation), len(dataset.test)) == (8, 6)


def test_tiny_imagenet(write_folder, encode):
    generator = np.random.default_rng(0)
    picture = lambda: encode(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8), "JPEG")  # noqa: E731
    files = {f"train/{wnid}/images/{wnid}_{i}.JPEG": picture() for wnid in ("n01", "n02") for i in range(3)}
    files |= {f"val/images/val_{i}.JPEG": picture() for i in range(4)} | {"wnids.txt": b"n01\nn02\n"}
    files |= {"test/images/test_0.JPEG": picture()}
    lines = "".join(f"val_{i}.JPEG\t{'n02' if i % 2 else 'n01'}\t0\t0\t62\t62\n" for i in range(4))
    folder = write_folder(files | {"val/val_annotations.txt": lines.encode()})
    dataset = load(folder)
    assert dataset.classes == ("n01", "n02")
    assert dataset.describe()["train_per_class"] == [3, 3]
    assert dataset.describe()["test_per_class"] == [2, 2]
    (folder / "val/val_annotations.txt").write_text(lines + "val_9.JPEG\tn01\n")
    with pytest.raises(DataError, match=r"line 5 .* names no image"):
        load(folder)


def test_grey_images_have_one_channel_and_grey_among_coloured_three(image_files, write_folder, write_zip, encode):
    grey = image_files(shape=(6, 5))
    assert load(write_folder(grey)).shape == (6, 5, 1)
    mixed = grey | {"train/dog/zz.png": encode(np.full((6, 5, 3), (9, 8, 7), dtype=np.uint8))}
    dataset = load(write_zip(mixed))
    assert dataset.shape == (6, 5, 3)
    assert (dataset.train.images[0][..., 0] == dataset.train.images[0][..., 2]).all()
    assert dataset.train.images[-1][0, 0].tolist() == [9, 8, 7]


def test_mixed_sizes_are_refused_and_can_be_resized(image_files, write_folder, encode):
    folder = write_folder(image_files() | {"train/dog/zz.png": encode(np.zeros((7, 5, 3), dtype=np.uint8))})
    with pytest.raises(DataError, match=r"train/dog/zz\.png .* is 7x5 but train/cat/000\.png is 6x5") as caught:
        load(folder)
    assert "--size" in caught.value.hint
    assert load(folder, size=(4, 3)).shape == (4, 3, 3)


def test_splits_of_different_size_are_refused(image_files, write_folder):
    folder = write_folder(image_files(splits=("train",)) | image_files(splits=("test",), shape=(5, 5, 3)))
    with pytest.raises(DataError, match=r"test images are \(5, 5, 3\), the training images \(6, 5, 3\)"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda files: files | {"train/cat/bad.png": b"no image"}, r"train/cat/bad\.png .* not a readable image"),
        (lambda files: files | {"train/cat/bad.png": files["train/cat/000.png"][:-30]}, "not a readable image"),
        (lambda files: files | {"test/cow/0.png": files["train/cat/000.png"]}, "of class cow, which has no training"),
        (lambda files: {name: each for name, each in files.items() if "dog" not in name}, "only the class cat"),
        (lambda files: {name: each for name, each in files.items() if "test" not in name}, "no images in test/"),
        (lambda files: {"train/readme.txt": b"x"}, "no images in class folders"),
        (lambda files: {"readme.txt": b"x"}, "no images in class folders"),
        (lambda files: {}, "holds no files"),
    ],
)
def test_what_is_wrong_with_a_folder_or_zip_is_told(image_files, write_folder, write_zip, change, problem):
    files = change(image_files())
    for path in (write_folder(files), write_zip(files)):
        with pytest.raises(DataError, match=problem) as caught:
            load(path)
        assert str(path) in caught.value.message
        assert "\n" not in str(caught.value)


def test_sixteen_bit_images_are_refused(image_files, write_folder, encode):
    deep = encode(np.zeros((6, 5), dtype=np.uint16))
    with pytest.raises(DataError, match="pixels of kind I;16"):
        load(write_folder(image_files() | {"train/cat/deep.png": deep}))


def test_a_truncated_zip_is_refused(image_files, write_zip):
    path = write_zip(image_files())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="not a readable zip archive"):
        load(path)


def test_a_damaged_member_of_a_zip_is_named(image_files, write_zip):
    path = write_zip(image_files())
    content = bytearray(path.read_bytes())
    at = content.index(b"IDAT") + 10
    content[at] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train/cat/000\.png in .*pictures\.zip"):
        load(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(DataError, match="neither a folder nor a zip or tar archive"):
        load(tmp_path / "data.csv")


def write_tar(files, path, **options):
    with tarfile.open(path, "w" + options.pop("packing", ""), **options) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def refused(path, capsys, *problems):
    """The command line names the file in one line and exits with the code of data sets."""
    assert run(["data", "info", str(path)]) == 4
    err = capsys.readouterr().err
    assert str(path) in err
    for problem in problems:
        assert problem in err


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_packed_data_in_a_zip_is_named(image_files, tmp_path, packing, capsys):
    path = tmp_path / "packed.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in image_files().items():
            archive.writestr(name, content + bytes(2000))
    content = bytearray(path.read_bytes())
    first = 30 + len("train/cat/000.png")  # behind the header of the first member
    content[first + 9 : first + 60] = b"\xff" * 51
    path.write_bytes(content)
    refused(path, capsys, "cannot read train/cat/000.png")


def test_a_member_that_unpacks_to_more_than_it_claims_is_cut_off(image_files, tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in image_files().items():
            archive.writestr(name, content)
        archive.writestr("train/cat/bomb.png", bytes(1 << 22))
    content = path.read_bytes()
    path.write_bytes(content.replace((1 << 22).to_bytes(4, "little"), (8).to_bytes(4, "little")))
    asked = []
    whole = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda file, n=None: (asked.append(n), whole(file, n))[1])
    with pytest.raises(DataError, match=r"bomb\.png"):
        load(path)
    assert asked[-1] == 8


@pytest.mark.parametrize("packing", [":xz", ":gz", ":bz2"])
def test_damaged_packed_data_of_a_tar_is_refused(image_files, tmp_path, packing, capsys):
    noise = np.random.default_rng(0).bytes(50_000)  # the first members are whole, so it is a tar archive
    files = {name: content + noise for name, content in image_files().items()}
    path = write_tar(files, tmp_path / f"packed.tar.{packing[1:]}", packing=packing)
    content = bytearray(path.read_bytes())
    content[-4000:-12] = b"\xff" * 3988
    path.write_bytes(content)
    refused(path, capsys, "packed.tar")


@pytest.mark.parametrize("damage", [b"\xff" * 512, bytes(512)], ids=["noise", "zeros"])
@pytest.mark.parametrize("packing", ["", ":gz"])
def test_a_tar_with_a_damaged_header_in_the_middle_is_refused(image_files, tmp_path, damage, packing, capsys):
    path = write_tar(image_files(), tmp_path / "pictures.tar")
    assert len(load(path).train) == 8
    content = bytearray(path.read_bytes())
    at = content.index(b"test/cat/002.png")
    content[at : at + 512] = damage
    path.write_bytes(content)
    if packing:
        path = tmp_path / "pictures.tar.gz"
        path.write_bytes(gzip.compress(content))
    refused(path, capsys, "is damaged after member test/cat/001.png")


def test_a_tar_without_an_end_mark_is_read(image_files, tmp_path):
    path = write_tar(image_files(), tmp_path / "pictures.tar", format=tarfile.GNU_FORMAT)
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content + bytes(-len(content) % 512))
    assert len(load(path).test) == 8


def test_a_link_to_nothing_is_named(image_files, write_folder, capsys):
    folder = write_folder(image_files())
    (folder / "train/cat/gone.png").symlink_to("nowhere.png")
    refused(folder, capsys, "cannot read train/cat/gone.png", "No such file")


def test_names_that_are_not_utf8_are_read_and_printed(image_files, write_folder, tmp_path, capsys):
    """Of files, classes and the folder itself; the second time from the cache."""
    folder = write_folder(image_files(), tmp_path / os.fsdecode(b"s\xe9rie"))
    (folder / "train/cat/000.png").rename(folder / os.fsdecode(b"train/cat/\xe9t\xe9.png"))
    for split in ("train", "test"):
        (folder / split / "dog").rename(folder / split / os.fsdecode(b"\xe9l\xe9phant"))
    for _ in range(2):
        dataset = load(folder)
        assert (dataset.name, dataset.classes, len(dataset.train)) == ("s�rie", ("cat", "�l�phant"), 8)
    assert run(["data", "info", str(folder), "--json"]) == 0
    assert "s�rie" in capsys.readouterr().out


def test_a_zip_with_a_member_without_a_name_is_refused(image_files, write_zip, capsys):
    path = write_zip({"train/cat/a.png": b"x", "q": b"y"})
    content = path.read_bytes()
    at = content.rindex(b"PK\x01\x02")  # the directory's entry of q: its name becomes a comment
    entry = bytearray(content[at:])
    entry[28:30], entry[32:34] = b"\0\0", b"\1\0"
    path.write_bytes(content[:at] + entry)
    refused(path, capsys, "is not a readable zip archive")
