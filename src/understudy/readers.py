"""Files as they come from outside -> numpy arrays or columns of text: gz or not, images, delimited text, Parquet, .npy.

Needs numpy only; images need pillow and Parquet needs pyarrow, imported where they are used. Nothing that is read is executed or unpickled.
Every reader raises DataError naming the file, and the line or byte where that is known.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from understudy.errors import DataError, RecipeError, four_parts

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
DELIMITERS = (",", "\t", ";", "|")
_FIELD_LIMIT = 1 << 24  # characters in one cell; the csv module's own 131,072 refuses long documents


def contents(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a file, unpacked where it starts with the gzip mark (whatever its name says)."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(four_parts(
            f'"{path}" can\'t be read', got=(error.strerror or type(error).__name__).lower(), expected="a readable file",
            otherwise="There would be nothing to learn from", do="Check the path")) from None
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(four_parts(
            f'"{path}" is not a whole gzip file', got=f"{error} after {len(data)} packed bytes", expected="a complete gzip stream",
            otherwise="The rows behind the break would be missing", do="Copy or download the file again")) from None


def refuse_twice(files: Mapping[str, str | os.PathLike[str] | None]) -> None:
    """DataError where two parts of the data are one file. files: the parts' fields and their paths, None for those that are not given."""
    known: dict[str, str] = {}
    for field, path in files.items():
        place = None if path is None else os.path.realpath(os.path.expanduser(path))
        if place in known:
            raise DataError(four_parts(
                f"data.{known[place]} and data.{field} are the same file", got=f'"{path}" for both', expected="a file of its own for each",
                otherwise="The student would be judged on what it learnt from, or would have nothing left to learn from",
                do=f"Name another file, or leave data.{field} out and let data.split draw its rows"))
        if place is not None:
            known[place] = field


def image(path: str | os.PathLike[str]) -> np.ndarray:
    """(H, W) uint8 of a greyscale image, (H, W, 3) uint8 of any other; turned as its EXIF orientation says, alpha dropped."""
    Image, ImageOps = _pillow()
    try:
        with Image.open(path) as opened:
            turned = ImageOps.exif_transpose(opened)
            if turned.mode.startswith(("I", "F")):
                raise DataError(four_parts(
                    f'image "{path}" has more than 8 bits a pixel', got=f"mode {turned.mode}", expected="8 bits a channel",
                    otherwise="Its values would be cut off at 255, mostly to white", do="Save it with 8 bits a channel"))
            return np.array(turned.convert("L" if turned.mode in ("1", "L", "LA") else "RGB"))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(four_parts(
            f'image "{path}" can\'t be read', got="no such file", expected="an image file",
            otherwise="There would be nothing to look at", do="Check the path")) from None
    except Exception as error:  # pillow's decoders raise almost anything on broken files
        raise DataError(four_parts(
            f'image "{path}" can\'t be decoded', got=str(error) or type(error).__name__, expected="a whole image file",
            otherwise="The example would be missing or grey", do="Repair the file or remove it")) from None


