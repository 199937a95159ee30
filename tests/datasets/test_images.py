"""datasets/images.py: folders of classes and sheets, pixel for pixel."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from understudy import readers
from understudy.data import split
from understudy.datasets.images import Dataset
from understudy.errors import DataError, RecipeError


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (30, 5, 4), dtype=np.uint8)


@pytest.fixture
def class_folders(tmp_path, images):
    """train/ and test/ with two classes and an unlabelled folder."""
    folder = tmp_path / "classes"
    for i, image in enumerate(images):
        part = "test" if i >= 20 else "train"
        name = ("cat", "dog", "unlabelled" if part == "train" else "cat")[i % 3]
        (folder / part / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / part / name / f"{i:02d}.png")
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    (folder / "train" / "cat" / ".hidden.png").write_text("not an image")
    return folder


@pytest.fixture
def sheets(tmp_path):
    """Two sheets of 2 x 3 tiles of 4 pixels, 11 labels (the last tile is blank)."""
    folder = tmp_path / "sheets"
    folder.mkdir()
    tiles = np.random.default_rng(1).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    tiles[11] = 0
    for k in range(2):
        sheet = np.zeros((8, 12, 3), np.uint8)
        for i in range(6):
            row, column = divmod(i, 3)
            sheet[row * 4:row * 4 + 4, column * 4:column * 4 + 4] = tiles[6 * k + i]
        Image.fromarray(sheet).save(folder / f"train_{k}.png")
    (folder / "labels.u8").write_bytes(bytes(i % 2 for i in range(11)))
    (folder / "classes.txt").write_text("night\nday\n")
    return folder, tiles


def test_folders_of_classes(class_folders, images):
    found = Dataset(str(class_folders)).load()
    assert found.classes == ("cat", "dog") and found.raw.shape == (30, 5, 4)
    for name, image, label, part in zip(found.ids, found.raw, found.labels, found.split, strict=True):
        word, folder, file = name.split("/")
        np.testing.assert_array_equal(image, images[int(file[:2])])
        assert part == word and label == {"cat": 0, "dog": 1, "unlabelled": -1}[folder]
    parts = split(found, 0.0, None, 0)
    assert len(parts.test) == 10 and parts.unlabelled == 6


def test_ids_do_not_depend_on_where_the_folder_lies(class_folders, tmp_path):
    """Absolute paths as ids would make a moved data set another one, and its store useless."""
    before = Dataset(str(class_folders)).load()
    class_folders.rename(tmp_path / "elsewhere")
    after = Dataset(str(tmp_path / "elsewhere")).load()
    assert after.ids.tolist() == before.ids.tolist() and after.fingerprint == before.fingerprint


def test_mixed_sizes_and_colours(class_folders, images):
    Image.fromarray(np.dstack([images[0]] * 3)).resize((9, 9)).save(class_folders / "train" / "cat" / "colour.png")
    with pytest.raises(DataError, match="images differ in size"):
        Dataset(str(class_folders)).load()
    found = Dataset(str(class_folders), size=(6, 3)).load()
    assert found.raw.shape == (31, 6, 3, 3), "colour if any has it"
    row = found.ids.tolist().index("train/cat/00.png")
    np.testing.assert_array_equal(found.raw[row], readers.resized(images[0], (6, 3), 3))
    assert Dataset(str(class_folders), size=(6, 3), channels=1).load().raw.shape == (31, 6, 3)


def test_prediction_sees_what_training_saw(class_folders, tmp_path):
    """Resized one way for training and another for prediction, the student would meet images that it never learnt."""
    photo = np.random.default_rng(3).integers(0, 256, (23, 17, 3), dtype=np.uint8)
    Image.fromarray(photo).save(class_folders / "train" / "cat" / "photo.png")
    found = Dataset(str(class_folders), size=(6, 5)).load()
    row = found.ids.tolist().index("train/cat/photo.png")
    preprocess = found.fit_preprocess(np.arange(10))
    file = class_folders / "train" / "cat" / "photo.png"
    np.testing.assert_array_equal(preprocess.encode(preprocess.read_input(file))[0], preprocess.encode(found.raw)[row])


def test_limits_keep_every_class(class_folders):
    """The first images of a folder in order would all be of one class."""
    found = Dataset(str(class_folders), limit=7, test_limit=2).load()
    counts = {(part, label): int(((found.split == part) & (found.labels == label)).sum()) for part in ("train", "test") for label in (-1, 0,
        1)}
    assert counts == {("train", 0): 3, ("train", 1): 2, ("train", -1): 2, ("test", 0): 1, ("test", 1): 1, ("test", -1): 0}


def test_folders_without_a_split_and_a_class_named_train(tmp_path):
    for name in ("train", "plane"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4), 9).save(tmp_path / name / "a.png")
    found = Dataset(str(tmp_path)).load()
    assert found.classes == ("plane", "train") and set(found.split) == {""}


def test_hostile_names_are_kept(tmp_path):
    names = ["<img src=x onerror=alert(1)>", "a;rm -rf ..", "a'b\"c", "{0}%s", "ü\u202e"]
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4), 9).save(tmp_path / name / f"{name}.png")
    found = Dataset(str(tmp_path)).load()
    assert found.classes == tuple(sorted(names)) and set(found.ids) == {f"{name}/{name}.png" for name in names}
    assert len(found.fingerprint) == 64 and len(set(found.keys.tolist())) == len(names)


def test_names_that_are_no_text(tmp_path):
    """File names are bytes; one that is not UTF-8 must not end the run with a traceback."""
    folder = tmp_path / "a"
    folder.mkdir()
    (tmp_path / "b").mkdir()
    Image.new("L", (4, 4), 9).save(tmp_path / "b" / "x.png")
    try:
        Image.new("L", (4, 4), 9).save(folder / b"\xff.png".decode("utf-8", "surrogateescape"))
    except (OSError, UnicodeError):
        pytest.skip("this file system takes only UTF-8")
    found = Dataset(str(tmp_path)).load()
    assert len(found) == 2 and len(found.fingerprint) == 64 and len(set(found.keys.tolist())) == 2


@pytest.mark.parametrize("change, message", [
    (lambda f: (f / "train" / "cat" / "00.png").write_bytes((f / "train" / "cat" / "00.png").read_bytes()[:60]),
     r"00\.png.*can't be decoded"),
    (lambda f: (f / "train" / "cat" / "00.png").write_bytes(b""), r"00\.png.*can't be decoded"),
    (lambda f: (f / "train" / "cow").mkdir(), "cow.*holds no images"),
    (lambda f: (f / "extra" / "more").mkdir(parents=True), "'extra' beside"),
    (lambda f: [(f / "test" / "cow").mkdir(), Image.new("L", (4, 5)).save(f / "test" / "cow" / "a.png")],
     "unknown class in test: got 'cow' in 'test/cow/a.png'")])
def test_broken_folders_are_refused(class_folders, change, message):
    change(class_folders)
    with pytest.raises(DataError, match=message):
        split(Dataset(str(class_folders)).load(), 0.0, None, 0)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match="nothing there"):
        Dataset(str(tmp_path / "none")).load()
    with pytest.raises(DataError, match="no folders in it"):
        Dataset(str(tmp_path)).load()


# --------------------------------------------------------------------- sheets

def load(folder, **options):
    return Dataset(str(folder), **({"sheets": "train_*.png", "labels": "labels.u8", "classes": "classes.txt", "tile": 4} | options)).load()


def test_sheets_are_cut_row_by_row(sheets):
    """Cut column by column, every image would have another one's label."""
    folder, tiles = sheets
    found = load(folder)
    np.testing.assert_array_equal(found.raw, tiles[:11])
    assert found.labels.tolist() == [i % 2 for i in range(11)] and found.classes == ("night", "day")
    assert found.ids[10] == "train/000010" and set(found.split) == {"train"}
    grey = load(folder, channels=1)
    np.testing.assert_array_equal(grey.raw[3], readers.resized(tiles[3], (4, 4), 1))


