"""idx files, as MNIST and its family come: 4 bytes of magic, the sizes as big-endian 32-bit numbers, then one byte a value."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from understudy import readers
from understudy.data import Examples
from understudy.errors import DataError, RecipeError, four_parts


@dataclass(frozen=True)
class Dataset:
    """Greyscale images and labels from idx files, gz or not.

    path: a folder, in which the files are found by name (train-images*, train-labels*, t10k-images* or test-images*, ...), or a file of
    images; then `labels` is the file of labels (none: unlabelled), and `test_images`, `test_labels` those of the test part.
    limit, test_limit: only the first so many. classes: names in label order, else "0", "1", ...
    mean, std: what to standardise by where white is 1 (`mean: [0], std: [1]` is plain 0..1); else the training images' own.

    Ids are "train/000417" and "test/000417". The test part is the test split.
    """

    path: str
    labels: str | None = None
    test_images: str | None = None
    test_labels: str | None = None
    limit: int | None = None
    test_limit: int | None = None
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "test_limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RecipeError(four_parts(f"data.{name} is out of range", got=getattr(self, name), expected="1 or more",
                                             otherwise="There would be nothing to learn from", do="Leave it out for all images"))

    def load(self) -> Examples:
        """The examples. Raises DataError for a missing, broken or empty file, or counts that differ."""
        files = self._files()
        parts = {"train": _part(*files["train"], self.limit)}
        if files["test"][0] is not None:
            parts["test"] = _part(*files["test"], self.test_limit)
        shapes = {images.shape[1:] for images, _ in parts.values()}
        if len(shapes) > 1:
            raise DataError(four_parts("training and test images differ in size", got=" and ".join(map(str, shapes)), expected="one size",
                                       otherwise="The student could not read the test images", do="Check that the files belong together"))
        labels = np.concatenate([found for _, found in parts.values()])
        classes = self.classes or tuple(str(i) for i in range(int(labels.max(initial=-1)) + 1))
        return Examples(
            ids=np.array([f"{name}/{row:06d}" for name, (_, found) in parts.items() for row in range(len(found))]),
            raw=np.concatenate([images for images, _ in parts.values()]), labels=labels, classes=classes, kind="image",
            split=np.repeat(list(parts), [len(found) for _, found in parts.values()]).astype("<U10"), mean=self.mean, std=self.std)

    def _files(self) -> dict[str, tuple[Path | None, Path | None]]:
        """part -> (images, labels)."""
        path = Path(self.path).expanduser()
        if not path.is_dir():
            named = (self.labels, self.test_images, self.test_labels)
            labels, images, test = (path.parent / Path(name).expanduser() if name else None for name in named)
            return {"train": (path, labels), "test": (images, test)}
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
        found = {(part, what): [name for name in names if what in name.lower() and any(word in name.lower() for word in words)]
                 for part, words in (("train", ("train",)), ("test", ("t10k", "test"))) for what in ("images", "labels")}
        for (part, what), matches in found.items():
            missing = not matches and (part == "train" or any(found["test", other] for other in ("images", "labels")))
            if missing or len(matches) > 1:
                raise DataError(four_parts(
                    f'"{path}": {"no file" if missing else "more than one file"} of {part} {what}',
                    got=", ".join(matches or names[:8]) or "no files",
                    expected=f'one name with "{"train" if part == "train" else "t10k"}" and "{what}"',
                    otherwise="Images would be without labels, or with another file's",
                    do="Name the files: path, labels, test_images, test_labels"))
        return {part: (path / found[part, "images"][0], path / found[part, "labels"][0]) if found[part, "images"] else (None, None)
                for part in ("train", "test")}


def _part(images: Path | None, labels: Path | None, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """((n, H, W) uint8, (n,) int64)."""
    assert images is not None
    pixels = read(images, 3)
    if not len(pixels):
        raise DataError(four_parts(f'"{images}" is empty', got="0 images", expected="1 or more",
                                   otherwise="There would be nothing to learn from", do="Check the file"))
    numbers = read(labels, 1).astype(np.int64) if labels is not None else np.full(len(pixels), -1, dtype=np.int64)
    if len(numbers) != len(pixels):
        raise DataError(four_parts(f'"{labels}" does not fit "{images.name}"', got=f"{len(numbers)} labels", expected=f"{len(pixels)}",
                                   otherwise="Images would get other images' labels", do="Check that the files belong together"))
    return pixels[:limit], numbers[:limit]


def read(path: Path, dimensions: int) -> np.ndarray:
    """The array of an idx file of unsigned bytes. Raises DataError for another magic number and for a file that is cut or too long."""
    data = readers.contents(path)
    magic = 0x0800 | dimensions
    head = 4 + 4 * dimensions
    if len(data) < head or struct.unpack(">I", data[:4])[0] != magic:
        raise DataError(four_parts(
            f'"{path}" is not an idx file of {dimensions} dimension(s) of bytes',
            got=f"0x{data[:4].hex()} and {len(data)} bytes", expected=f"0x{magic:08x} at its start",
            otherwise="Its header would be read as pixels", do="Check that images and labels are not exchanged"))
    shape = struct.unpack(f">{dimensions}I", data[4:head])
    size = math.prod(shape)
    if len(data) - head != size:
        raise DataError(four_parts(
            f'"{path}" is {"cut off" if len(data) - head < size else "too long"}', got=f"{len(data) - head} bytes of values",
            expected=f"{size} = {' x '.join(map(str, shape))}", otherwise="The last examples would be missing or noise",
            do="Copy the file again"))
    return np.frombuffer(data, dtype=np.uint8, offset=head).reshape(shape)
