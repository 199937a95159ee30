"""One battery over every file in datasets/: what the rest of the system takes for granted of examples."""

from __future__ import annotations

import dataclasses
import gzip
import json
import struct
import wave

import numpy as np
import pytest
import torch
from PIL import Image

from understudy import data, kinds, tokens
from understudy.errors import DataError, RecipeError
from understudy.preprocess import Preprocess

LABELS = [i % 3 for i in range(60)]


def _idx(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(struct.pack(">4I", 0x0803, 60, 8, 8) + pixels.tobytes()))
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, 60) + bytes(LABELS))
    return {"path": str(folder)}


def _images(folder):
    for i, label in enumerate(LABELS):
        (folder / f"class {label}").mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"class {label}" / f"{i}.png")
    return {"path": str(folder), "mean": [0.5, 0.5, 0.5]}


def _table(folder):
    (folder / "a.csv").write_text("a,b,y\n" + "".join(f"{i * 0.7:.2f},{'pqrs?'[i % 5]},{label}\n" for i, label in enumerate(LABELS)))
    return {"path": str(folder / "a.csv"), "label": "y", "types": {"a": "numeric"}}


def _text(folder):
    rows = [{"text": f"turn the light {'on' if i % 2 else 'off'} {i}", "label": f"class {label}"} for i, label in enumerate(LABELS)]
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return {"path": str(folder / "a.jsonl")}


def _corpus(folder):
    (folder / "a.txt").write_text("\n".join(f"the light is {'on' if i % 2 else 'off'} at {i}" for i in range(400)))
    return {"path": str(folder / "a.txt"), "documents": "line", "passage": 64}


def _pairs(folder):
    said = [f"the light is {'on' if i % 2 else 'off'} at {i}" for i in range(60)]
    rows = [f"{one},{other},{i % 5}" for i, (one, other) in enumerate(zip(said[::2], said[1::2], strict=True))]
    (folder / "a.csv").write_text("sentence1,sentence2,score\n" + "\n".join(rows))
    (folder / "more.txt").write_text("turn the light on\nturn the light off\n")
    return {"path": str(folder / "a.csv"), "unlabelled_path": str(folder / "more.txt")}