def test_sheets_with_limit_test_and_without_labels(sheets):
    folder, tiles = sheets
    np.testing.assert_array_equal(load(folder, limit=5).raw, tiles[:5])
    np.testing.assert_array_equal(load(folder, limit=7).raw, tiles[:7])
    (folder / "test.u8").write_bytes(bytes([1, 0, 1, 0, 1, 0]))
    found = load(folder, sheets="train_0.png", labels=None, test_sheets="train_1.png", test_labels="test.u8", test_limit=4)
    assert found.labels.tolist() == [-1] * 6 + [1, 0, 1, 0] and found.ids[6] == "test/000000"
    np.testing.assert_array_equal(found.raw[6:], tiles[6:10])


@pytest.mark.parametrize("change, options, message", [
    (lambda f: (f / "labels.u8").write_bytes(bytes(13)), {}, "13 labels"),
    (lambda f: (f / "labels.u8").write_bytes(bytes(5)), {}, "5 labels"),
    (lambda f: (f / "labels.u8").write_bytes(bytes(6)), {}, "6 labels"), (lambda f: (f / "labels.u8").write_bytes(b""), {}, "0 labels"),
    (lambda f: (f / "labels.u8").write_bytes(bytes([0, 2] * 5 + [1])), {}, "label out of range in example 'train/000001'"),
    (lambda f: None, {"tile": 5}, "multiples of 5"), (lambda f: None, {"sheets": "none_*.png"}, "0 sheets"),
    (lambda f: None, {"labels": "none.u8"}, "can't be read"),
    (lambda f: (f / "train_1.png").write_bytes(b"no"), {}, r"train_1\.png.*can't be decoded"),
    (lambda f: Image.new("L", (12, 8)).save(f / "train_1.png"), {}, "some sheets have colour")])
