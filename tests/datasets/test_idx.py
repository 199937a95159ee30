"""datasets/idx.py: every byte in its place, every broken file refused."""

from __future__ import annotations

import gzip
import struct
import time

import numpy as np
import pytest

from understudy.data import split
from understudy.datasets.idx import Dataset
from understudy.errors import DataError, RecipeError


def idx_bytes(array):
    array = np.asarray(array, dtype=np.uint8)
    return struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (30, 5, 4), dtype=np.uint8)


@pytest.fixture
def idx_folder(tmp_path, images):
    """20 training and 10 test images of 3 classes, some files packed."""
    folder = tmp_path / "idx"
    folder.mkdir()
    labels = np.arange(30) % 3
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images[:20])))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels[:20]))
    (folder / "t10k-images.idx3-ubyte").write_bytes(idx_bytes(images[20:]))
    (folder / "t10k-labels.idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels[20:])))
    return folder


def test_folder_with_packed_and_plain_files(idx_folder, images):
    found = Dataset(str(idx_folder)).load()
    np.testing.assert_array_equal(found.raw, images)
    assert found.labels.tolist() == [i % 3 for i in range(30)] and found.classes == ("0", "1", "2")
    assert found.ids[0] == "train/000000" and found.ids[-1] == "test/000009"
    parts = split(found, 0.2, None, 0)
    assert parts.test.tolist() == list(range(20, 30)) and len(parts.validation) == 4


def test_named_files(idx_folder, images):
    found = Dataset(str(idx_folder / "t10k-images.idx3-ubyte"), labels="t10k-labels.idx1-ubyte.gz", classes=("a", "b", "c"), limit=4).load()
    np.testing.assert_array_equal(found.raw, images[20:24])
    assert found.classes == ("a", "b", "c") and set(found.split) == {"train"}
    assert (Dataset(str(idx_folder / "t10k-images.idx3-ubyte")).load().labels == -1).all(), "no labels: unlabelled"


def test_limits_take_the_first(idx_folder, images):
    assert Dataset(str(idx_folder), limit=4, test_limit=1).load().labels.tolist() == [0, 1, 2, 0, 2]
    found = Dataset(str(idx_folder), limit=5, test_limit=2).load()
    np.testing.assert_array_equal(found.raw, np.concatenate([images[:5], images[20:22]]))
    assert found.ids.tolist() == [*(f"train/{i:06d}" for i in range(5)), "test/000000", "test/000001"]


def test_folder_without_a_test_part(idx_folder):
    for name in ("t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte.gz"):
        (idx_folder / name).unlink()
    assert set(Dataset(str(idx_folder)).load().split) == {"train"}


@pytest.mark.parametrize("name, data, message", [
    ("train-images-idx3-ubyte.gz", None, "no file of train images"), ("t10k-labels.idx1-ubyte.gz", None, "no file of test labels"),
    ("train-labels-copy", idx_bytes([0]), "more than one file of train labels"),
    ("train-images-idx3-ubyte.gz", gzip.compress(idx_bytes(np.zeros((20, 5, 4))), mtime=0)[:-20], "not a whole gzip"),
    ("train-images-idx3-ubyte.gz", idx_bytes(np.zeros((20, 5, 4)))[:-1], "cut off.*399 bytes.*400 = 20 x 5 x 4"),
    ("train-images-idx3-ubyte.gz", idx_bytes(np.zeros((20, 5, 4))) + b"\0", "too long"),
    ("train-images-idx3-ubyte.gz", struct.pack(">4I", 0x0803, 2**31, 2**31, 2**31), "cut off"),
    ("train-images-idx3-ubyte.gz", idx_bytes(np.zeros(20)), "not an idx file of 3"), ("train-images-idx3-ubyte.gz", b"", "not an idx file"),
    ("train-images-idx3-ubyte.gz", b"\x00\x00\x08\x03\x00", "not an idx file"),
    ("train-images-idx3-ubyte.gz", b"\x00\x00\x0d\x03" + bytes(400), "not an idx"),
    ("train-images-idx3-ubyte.gz", idx_bytes(np.zeros((0, 5, 4))), "is empty"),
    ("train-images-idx3-ubyte.gz", idx_bytes(np.zeros((20, 5, 5))), "differ in size"),
    ("train-labels-idx1-ubyte", idx_bytes(np.zeros(19)), "19 labels, expected 20"),
    ("t10k-labels.idx1-ubyte.gz", idx_bytes(np.zeros(11)), "11 labels, expected 10")])
def test_broken_files_are_refused_by_name(idx_folder, name, data, message):
    """A cut file read as far as it goes would give images of noise, or other images' labels."""
    (idx_folder / name).unlink(missing_ok=True)
    if data is not None:
        (idx_folder / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        Dataset(str(idx_folder)).load()


def test_other_mistakes(idx_folder):
    with pytest.raises(DataError, match="can't be read"):
        Dataset(str(idx_folder / "none")).load()
    with pytest.raises(DataError, match="label out of range in example 'train/000002'"):
        Dataset(str(idx_folder), classes=("a", "b")).load()
    (idx_folder / "t10k-labels.idx1-ubyte.gz").write_bytes(idx_bytes([7] * 10))
    with pytest.raises(DataError, match="unknown class in test: got '7'"):
        split(Dataset(str(idx_folder)).load(), 0.0, None, 0)
    for options in ({"limit": 0}, {"test_limit": -1}):
        with pytest.raises(RecipeError, match="out of range"):
            Dataset("x", **options)


def test_mnist_as_published(data_folder):
    """60,000 + 10,000 images; class counts and pixel mean as known for the original files; loads in about half a second."""
    start = time.process_time()
    found = Dataset(str(data_folder / "mnist")).load()
    assert time.process_time() - start < 2.0
    assert found.raw.shape == (70_000, 28, 28)
    assert np.bincount(found.labels[:60_000]).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(found.labels[60_000:]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    preprocess = found.fit_preprocess(np.arange(60_000))
    assert preprocess.mean == pytest.approx([0.1307], abs=5e-5) and preprocess.std == pytest.approx([0.3081], abs=5e-5)
