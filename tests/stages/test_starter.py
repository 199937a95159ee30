"""stages/starter.py: a recipe that is valid and loads its data, for whatever lies there."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import yaml
from PIL import Image

from understudy import data, kinds, recipe
from understudy.errors import DataError
from understudy.stages.starter import guess_label, starter

ROWS = 60


def table(path, header="age,income,town", last=lambda i: "Rome" if i % 2 else "Oslo"):
    path.write_text((header + "\n" if header else "") + "".join(f"{20 + i % 7},{i * 1.5},{last(i)}\n" for i in range(ROWS)))
    return path


def check(path):
    """The recipe of a path: plain YAML, complete, accepted, and its data loads and splits."""
    found = starter(str(path))
    assert yaml.safe_load(yaml.safe_dump(found)) == found
    whole = recipe.load(found)
    examples = kinds.configure("datasets", whole.data.kind, whole.data.options).load()
    parts = data.split(examples, whole.data.split.validation, whole.data.split.test, 0)
    assert min(len(parts.train), len(parts.validation), len(parts.test)) > 0
    return found


@pytest.mark.parametrize("names, expected", [
    (["a", "Label", "b"], "Label"), (["y", "target"], "target"), (["a", "b"], "b"), (["class", "income"], "class")])
def test_label_by_name_else_the_last(names, expected):
    assert guess_label(names)[0] == expected


def test_table(tmp_path, caplog):
    found = check(table(tmp_path / "my people (1).csv"))
    assert found["data"]["label"] == "town" and found["name"] == "my-people-1"
    assert "label column: 'town', because it is the last one" in caplog.text, "a guess is said aloud"


def test_table_with_a_named_label(tmp_path, caplog):
    assert check(table(tmp_path / "a.csv", "target,income,town", lambda i: f"t{i % 5}"))["data"]["label"] == "target"
    assert "by its name" in caplog.text


def test_table_without_header(tmp_path):
    found = check(table(tmp_path / "a.data", "", lambda i: i % 2))
    assert found["data"]["header"] is False and found["data"]["label"] == "column_2"


def test_parquet(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"y": ["p", "q"] * 30, "x": [i * 0.5 for i in range(ROWS)]}), tmp_path / "a.parquet")
    assert check(tmp_path / "a.parquet")["data"]["label"] == "y"


def test_idx_folder(tmp_path):
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x0803, 20, 8, 8) + bytes(range(256)) * 5)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, 20) + bytes([0, 1] * 10))
    found = check(tmp_path)
    assert found["data"]["kind"] == "idx" and "test" not in found["data"]["split"], "the data brings its own test part"


@pytest.mark.parametrize("sizes", [[8], [8, 12]])
def test_class_folders(tmp_path, sizes, caplog):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(10):
            side = sizes[i % len(sizes)]
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    found = check(tmp_path)
    assert found["data"].get("size") == ([64, 64] if len(sizes) == 2 else None)
    assert ("resized" in caplog.text) == (len(sizes) == 2)


def test_embedded_data():
    assert check("digits")["data"] == {"kind": "builtin", "name": "digits", "split": {"validation": 0.1, "test": 0.5}}


def test_what_is_no_data_is_refused(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "a.docx", tmp_path / "none.csv", "didgits", tmp_path / "folder"):
        with pytest.raises(DataError):
            starter(str(path))