def test_sheets_that_do_not_fit_are_refused(sheets, change, options, message):
    change(sheets[0])
    with pytest.raises(DataError, match=message):
        load(sheets[0], **options)


@pytest.mark.parametrize("options", [
    {"channels": 2}, {"size": (0, 4)}, {"limit": 0}, {"tile": 0}, {"labels": "a"}, {"sheets": "a", "test_labels": "b"},
    {"sheets": "a", "test_sheets": "b"},
    {"sheets": ""}, {"sheets": "/etc/*"}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(RecipeError):
        Dataset("x", **options)


CIFAR = {"sheets": "lossless_train_*.webp", "labels": "labels_train.u8", "classes": "classes.txt", "test_sheets": "lossless_test_*.webp",
         "test_labels": "labels_test_first1000.u8"}


def test_first_images_of_cifar10(data_folder):
    """Against a cut by hand, as SOURCE.txt describes it: image i of sheet k at row i // 40, column i % 40."""
    found = Dataset(str(data_folder / "cifar10"), limit=1500, **CIFAR).load()
    assert len(found) == 2500 and found.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3] and found.classes[6] == "frog"
    sheet = np.array(Image.open(data_folder / "cifar10" / "lossless_train_01.webp").convert("RGB"))
    for i in (0, 41, 499):
        row, column = divmod(i, 40)
        np.testing.assert_array_equal(found.raw[1000 + i], sheet[32 * row:32 * row + 32, 32 * column:32 * column + 32])


@pytest.mark.slow
def test_all_of_cifar10(data_folder):
    found = Dataset(str(data_folder / "cifar10"), **CIFAR).load()
    assert found.raw.shape == (51_000, 32, 32, 3) and np.bincount(found.labels[:50_000]).tolist() == [5000] * 10
    np.testing.assert_allclose(found.fit_preprocess(np.arange(50_000)).mean, [0.4914, 0.4822, 0.4465], atol=5e-5)  # as published
