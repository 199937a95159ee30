"""readers.py: every broken file is refused by name, with its line where there is one."""

from __future__ import annotations

import gzip
import pickle

import numpy as np
import pytest
from PIL import Image

from understudy import readers
from understudy.errors import DataError


def write(path, content, encoding="utf-8"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", 'x,y\n1,a b\n,"b,c"\n'),
        ("a.tsv", "x\ty\n1\ta b\n\tb,c\n"),
        ("a.csv", "x;y\n1;a b\n;b,c\n"),
        ("a.csv", '\ufeffx,y\r\n1, a b \r\n\r\n,"b,c"\r\n'),
        ("a.txt", "x|y\n1|a b\n|b,c"),
        ("a.csv.gz", gzip.compress(b'x,y\n1,a b\n,"b,c"\n', mtime=0)),
    ],
)
def test_delimited_text_of_many_makes(tmp_path, name, content):
    assert readers.delimited(write(tmp_path / name, content)) == {"x": ["1", ""], "y": ["a b", "b,c"]}


def test_blank_separated_without_header(tmp_path):
    assert readers.delimited(write(tmp_path / "a.data", "A11  6 x \nA12 48 y\n"), header=False) == {
        "column_0": ["A11", "A12"], "column_1": ["6", "48"], "column_2": ["x", "y"]}


def test_quotation_marks_in_tab_separated_text_are_text(tmp_path):
    """With quotes read, one stray mark would swallow all lines up to the next one: rows gone without a word."""
    path = write(tmp_path / "a.tsv", 'y\tx\nham\t"hello\nspam\tb\nham\tc" d\n')
    assert readers.delimited(path)["x"] == ['"hello', "b", 'c" d']
    with pytest.raises(DataError, match="line 2"):
        readers.delimited(path, quotes=True)


@pytest.mark.parametrize("content, line", [
    ("x,y\n1,2\n1,2,3\n1,2\n", 3), ("x,y\n\n1,2\n1\n", 4), ('x,y\n"a\nb",2\n3,"c\nd\ne"\n7\n', 7), ("x,y\n" + "1,2\n" * 500 + "1\n", 502)])
def test_ragged_row_names_its_line(tmp_path, content, line):
    """Values of a ragged row would land in the wrong columns; blank lines and line breaks inside quotes must not shift the count."""
    with pytest.raises(DataError, match=rf"a\.csv\", line {line}: ragged row: got \d+ fields, expected 2"):
        readers.delimited(write(tmp_path / "a.csv", content))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        ("x,x\n1,2\n", "two columns of one name"),
        ('x,y\n1,"open\n2,3\n', "line 2"),
        ("x,y\n1,\xe9t\xe9\n".encode("latin-1"), "line 2: not UTF-8"),
        ("1,a\n0,b\n1,c\n", "first line is no header"),
        ("x,y\n1,2\nx,y\n", "first line is no header"),
        (gzip.compress(b"x,y\n1,2\n" * 1000, mtime=0)[:-9], "not a whole gzip file"),
        (gzip.compress(b"x,y\n1,2\n", mtime=0)[:-4] + b"\0\0\0\0", "not a whole gzip file"),
    ],
)
def test_broken_text_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        readers.delimited(write(tmp_path / "a.csv", content))


def test_a_word_that_is_also_a_value_may_be_a_header(tmp_path):
    assert list(readers.delimited(write(tmp_path / "a.csv", "other,b,c\n1,x,y\nother,z,w\n"))) == ["other", "b", "c"]


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataError, match="can't be read"):
            readers.contents(path)
    with pytest.raises(DataError, match="no such file"):
        readers.image(tmp_path / "none.png")


def test_hostile_names_are_named_as_they_are(tmp_path):
    """A file name is shown, never used: format signs, line breaks and markup must come through untouched."""
    name = "<script>{0}%s 'x'\n.csv"
    with pytest.raises(DataError) as caught:
        readers.delimited(write(tmp_path / name, ""))
    assert name in str(caught.value)


