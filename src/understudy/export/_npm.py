"""Files of an npm package, pinned by hash: through the user's own npm, or from a tarball or folder that was brought along."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from understudy.errors import RecipeError, four_parts

PATIENCE = 900
"""Seconds that npm may take."""


@dataclass(frozen=True)
class Package:
    """integrity: of the whole tarball, as npm writes it. files: those that are wanted, by their path in the package, with their sha256."""

    name: str
    version: str
    integrity: str
    files: Mapping[str, str]

    @property
    def full(self) -> str:
        """name@version."""
        return f"{self.name}@{self.version}"

    def read(self, given: str | None) -> dict[str, bytes]:
        """The wanted files. given: the package's .tgz, or the folder that it was unpacked into; None: `npm pack`.

        Nothing of the package is run. RecipeError where it can't be had, or a byte is not that of the pinned version.
        """
        if given is not None and Path(given).is_dir():
            found = {name: Path(given) / name for name in self.files}
            lacking = [name for name, path in found.items() if not path.is_file()]
            if lacking:
                raise self._unusable(given, f"no {lacking[0]}")
            return self._checked(given, {name: path.read_bytes() for name, path in found.items()})
        if given is not None:
            if not Path(given).is_file():
                raise self._unusable(given, "no such file or folder")
            return self._unpacked(given, Path(given).read_bytes())
        with tempfile.TemporaryDirectory(prefix="understudy-") as folder:
            return self._unpacked(self.full, self._packed(Path(folder)))

    def _packed(self, folder: Path) -> bytes:
        """The tarball, as npm is configured: its registry, proxy and cache."""
        npm = shutil.which("npm")
        if npm is None:
            raise RecipeError(four_parts(
                f"{self.full} can't be had", got="no npm on this machine", expected="npm, or the package itself",
                otherwise="The page would have nothing to run the model on", do=self.help))
        words = [npm, "pack", self.full, "--ignore-scripts", "--prefer-offline", "--silent", "--pack-destination", str(folder)]
        try:
            done = subprocess.run(words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
            said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            said = f"no answer in {PATIENCE} s"
        found = sorted(folder.glob("*.tgz"))
        if not found:
            raise RecipeError(four_parts(
                f"npm did not bring {self.full}", got=said[:200], expected="its tarball",
                otherwise="The page would have nothing to run the model on", do=self.help))
        return found[0].read_bytes()

    def _unpacked(self, source: str, data: bytes) -> dict[str, bytes]:
        found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
        if found != self.integrity:
            raise self._unusable(source, f"integrity {found[:24]}...")
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            members = {name: tar.extractfile(f"package/{name}") for name in self.files}
            return self._checked(source, {name: b"" if member is None else member.read() for name, member in members.items()})

    def _checked(self, source: str, found: dict[str, bytes]) -> dict[str, bytes]:
        for name, data in found.items():
            if hashlib.sha256(data).hexdigest() != self.files[name]:
                raise self._unusable(source, f"another {name}")
        return found

    def _unusable(self, source: str, got: str) -> RecipeError:
        return RecipeError(four_parts(
            f'"{source}" is not {self.full}', got=got, expected=f"the pinned version, integrity {self.integrity[:24]}...",
            otherwise="Somebody else's program would run in the page", do=self.help))

    @property
    def help(self) -> str:
        """How to bring it along."""
        option = self.name.replace("-", "_")
        return f"On a machine with npm run: npm pack {self.full} and set {option}=FILE.tgz"
