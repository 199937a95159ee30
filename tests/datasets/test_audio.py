"""datasets/audio.py: what paths and lists say of recordings, groups that are tested apart, and files that don't fit."""

from __future__ import annotations

import shutil
import tarfile
import wave

import numpy as np
import pytest

from understudy import data
from understudy.datasets.audio import Dataset
from understudy.errors import DataError, RecipeError

DIGITS = "{label}_{group}_*.wav"


def record(path, number=0, samples=4000, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    said = np.random.default_rng(number).integers(-9000, 9000, samples).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(said.tobytes())
    return said / 32768


@pytest.fixture
def digits(tmp_path):
    """Three digits of three speakers, five recordings each."""
    for number, (digit, speaker, at) in enumerate((d, s, i) for d in "012" for s in ("ann", "bob", "cid") for i in range(5)):
        record(tmp_path / "set" / f"{digit}_{speaker}_{at}.wav", number, samples=3000 + 100 * number)
    return tmp_path / "set"


def test_a_path_says_label_and_speaker(digits):
    found = Dataset(str(digits), files=DIGITS, seconds=0.5, test_groups=("bob",)).load()
    assert found.classes == ("0", "1", "2") and len(found) == 45 and found.raw.shape == (45, 4000)
    at = found.ids.tolist().index("2_bob_3.wav")
    assert found.labels[at] == 2 and found.split[at] == "test"
    assert all((part == "test") == ("bob" in name) for name, part in zip(found.ids, found.split, strict=True))
    same = {name.split("_")[1]: number for name, number in zip(found.ids, found.clusters, strict=True)}
    assert len(set(same.values())) == 3 and all(same[name.split("_")[1]] == n for name, n in zip(found.ids, found.clusters, strict=True))


def test_lengths_are_cut_filled_and_counted(digits):
    """4,000 samples: recordings 0..9 are shorter, number 10 fits, the others are longer."""
    found = Dataset(str(digits), files=DIGITS, seconds=0.5).load()
    assert "34 are longer than 0.5 s" in found.notes[0] and "10 are shorter" in found.notes[0]
    first = np.random.default_rng(0).integers(-9000, 9000, 3000) / 32768
    np.testing.assert_allclose(found.raw[0], np.concatenate([first, np.zeros(1000)]), rtol=1e-6)


def test_an_archive_and_a_list_are_the_same_recordings(digits, tmp_path):
    folder = Dataset(str(digits), files=DIGITS, test_groups=("cid",)).load()
    with tarfile.open(tmp_path / "set.tar.xz", "w:xz") as archive:
        archive.add(digits, arcname=".")
    packed = Dataset(str(tmp_path / "set.tar.xz"), files=DIGITS, test_groups=("cid",)).load()
    rows = [f"set/{name},{name[0]},{name.split('_')[1]}" for name in folder.ids]
    (tmp_path / "list.csv").write_text("path,label,group\n" + "\n".join(rows))
    listed = Dataset(str(tmp_path / "list.csv"), test_groups=("cid",)).load()
    assert packed.fingerprint == folder.fingerprint
    for one in (packed, listed):
        np.testing.assert_array_equal(one.raw, folder.raw)
        assert one.labels.tolist() == folder.labels.tolist() and one.split.tolist() == folder.split.tolist()
        assert one.clusters.tolist() == folder.clusters.tolist()


def test_folders_of_classes_and_parts(tmp_path):
    for number, name in enumerate(("train/yes/a", "train/no/b", "test/yes/c", "train/unlabelled/d")):
        record(tmp_path / f"{name}.wav", number)
    record(tmp_path / "train/no/.hidden.wav")
    found = Dataset(str(tmp_path), files="{split}/{label}/*.wav").load()
    assert found.classes == ("no", "yes") and found.clusters is None
    assert dict(zip(found.ids, zip(found.labels, found.split, strict=True), strict=True)) == {
        "train/yes/a.wav": (1, "train"), "train/no/b.wav": (0, "train"), "test/yes/c.wav": (1, "test"),
        "train/unlabelled/d.wav": (-1, "train")}


def test_a_split_never_parts_a_speaker(digits):
    found = Dataset(str(digits), files=DIGITS).load()
    parts = data.split(found, 0.34, 0.34, 0)
    speakers = [set(found.clusters[rows].tolist()) for rows in (parts.train, parts.validation, parts.test)]
    assert all(len(one) == 1 for one in speakers) and len(set.union(*speakers)) == 3 and "whole groups" in parts.made
    with pytest.raises(RecipeError, match=r"no whole group is as small as split\.validation.*0\.33"):
        data.split(found, 0.05, 0.34, 0)


def test_other_rates_are_refused_or_resampled(tmp_path):
    slow = record(tmp_path / "a/low.wav", samples=4000)
    record(tmp_path / "b/high.wav", samples=8000, rate=16000)
    with pytest.raises(DataError, match=r"differ in their rate: got 8000, 16000.*data\.rate"):
        Dataset(str(tmp_path)).load()
    found = Dataset(str(tmp_path), rate=8000, seconds=0.5).load()
    assert found.log_mel.rate == 8000 and "0 are shorter" in found.notes[0]
    np.testing.assert_allclose(found.raw[0], slow, rtol=1e-6)


def test_features_come_from_milliseconds(digits):
    found = Dataset(str(digits), files=DIGITS, seconds=0.5, window_ms=32, hop_ms=16, bands=24, high_hz=3000).load().log_mel
    assert (found.length, found.window, found.hop, found.bands, found.high, found.frames) == (4000, 256, 128, 24, 3000, 30)



@pytest.mark.parametrize(("options", "error", "match"), [
    ({"files": "{label}/*.wav"}, DataError, r'path "0_ann_0.wav" does not fit data\.files'),
    ({"test_groups": ("eve",)}, DataError, r"no recording is of group 'eve'.*ann, bob, cid"),
    ({"files": "*.wav"}, RecipeError, r"data\.files is not usable"),
    ({"files": "{label}_{speaker}_*.wav"}, RecipeError, r"data\.files is not usable"),
    ({"seconds": 0.0}, RecipeError, "out of range"),
    ({"classes": ("0", "1")}, DataError, "of a class that is not named: got '2'"),
    ({"rate": 16000, "high_hz": 9000.0}, DataError, "features of sound"),
])
def test_settings_that_do_not_fit_are_refused(digits, options, error, match):
    with pytest.raises(error, match=match):
        Dataset(**{"path": str(digits), "files": DIGITS, **options}).load()


def test_broken_archives_and_lists_are_refused(digits, tmp_path):
    with tarfile.open(tmp_path / "whole.tar.xz", "w:xz") as archive:
        archive.add(digits, arcname=".")
    content = (tmp_path / "whole.tar.xz").read_bytes()
    (tmp_path / "cut.tar.xz").write_bytes(content[:len(content) // 2])
    with pytest.raises(DataError, match=r'cut\.tar\.xz" is not a whole tar archive'):
        Dataset(str(tmp_path / "cut.tar.xz"), files=DIGITS).load()
    (tmp_path / "twice.csv").write_text("path,label\nset/0_ann_0.wav,0\nset/0_ann_0.wav,1\nset/0_ann_1.wav,1\n")
    with pytest.raises(DataError, match="names a recording twice"):
        Dataset(str(tmp_path / "twice.csv")).load()
    (tmp_path / "none.csv").write_text("file,label\na,b\nc,d\n")
    with pytest.raises(DataError, match="no list of recordings.*'path'"):
        Dataset(str(tmp_path / "none.csv")).load()
    shutil.rmtree(digits)
    digits.mkdir()
    with pytest.raises(DataError, match="holds no WAV file"):
        Dataset(str(digits), files=DIGITS).load()
