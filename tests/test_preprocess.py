"""preprocess.py: encode and normalise against plain formulas, fitted on training rows only, complete as JSON."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as PILImage

from understudy import readers
from understudy.errors import DataError, RecipeError
from understudy.preprocess import KINDS, Preprocess

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
TABLE = {"n": np.array([1.0, np.nan, 3.0, 8.0]), "c": np.array(["a", "b", "", "a"], dtype=object)}


def test_colour_images_are_standardised_per_channel():
    """Mean and deviation of the wrong axis would still train, worse: compare with numpy on float64."""
    found = Preprocess.fit("image", COLOUR)
    assert found.shape == (3, 6, 5)
    encoded = found.encode(COLOUR)
    assert encoded.dtype == np.uint8 and encoded.flags.c_contiguous and encoded.flags.writeable
    np.testing.assert_array_equal(encoded, COLOUR.transpose(0, 3, 1, 2))
    exact = COLOUR.transpose(0, 3, 1, 2) / 255.0
    exact = (exact - exact.mean((0, 2, 3), keepdims=True)) / exact.std((0, 2, 3), keepdims=True)
    inputs = found.normalise(encoded)
    assert inputs.dtype == np.float32
    np.testing.assert_allclose(inputs, exact, atol=2e-6)  # float32 of values up to 2


@pytest.mark.parametrize("count", [1, 255, 257, 1000])
def test_statistics_in_blocks_equal_those_in_one_go(count):
    images = RNG.integers(0, 256, (count, 3, 4, 3), dtype=np.uint8)
    found = Preprocess.fit("image", images)
    np.testing.assert_allclose(found.mean, images.mean((0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(found.std, images.std((0, 1, 2)) / 255, rtol=1e-12)
    floats = images.astype(np.float32) / 7
    np.testing.assert_allclose(Preprocess.fit("image", floats, maximum=1.0).std, floats.std((0, 1, 2), dtype=np.float64), rtol=1e-9)


def test_grey_images_and_another_white():
    images = RNG.integers(0, 17, (30, 8, 8), dtype=np.uint8)
    unit = Preprocess.fit("image", images, maximum=16.0, mean=[0], std=[1])
    np.testing.assert_allclose(unit.normalise(unit.encode(images)), images[:, None] / 16)
    measured = Preprocess.fit("image", images, maximum=16.0)
    inputs = measured.normalise(measured.encode(images))
    assert abs(inputs.mean()) < 1e-6 and abs(inputs.std() - 1) < 1e-6


def test_given_statistics_are_used_as_given():
    found = Preprocess.fit("image", COLOUR, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    np.testing.assert_allclose(found.normalise(found.encode(COLOUR))[3, 1, 2, 4], (COLOUR[3, 2, 4, 1] / 255 - 0.456) / 0.224, rtol=1e-5)
    with pytest.raises(RecipeError, match="mean has the wrong length"):
        Preprocess.fit("image", COLOUR, mean=(0.5, 0.5))
    with pytest.raises(RecipeError, match="mean can.t be set"):
        Preprocess.fit("vector", np.eye(3), mean=(0.5,))


def test_images_of_another_size_or_colour_are_brought_to_the_trained_one():
    found = Preprocess.fit("image", COLOUR)
    mixed = [COLOUR[0], RNG.integers(0, 256, (12, 10), dtype=np.uint8)]
    encoded = found.encode(mixed)
    np.testing.assert_array_equal(encoded[0], COLOUR[0].transpose(2, 0, 1))
    np.testing.assert_array_equal(encoded[1], readers.resized(mixed[1], (6, 5), 3).transpose(2, 0, 1))
    grey = Preprocess.fit("image", COLOUR[..., 0])
    np.testing.assert_array_equal(grey.encode(COLOUR)[:, 0],
                                  np.stack([np.array(PILImage.fromarray(image).convert("L")) for image in COLOUR]))


@pytest.mark.parametrize("raw, message", [
    (COLOUR / 255, "another type"), (COLOUR.astype(np.int64), "another type"), ([], "another type"), (COLOUR[0, :, 0, 0], "another shape"),
    (COLOUR[:, :0], "another shape")])
def test_images_that_do_not_fit_are_refused(raw, message):
    """0..1 floats divided by 255 again would all be black."""
    with pytest.raises(DataError, match=message):
        Preprocess.fit("image", COLOUR).encode(raw)


def test_constant_image_channel_stays_finite():
    found = Preprocess.fit("image", np.full((4, 3, 3), 7, np.uint8))
    assert np.isfinite(found.normalise(found.encode(np.full((1, 3, 3), 200, np.uint8)))).all()


def test_vectors_are_standardised_and_keep_their_digits():
    """Time stamps have a mean of 10**9 and differ by seconds: taking the mean off in float32 would leave steps of 64 seconds."""
    raw = np.stack([1.7e9 + np.arange(50.0), RNG.normal(size=50), np.full(50, 3.0)], axis=1)
    found = Preprocess.fit("vector", raw[:40])
    inputs = found.normalise(found.encode(raw))
    expected = (raw - raw[:40].mean(0)) / np.where(raw[:40].std(0) > 0, raw[:40].std(0), 1)
    np.testing.assert_allclose(inputs, expected, atol=1e-5)
    assert inputs.dtype == np.float32 and found.shape == (3,)


@pytest.mark.parametrize("raw, message", [(np.eye(4), "another shape"), (np.ones(3), "another shape"), ([["a", "b", "c"]], "another shape"),
                                          ([[1, np.nan, 2]], "not finite")])
def test_vectors_that_do_not_fit_are_refused(raw, message):
    with pytest.raises(DataError, match=message):
        Preprocess.fit("vector", np.eye(3)).encode(raw)


def test_table_encodes_by_name_and_ignores_other_columns():
    found = Preprocess.fit("table", TABLE)
    assert found.shape == (2 + 4,)
    expected = found.encode(TABLE)
    shuffled = {"other": [1, 2, 3, 4], "c": ["a", "b", "?", "a"], "n": ["1", "NA", "3", "8"]}
    np.testing.assert_array_equal(found.encode(shuffled), expected)
    np.testing.assert_array_equal(found.normalise(expected), expected)
    np.testing.assert_array_equal(expected[:, 1], [0, 1, 0, 0])
    with pytest.raises(DataError, match="no 'c'"):
        found.encode({"n": [1]})
    with pytest.raises(DataError, match="differ in length"):
        found.encode({"n": [1, 2], "c": ["a"]})
    for column, raw in (("n", {"n": 1, "c": "a"}), ("c", {"n": [1], "c": "a"}), ("n", {"n": [[1]], "c": ["a"]})):
        with pytest.raises(DataError, match=f"column '{column}' is no list of values.*: \\[VALUE\\]"):
            found.encode(raw)


def test_statistics_come_from_the_training_rows_alone():
    """Fitting on all rows would leak the test set into training; changing only test rows must change nothing."""
    poisoned = {"n": TABLE["n"].copy(), "c": TABLE["c"].copy()}
    poisoned["n"][3], poisoned["c"][3] = 1e6, "zzz"
    assert Preprocess.fit("table", {k: v[:3] for k, v in poisoned.items()}) == Preprocess.fit("table", {k: v[:3] for k, v in TABLE.items()})
    encoded = Preprocess.fit("table", {k: v[:3] for k, v in TABLE.items()}).encode(poisoned)
    assert encoded[3, -2] == 1, "a category that training did not know is 'other'"


@pytest.mark.parametrize("kind, raw", [("image", COLOUR), ("image", COLOUR[..., 0]), ("image", (COLOUR / 300).astype(np.float32)),
                                       ("vector", RNG.normal(size=(9, 4))), ("table", TABLE)])
def test_json_round_trip_is_exact(kind, raw):
    """A preprocess that comes back a little different shifts every input of the shipped student."""
    found = Preprocess.fit(kind, raw)
    again = Preprocess.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again == found
    np.testing.assert_array_equal(again.normalise(again.encode(raw)), found.normalise(found.encode(raw)))


GOOD = {"image": {"kind": "image", "size": [2, 2], "channels": 1, "mean": [0.5], "std": [1.0], "maximum": 255.0, "dtype": "uint8"},
        "vector": {"kind": "vector", "mean": [0.0], "std": [1.0]},
        "table": {"kind": "table", "columns": [{"name": "n", "type": "numeric", "mean": 0.0, "std": 1.0, "missing": False}]}}


@pytest.mark.parametrize("kind, change", [
    ("image", {"std": [0.0]}), ("image", {"channels": 2}), ("image", {"size": [2]}), ("image", {"size": ["2", "2"]}),
    ("image", {"mean": [float("nan")]}),
    ("image", {"dtype": "object"}), ("image", {"surprise": 1}), ("image", {"maximum": 0}), ("image", {"kind": "__class__"}),
    ("image", {"mean": None}),
    ("vector", {"std": [-1.0]}), ("vector", {"std": []}), ("table", {"columns": [{"name": "n"}]}), ("table", {"columns": 3}),
    ("table", {"columns": [{"name": "n", "type": "numeric", "mean": 0.0, "std": 0.0, "missing": False}]})])
def test_damaged_dicts_are_refused(kind, change):
    """A config.json is a file that anybody may have edited."""
    Preprocess.from_dict(GOOD[kind])
    with pytest.raises(DataError):
        Preprocess.from_dict(GOOD[kind] | change)
    for key in GOOD[kind]:
        if key not in ("maximum", "dtype"):
            with pytest.raises(DataError):
                Preprocess.from_dict({name: value for name, value in GOOD[kind].items() if name != key})


def test_no_rows_and_unknown_kinds_are_refused():
    for kind, raw in (("image", COLOUR[:0]), ("vector", np.zeros((0, 3))), ("table", {"a": np.zeros(0)})):
        with pytest.raises(DataError, match="nothing to fit"):
            Preprocess.fit(kind, raw)
    with pytest.raises(RecipeError, match="unknown kind"):
        Preprocess.fit("sound", ["a"])


def test_reading_an_image_file_gives_the_training_input(tmp_path):
    """Prediction from the file must give the student what training gave it."""
    found = Preprocess.fit("image", COLOUR)
    PILImage.fromarray(COLOUR[4]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(found.encode(found.read_input(tmp_path / "a.png")), found.encode(COLOUR[4:5]))
    np.save(tmp_path / "one.npy", COLOUR[4])
    np.save(tmp_path / "all.npy", COLOUR)
    np.testing.assert_array_equal(found.encode(found.read_input(tmp_path / "one.npy")), found.encode(COLOUR[4:5]))
    np.testing.assert_array_equal(found.encode(found.read_input(tmp_path / "all.npy")), found.encode(COLOUR))


def test_image_file_for_data_whose_white_is_16(tmp_path):
    digits = RNG.integers(0, 17, (5, 8, 8), dtype=np.uint8)
    found = Preprocess.fit("image", digits, maximum=16.0)
    PILImage.fromarray((digits[0] * 255.0 / 16).round().astype(np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(found.encode(found.read_input(tmp_path / "a.png")), found.encode(digits[:1]))


def test_image_file_for_a_student_of_float_arrays_is_refused(tmp_path):
    found = Preprocess.fit("image", (COLOUR / 300).astype(np.float32), maximum=1.0)
    PILImage.fromarray(COLOUR[0]).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="float arrays"):
        found.read_input(tmp_path / "a.png")


def test_reading_vectors(tmp_path):
    raw = RNG.normal(size=(3, 2))
    found = Preprocess.fit("vector", raw)
    np.save(tmp_path / "a.npy", raw)
    lines = [",".join(map(repr, row.tolist())) for row in raw]
    (tmp_path / "bare.csv").write_text("\n".join(lines))
    (tmp_path / "named.csv").write_text("\n".join(["a,b", *lines]))
    for name in ("a.npy", "bare.csv", "named.csv"):
        np.testing.assert_array_equal(found.read_input(tmp_path / name), raw)
    (tmp_path / "one.csv").write_text(lines[0])
    np.testing.assert_array_equal(found.read_input(tmp_path / "one.csv"), raw[:1])
    (tmp_path / "bad.csv").write_text("1,2\n3,x\n")
    with pytest.raises(DataError, match="'x'"):
        found.read_input(tmp_path / "bad.csv")


def test_reading_tables(tmp_path):
    found = Preprocess.fit("table", TABLE)
    (tmp_path / "a.csv").write_text("c,n,label\na,1,yes\nb,,no\n?,3,\na,8,yes\n")
    np.testing.assert_array_equal(found.encode(found.read_input(tmp_path / "a.csv")), found.encode(TABLE))
    bare = Preprocess.fit("table", {"column_0": TABLE["n"], "column_2": TABLE["c"]})
    (tmp_path / "bare.csv").write_text("1,x,a\n,x,b\n3,x,\n8,x,a\n")
    np.testing.assert_array_equal(bare.encode(bare.read_input(tmp_path / "bare.csv")),
                                  bare.encode({"column_0": TABLE["n"], "column_2": TABLE["c"]}))


def test_it_runs_without_torch():
    """A runtime on a device reuses these files with numpy alone (runtime/)."""
    code = ("import sys; sys.modules.update(dict.fromkeys(('torch', 'pyarrow', 'sklearn', 'scipy', 'PIL', 'tokenizers')));"
            "from understudy.preprocess import audio, image, table, text, vector; import understudy.static_embedding")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_kinds_are_final():
    for kind in KINDS:
        importlib.import_module(f"understudy.preprocess.{kind}")
    every = {Preprocess}
    while more := {below for one in every for below in one.__subclasses__()} - every:
        every |= more
    final = {one.__name__ for one in every if not one.__subclasses__()}
    assert final == {"Image", "Vector", "Table", "Text", "Passages", "Audio"}
    assert all(inspect.isabstract(one) for one in every if one.__name__ not in final), "a kind that another one is made of"