def resized(pixels: np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 at `size` = (H, W): colours first, then bilinear with anti-aliasing, so that every caller agrees."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    Image, _ = _pillow()
    wanted = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    if wanted.size != (size[1], size[0]):
        wanted = wanted.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.array(wanted)


def suffix(path: str | os.PathLike[str]) -> str:
    """The lower-case suffix that names the format: ".csv" of "a.csv.gz"."""
    name = Path(path).name.lower()
    return Path(name.removesuffix(".gz")).suffix


def delimiter_of(path: str | os.PathLike[str], first_line: str) -> str:
    """The separator by suffix (.tsv) or, elsewhere, the commonest of comma, tab, semicolon and bar; a blank where none of them occurs."""
    if suffix(path) in (".tsv", ".tab"):
        return "\t"
    best = max(DELIMITERS, key=first_line.count)
    if best in first_line:
        return best
    return " " if " " in first_line.strip() and suffix(path) != ".csv" else ","


def delimited(path: str | os.PathLike[str], *, delimiter: str | None = None, header: bool = True,
              quotes: bool | None = None) -> dict[str, list[str]]:
    """Columns of text from a delimited file, gz or not; blank lines are skipped.

    Without a header the columns are column_0, column_1, ... Tab-separated text is taken as it stands: a quotation mark there is nearly
    always part of the text and would swallow the lines up to the next one. Elsewhere quotes are read and cells lose surrounding blanks.
    Raises DataError for text that is not UTF-8, a ragged row (with its line), a doubled column name, and a header that is data.
    """
    text = whole_text(path)
    first = text.lstrip().split("\n", 1)[0]
    delimiter = delimiter or delimiter_of(path, first)
    quotes = delimiter != "\t" if quotes is None else quotes
    rows, lines = _rows(path, text, delimiter, quotes)
    if not rows:
        raise DataError(four_parts(
            f'"{path}" is empty', got="0 lines", expected="a header and rows" if header else "rows",
            otherwise="There would be nothing to learn from", do="Check the file"))
    names = rows.pop(0) if header else [f"column_{i}" for i in range(len(rows[0]))]
    first_line = lines.pop(0) if header else lines[0]
    width = len(names)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            raise DataError(four_parts(
                f'"{path}", line {line}: ragged row', got=f"{len(row)} fields", expected=f"{width} as in line {first_line}",
                otherwise="Values would land in the wrong columns", do="Correct the line, or quote its separators"))
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    if len(columns) != width:
        raise DataError(four_parts(
            f'"{path}" has two columns of one name', got=repr(next(name for name in names if names.count(name) > 1)),
            expected="different names", otherwise="One of them would be lost", do="Rename one"))
    if header:
        repeated = data_as_header(columns)
        if repeated is not None:
            raise DataError(four_parts(
                f'"{path}": the first line is no header', got=f"{repeated!r}, which is also a value below it", expected="column names",
                otherwise="The first example would be taken for names", do="Set header: false, or remove repeated header lines"))
    return columns


def parquet(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Columns of a Parquet file: numbers as float64 with NaN for nulls, anything else as lists of str with "" for nulls."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise lacking("pyarrow", "Parquet files") from None
    try:
        table = pq.read_table(io.BytesIO(contents(path)))
    except (pa.ArrowException, OSError) as error:
        raise DataError(four_parts(
            f'"{path}" is not a whole Parquet file', got=str(error).splitlines()[0], expected="a Parquet file",
            otherwise="Rows would be missing", do="Write or copy the file again")) from None
    columns: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_nested(column.type):
            raise DataError(four_parts(
                f'"{path}", column {name!r} holds lists or records', got=str(column.type), expected="one value a row",
                otherwise="The column would be turned into text", do="Flatten or remove the column"))
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
            columns[name] = column.cast(pa.float64(), safe=False).to_numpy()
        else:
            columns[name] = ["" if value is None else str(value) for value in column.to_pylist()]
    return columns


def array(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of a .npy file; one that holds Python objects is refused, because reading it would run code."""
    try:
        return np.load(io.BytesIO(contents(path)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(four_parts(
            f'"{path}" is not a plain .npy array', got=str(error), expected="an array of numbers",
            otherwise="Reading it could run code that lies in it", do="Save it with numpy.save(..., allow_pickle=False)")) from None


def text_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file, gz or not, that are not blank. Raises DataError for text that is not UTF-8."""
    return [line for line in whole_text(path).splitlines() if line.strip()]


def lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a text file, gz or not, with their ends, one at a time: the file may be larger than memory. Raises DataError for a file
    that can't be read, or for text that is not UTF-8, with the line."""
    number = 0
    try:
        with open(path, "rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            with gzip.open(plain) if packed else plain as file:
                for number, line in enumerate(file, 1):
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(path, number, error) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(four_parts(
            f'"{path}" can\'t be read to its end', got=f"{str(error) or type(error).__name__} behind line {number}",
            expected="a whole file", otherwise="The lines behind the break would be missing",
            do="Check the path, or copy the file again")) from None


def json_texts(path: str | os.PathLike[str], field: str) -> Iterator[str]:
    """The text of a field of every record of a file of JSON lines. Raises DataError, with the line, where there is none."""
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)[field]
            if not isinstance(found, str):
                raise TypeError(f"{field} is a {type(found).__name__}")
            found.encode()  # half of a pair of surrogates is no text
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(four_parts(
                f'"{path}", line {number}: not usable', got=f"{type(error).__name__}: {error}",
                expected=f"a record with a text in {field!r}", otherwise="The document would be missing",
                do="Correct the line, or name another field")) from None
        yield found


def whole_text(path: str | os.PathLike[str]) -> str:
    """All of a text file, gz or not. Raises DataError, with the line, for text that is not UTF-8."""
    data = contents(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, data[:error.start].count(b"\n") + 1, error) from None


def not_utf8(path: str | os.PathLike[str], line: int, error: UnicodeDecodeError) -> DataError:
    """The error for bytes that are no text."""
    return DataError(four_parts(
        f'"{path}", line {line}: not UTF-8 text', got=f"byte 0x{error.object[error.start]:02x} at {error.start}", expected="UTF-8",
        otherwise="Names and categories would be garbled", do="Convert it: iconv -f latin1 -t utf-8"))


def lacking(package: str, what: str) -> RecipeError:
    """The error for what can't be read without a package that is not installed."""
    return RecipeError(four_parts(f"{what} need {package}", got="it is not installed", expected=package,
                                  otherwise="They could not be read", do=f"Run pip install {package}"))


def _pillow() -> tuple[Any, Any]:
    """Its modules Image and ImageOps."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise lacking("pillow", "image files, and images of another size,") from None
    return Image, ImageOps


def _rows(path: str | os.PathLike[str], text: str, delimiter: str, quotes: bool) -> tuple[list[list[str]], list[int]]:
    """All rows that are not blank and the line where each starts."""
    rows: list[list[str]] = []
    lines: list[int] = []
    previous_limit = csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
                        skipinitialspace=delimiter == " " or quotes, strict=quotes)
    start = 1
    try:
        for row in reader:
            if row and any(cell.strip() for cell in row):
                rows.append(_stripped(row, delimiter))
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(four_parts(
            f'"{path}", line {start}: not readable as delimited text', got=str(error), expected=f"fields separated by {delimiter!r}",
            otherwise="The rest of the file would become one field", do="Close the quote, or set quotes: false")) from None
    finally:
        csv.field_size_limit(previous_limit)
    return rows, lines


def _stripped(row: Sequence[str], delimiter: str) -> list[str]:
    if delimiter == "\t":
        return list(row)
    cells = [cell.strip() for cell in row]
    if delimiter == " ":  # runs of blanks are one separator, and a blank at the end of the line is none
        while cells and not cells[-1]:
            cells.pop()
    return cells


def data_as_header(columns: Mapping[str, Sequence[str]]) -> str | None:
    """A cell of the first line that shows it to be data or a header that comes twice: it is also a value below; None: a header.

    A number that is also a value is enough; words have to be values below in half of the columns ("other" may well name a column).
    """
    repeated = [name for name, values in columns.items() if name and name in values]
    certain = any(_is_number(name) for name in repeated) or len(repeated) * 2 >= len(columns)
    return repeated[0] if repeated and certain else None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def positional(names: Sequence[str]) -> bool:
    """Whether these are the names that a file without a header gets."""
    return all(re.fullmatch(r"column_\d+", name) for name in names)
