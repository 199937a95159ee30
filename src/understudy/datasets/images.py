"""Image files: a folder for each class, or sheets that hold many images of one size in rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from understudy import readers
from understudy.data import SPLITS, Examples
from understudy.errors import DataError, RecipeError, four_parts

UNLABELLED = frozenset({"unlabelled", "unlabeled"})
"""Folders whose images have no label."""

Item = tuple[str, str, Path]  # part of the split, class name, file


@dataclass(frozen=True)
class Dataset:
    """Images from files that pillow reads.

    path: a folder with one folder a class (its name is the class name, as it stands; "unlabelled" is none), or with train/, validation/
    and test/ above those. size: (height, width) to resize to, needed where images differ. channels: 1 or 3; else 3 if any image has
    colour. limit: at most so many training images (the same number of each class; of sheets the first), test_limit: likewise for the rest.

    sheets: instead of folders, a pattern of files under `path` ("train_*.png"; in order of their names), each cut row by row into
    squares of `tile` pixels; labels: the file with one byte an image; classes: a text file with one name a line. test_sheets,
    test_labels: the test part.

    mean, std: per channel, what to standardise by where white is 1; else the training images' own.
    Ids are file paths under `path`; of sheets "train/000417" and "test/000417".
    """

    path: str
    size: tuple[int, int] | None = None
    channels: int | None = None
    limit: int | None = None
    test_limit: int | None = None
    sheets: str | None = None
    labels: str | None = None
    tile: int = 32
    classes: str | None = None
    test_sheets: str | None = None
    test_labels: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        counts = [value for value in (self.limit, self.test_limit, self.tile, *(self.size or ())) if value is not None]
        if self.channels not in (None, 1, 3) or min(counts) < 1:
            raise RecipeError(four_parts(
                "data: an option of images is out of range", expected="channels 1 or 3; size, tile and limits of 1 or more",
                got=f"channels {self.channels}, size {self.size}, tile {self.tile}, limits {self.limit}, {self.test_limit}",
                otherwise="No image could be made", do="Correct the number"))
        lonely = [name for name in ("labels", "classes", "test_sheets", "test_labels") if getattr(self, name) is not None]
        if (self.sheets is None and lonely) or (self.test_sheets is None) != (self.test_labels is None):
            raise RecipeError(four_parts(
                "data: options of sheets do not fit together", got=", ".join(lonely),
                expected="sheets with them, test_sheets with test_labels",
                otherwise="They would be ignored without a word", do="Add sheets, test_sheets or test_labels, or remove them"))
        for pattern in (self.sheets, self.test_sheets):
            if pattern is not None and (not pattern or Path(pattern).is_absolute()):
                raise RecipeError(four_parts(
                    "data: a pattern of sheets is not usable", got=repr(pattern), expected="a pattern under data.path",
                    otherwise="No sheet would be found", do='Use for example "train_*.png"'))

    def load(self) -> Examples:
        """The examples. Raises DataError for a missing folder, an empty class, an image that can't be decoded (by name)."""
        path = Path(self.path).expanduser()
        if not path.is_dir():
            raise DataError(four_parts(
                f'"{path}" is no folder', got="a file" if path.exists() else "nothing there", expected="a folder of images",
                otherwise="There would be nothing to learn from", do="Check data.path"))
        return self._from_sheets(path) if self.sheets is not None else self._from_folders(path)

    def _from_folders(self, path: Path) -> Examples:
        items = _limited(_items(path), self.limit, self.test_limit)
        pixels: list[np.ndarray] = []
        for _, _, file in items:
            image = readers.image(file)
            size = self.size or (pixels[0].shape[:2] if pixels else image.shape[:2])
            if self.size is None and image.shape[:2] != size:
                raise DataError(four_parts(
                    "images differ in size", got=f'{image.shape[:2]} in "{file}", {size} in "{items[0][2]}"',
                    expected="one size, or data.size", otherwise="They could not be put into one batch",
                    do="Set for example size: [64, 64]"))
            pixels.append(readers.resized(image, size, self.channels or (1 if image.ndim == 2 else 3)))
        channels = max(1 if image.ndim == 2 else 3 for image in pixels)
        classes = tuple(sorted({name for _, name, _ in items if name not in UNLABELLED}))
        index = {name: i for i, name in enumerate(classes)}
        return Examples(
            ids=np.array([file.relative_to(path).as_posix() for _, _, file in items]),
            raw=np.stack([readers.resized(image, image.shape[:2], channels) for image in pixels]),
            labels=np.array([index.get(name, -1) for _, name, _ in items], dtype=np.int64), classes=classes, kind="image",
            split=np.array([part for part, _, _ in items], dtype="<U10"), mean=self.mean, std=self.std)

    def _from_sheets(self, path: Path) -> Examples:
        parts = {"train": self._cut(path, self.sheets or "", self.labels, self.limit)}
        if self.test_sheets is not None:
            parts["test"] = self._cut(path, self.test_sheets, self.test_labels, self.test_limit)
        labels = np.concatenate([numbers for _, numbers in parts.values()])
        classes = tuple(str(i) for i in range(int(labels.max(initial=-1)) + 1))
        if self.classes is not None:
            lines = readers.contents(path / self.classes).decode("utf-8", "surrogateescape").splitlines()
            classes = tuple(line for line in lines if line)
        return Examples(
            ids=np.array([f"{name}/{row:06d}" for name, (_, numbers) in parts.items() for row in range(len(numbers))]),
            raw=np.concatenate([tiles for tiles, _ in parts.values()]), labels=labels, classes=classes, kind="image",
            split=np.repeat(list(parts), [len(numbers) for _, numbers in parts.values()]).astype("<U10"), mean=self.mean, std=self.std)

    def _cut(self, path: Path, pattern: str, labels: str | None, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
        """((n, tile, tile[, 3]) uint8, (n,) int64) of one part; only as many sheets are decoded as the limit needs."""
        files = sorted(path.glob(pattern))
        if not files:
            raise DataError(four_parts(f'no file in "{path}" fits {pattern!r}', got="0 sheets", expected="1 or more",
                                       otherwise="There would be nothing to learn from", do="Check the pattern"))
        numbers = None if labels is None else np.frombuffer(readers.contents(path / labels), dtype=np.uint8).astype(np.int64)
        wanted = limit if numbers is None else min(limit or len(numbers), len(numbers))
        sheets: list[np.ndarray] = []
        cut = blank = 0
        for file in files:
            if wanted is not None and cut >= wanted:
                break
            sheets.append(_tiles(file, self.tile, self.channels))
            cut, blank = cut + len(sheets[-1]), len(sheets[-1])
        everything = limit is None or (numbers is not None and limit >= len(numbers))
        if numbers is not None and (cut < (wanted or 0) or everything and (len(sheets) < len(files) or cut - len(numbers) >= blank)):
            raise DataError(four_parts(
                f'"{path / str(labels)}" does not fit the sheets', got=f"{len(numbers)} labels", expected=f"{cut} or more: one an image",
                otherwise="Images would get other images' labels", do="Check tile, labels and the pattern"))
        colours = {sheet.shape[1:] for sheet in sheets}
        if len(colours) > 1:
            raise DataError(four_parts(
                "some sheets have colour and some have not", got=" and ".join(map(str, colours)), expected="one kind",
                otherwise="They could not be put together", do="Set channels: 1 or 3"))
        tiles = np.concatenate(sheets)[:wanted]
        return tiles, np.full(len(tiles), -1, dtype=np.int64) if numbers is None else numbers[:wanted]


def _tiles(file: Path, tile: int, channels: int | None) -> np.ndarray:
    """(rows * columns, tile, tile[, 3]) in reading order, by a reshape."""
    sheet = readers.image(file)
    if channels is not None:
        sheet = readers.resized(sheet, sheet.shape[:2], channels)
    height, width = sheet.shape[:2]
    if height % tile or width % tile:
        raise DataError(four_parts(
            f'sheet "{file}" can\'t be cut into tiles', got=f"{height} x {width} pixels", expected=f"multiples of {tile}",
            otherwise="Images would be shifted against each other", do="Set tile to the side of one image"))
    rows, columns = height // tile, width // tile
    cut = sheet.reshape(rows, tile, columns, tile, *sheet.shape[2:]).swapaxes(1, 2)
    return cut.reshape(rows * columns, tile, tile, *sheet.shape[2:])


def _items(path: Path) -> list[Item]:
    """All image files in order of their path, hidden ones and other files left out."""
    folders = _folders(path)
    parts = [folder for folder in folders if folder.name.lower() in SPLITS and _folders(folder)]
    if not folders or (parts and len(parts) != len(folders)):
        other = [folder.name for folder in folders if folder not in parts]
        raise DataError(four_parts(
            f'"{path}" is no folder of classes',
            got=f"{', '.join(map(repr, other))} beside {parts[0].name!r}" if parts else "no folders in it",
            expected="a folder for each class with its images, or train, validation and test with those",
            otherwise="No image would have a label, or a part would be taken for a class", do="Sort the images into folders of classes"))
    if parts:
        return [item for part in parts for item in _classes(part, SPLITS[part.name.lower()])]
    return _classes(path, "")


def _classes(path: Path, part: str) -> list[Item]:
    items: list[Item] = []
    for folder in _folders(path):
        files = sorted(file for file in folder.rglob("*") if _is_image(file))
        if not files:
            raise DataError(four_parts(f'class folder "{folder}" holds no images', got="no file with an image's suffix",
                                       expected=", ".join(sorted(readers.IMAGE_SUFFIXES)),
                                       otherwise="The class would be one that nobody can learn", do="Add images, or remove the folder"))
        items += [(part, folder.name, file) for file in files]
    return items


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in readers.IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _limited(items: Sequence[Item], limit: int | None, test_limit: int | None) -> list[Item]:
    """The first images of each class of each part, as many of every class, so that a limit does not lose the classes behind."""
    groups: dict[str, dict[str, list[Item]]] = {}
    for item in items:
        groups.setdefault(item[0], {}).setdefault(item[1], []).append(item)
    kept: list[Item] = []
    for part, classes in groups.items():
        most = limit if part in ("", "train") else test_limit
        for i, files in enumerate(classes.values()):
            kept += files if most is None else files[:most // len(classes) + (i < most % len(classes))]
    return kept