def _audio(folder):
    for i, label in enumerate(LABELS):
        said = np.random.default_rng(i).integers(-9000, 9000, 900 + 10 * i).astype("<i2")
        with wave.open(str(folder / f"{label}_{'abc'[i // 20]}_{i}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(said.tobytes())
    return {"path": str(folder), "files": "{label}_{group}_*.wav", "test_groups": ["b"], "seconds": 0.15, "bands": 10}


SAMPLES = {"audio": _audio, "builtin": lambda folder: {"name": "iris"}, "corpus": _corpus, "idx": _idx, "images": _images,
           "pairs": _pairs, "table": _table, "text": _text}
"""kind -> a function that makes a small data set of it and gives its options."""


def reading(found):
    """What a preprocess of these examples needs that they don't say themselves."""
    if found.kind == "passages":
        return {"tokenizer": tokens.train("bpe", ["the light is on off at"], 300, lowercase=False, closed=False), "length": 99}
    return {"tokenizer": tokens.train("words", ["turn the light on off"], 300)} if found.kind in ("text", "sentences") else {}


@pytest.fixture(params=kinds.names("datasets"))
def dataset(request, tmp_path):
    assert request.param in SAMPLES, f"datasets/{request.param}.py needs a sample here"
    return kinds.configure("datasets", request.param, SAMPLES[request.param](tmp_path))


def test_it_is_a_frozen_documented_record(dataset):
    assert dataclasses.is_dataclass(dataset) and type(dataset).__name__ == "Dataset" and len(type(dataset).__doc__) > 200
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(dataset, dataclasses.fields(dataset)[0].name, "other")


def test_configuration_survives_a_round_trip(dataset):
    """A resolved recipe that gave another data set would not reproduce the run."""
    kind = type(dataset).__module__.rsplit(".", 1)[1]
    plain = json.loads(json.dumps(dataclasses.asdict(dataset)))
    again = kinds.configure("datasets", kind, plain)
    assert again == dataset and again.load().fingerprint == dataset.load().fingerprint


def test_unknown_fields_are_refused(dataset):
    kind = type(dataset).__module__.rsplit(".", 1)[1]
    with pytest.raises(RecipeError, match="unknown field"):
        kinds.configure("datasets", kind, dataclasses.asdict(dataset) | {"pathh": "x"})


def test_a_second_load_is_the_same(dataset):
    """Another order or other ids on the second load would give every example another one's stored answer."""
    first, second = dataset.load(), dataset.load()
    assert first.ids.tolist() == second.ids.tolist() and first.keys.tolist() == second.keys.tolist()
    assert first.labels.tolist() == second.labels.tolist() and first.fingerprint == second.fingerprint


def test_examples_are_whole(dataset):
    found = dataset.load()
    count = len(found)
    assert count and len(set(found.ids.tolist())) == count and found.ids.dtype.kind == "U" and "" not in found.ids
    assert found.labels.dtype == np.int64 and found.labels.min() >= -1 and found.labels.max() < len(found.classes)
    assert all(isinstance(name, str) for name in found.classes) and len(set(found.classes)) == len(found.classes)
    assert found.kind in ("image", "vector", "table", "text", "passages", "sentences", "audio") and set(found.groups) <= set(found.classes)
    assert found.split is None or set(found.split) <= {"train", "validation", "test", ""}
    assert len(set(found.keys.tolist())) == count and found.keys.dtype == np.int64
    if found.kind == "table":
        assert {column.name for column in found.columns if column.used} == set(found.raw)
    elif found.kind in ("text", "passages", "sentences"):
        assert len(found.raw) == count and all(isinstance(text, str) and text for text in found.raw.tolist())
    else:
        assert len(found.raw) == count and found.raw.dtype in (np.uint8, np.float32, np.float64)


def test_preprocess_is_fitted_on_training_rows_and_survives_json(dataset):
    found = dataset.load()
    validation = 0.5 if found.kind == "audio" else 0.1  # one group of two
    parts = data.split(found, validation, None if found.split is not None and (found.split == "test").any() else 0.3, 0)
    preprocess = found.fit_preprocess(parts.train, **reading(found))
    encoded = preprocess.encode(found.raw)
    expected = {"image": np.uint8, "text": np.int32, "passages": np.int32, "sentences": np.int32}.get(found.kind, np.float32)
    shape = (preprocess.length + 1,) if found.kind == "passages" else preprocess.shape  # what is told stands one further
    assert encoded.shape == (len(found), *shape) and encoded.dtype == expected
    torch.from_numpy(encoded)  # warns, which is an error here, where the memory must not be written
    again = Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict())))
    assert again == preprocess
    np.testing.assert_array_equal(again.normalise(again.encode(found.raw)), preprocess.normalise(encoded))
    assert np.isfinite(preprocess.normalise(encoded)).all()
    alone = found.subset(parts.train).fit_preprocess(np.arange(len(parts.train)), **reading(found))
    assert alone == preprocess, "no other row plays a part"


def test_encoding_goes_row_by_row(dataset):
    """A row that looked different in another batch would be predicted differently."""
    found = dataset.load()
    preprocess = found.fit_preprocess(np.arange(len(found)), **reading(found))
    rows = np.array([5, 0, 17])
    np.testing.assert_array_equal(preprocess.encode(found.subset(rows).raw), preprocess.encode(found.raw)[rows])


def test_missing_files_are_refused(dataset, tmp_path):
    if hasattr(dataset, "path"):  # the others read no file
        with pytest.raises(DataError, match="nothing there|no such file"):
            dataclasses.replace(dataset, path=str(tmp_path / "not there")).load()