def test_images_of_every_mode(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(pixels).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(readers.image(tmp_path / "rgb.png"), pixels)
    np.testing.assert_array_equal(readers.image(tmp_path / "grey.png"), pixels[..., 0])
    np.testing.assert_array_equal(readers.image(tmp_path / "alpha.png"), pixels)
    assert readers.image(tmp_path / "palette.png").shape == (5, 4, 3)


def test_exif_orientation_is_obeyed(tmp_path):
    """A photo that lies on its side in the array would be learnt lying on its side."""
    image = Image.new("L", (4, 2))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    found = readers.image(tmp_path / "a.png")
    assert found.shape == (4, 2) and found[0, 1] == 255


def test_deep_and_broken_images_are_refused_by_name(tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png.*more than 8 bits"):
        readers.image(tmp_path / "deep.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    for name, broken in (("cut.png", data[:len(data) // 2]), ("empty.png", b""), ("text.png", b"not an image"),
                         ("flip.png", data[:2000] + b"\xff" * 64 + data[2064:])):
        with pytest.raises(DataError, match=rf"{name}.*can't be decoded"):
            readers.image(write(tmp_path / name, broken))


def test_resizing_agrees_whatever_comes_first():
    """The loader resizes a grey image before it knows that others have colour; prediction converts first."""
    grey = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    direct = readers.resized(grey, (4, 5), 3)
    np.testing.assert_array_equal(direct, readers.resized(readers.resized(grey, (4, 5), 1), (4, 5), 3))
    assert direct.shape == (4, 5, 3)


def test_parquet_keeps_types_and_gaps(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"n": [1, None, 3], "s": ["a", None, " b "], "b": [True, False, None]}), tmp_path / "a.parquet")
    found = readers.parquet(tmp_path / "a.parquet")
    np.testing.assert_array_equal(found["n"], [1, np.nan, 3])
    assert found["s"] == ["a", "", " b "] and found["b"] == ["True", "False", ""]
    with pytest.raises(DataError, match="not a whole Parquet"):
        readers.parquet(write(tmp_path / "cut.parquet", (tmp_path / "a.parquet").read_bytes()[:-20]))
    pq.write_table(pa.table({"l": [[1], [2]]}), tmp_path / "nested.parquet")
    with pytest.raises(DataError, match="'l' holds lists"):
        readers.parquet(tmp_path / "nested.parquet")


def test_an_array_with_a_pickle_is_not_opened(tmp_path):
    """Loading it would run code; the marker file shows that nothing ran."""
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    np.save(tmp_path / "a.npy", np.array([Hostile()], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Hostile()))
    for name in ("a.npy", "b.npy"):
        with pytest.raises(DataError, match="not a plain"):
            readers.array(tmp_path / name)
    assert not marker.exists()


def test_lines_one_at_a_time_are_the_text(tmp_path):
    text = "\ufeffone\r\n\ntwo \N{SNOWMAN}\nlast"
    plain, packed = tmp_path / "a.txt", tmp_path / "a.txt.gz"
    plain.write_bytes(text.encode())
    packed.write_bytes(gzip.compress(text.encode()))
    for path in (plain, packed):
        assert list(readers.lines(path)) == ["one\r\n", "\n", "two \N{SNOWMAN}\n", "last"]
        assert "".join(readers.lines(path)) == readers.whole_text(path)


def test_lines_that_are_no_text_or_end_too_early(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\nstill\nbad \xff\n")
    with pytest.raises(DataError, match=r"line 3: not UTF-8"):
        list(readers.lines(tmp_path / "a.txt"))
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"line\n" * 9999)[:-20])
    with pytest.raises(DataError, match="read to its end"):
        list(readers.lines(tmp_path / "a.gz"))
    with pytest.raises(DataError, match="read to its end"):
        list(readers.lines(tmp_path / "nothing"))
