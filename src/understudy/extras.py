"""How to install the optional parts: by the packages that they consist of, never by this one's name, which on the public index of Python
packages is another project's. `pip install "understudy[hf]"` would fetch a stranger's code there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

NAME = "understudy"


@dataclass(frozen=True)
class Requirement:
    """A package, which of its versions will do (">=5.3", or "" for any), the optional part that wants it, or "", and the package's own
    optional parts that it wants."""

    name: str
    needs: str
    extra: str
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f'"{self.name}{self.needs}"'


def declared(lines: Iterable[str] | None = None) -> list[Requirement]:
    """All packages that this one declares. lines: as metadata have them; None: those of the installation, if there is one."""
    return [one for one in _parsed(lines) if one.name != NAME]


def install(extra: str, packages: Sequence[str] = ()) -> str:
    """What to do to have an optional part, or those of its packages that are named: the command, where there is an installation."""
    parts, there = {extra}, list(_parsed(None))
    for one in there:  # an extra may consist of others: understudy[export]
        if one.extra == extra and one.name == NAME:
            parts |= set(one.parts)
    wanted = [one for one in there if one.extra in parts and one.name != NAME and (not packages or one.name in packages)]
    return f"Run pip install {' '.join(map(str, wanted))}" if wanted else f"Install the extra `{extra}` from where this package came"


def _parsed(lines: Iterable[str] | None) -> Iterator[Requirement]:
    if lines is None:
        try:
            lines = metadata.requires(NAME) or []
        except metadata.PackageNotFoundError:
            lines = []
    for line in lines:
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[([^]]*)\])?\s*([^;]*)", line)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", line)
        if match is not None:
            parts = tuple(part.strip() for part in (match[2] or "").split(",") if part.strip())
            yield Requirement(match[1], match[3].strip().strip("()"), extra[1] if extra else "", parts)


def source() -> str | None:
    """What pip installs this very package from: the checkout, the commit of a repository, or the file that it came from. None where that is
    not known, as of what came from an index."""
    try:
        said = metadata.distribution(NAME).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        said = None
    if not said:
        return None
    found = json.loads(said)
    held = found.get("vcs_info")
    place = f"{held['vcs']}+{found['url']}@{held['commit_id']}" if held else found["url"]
    return f"{NAME} @ {place}" + (f"#subdirectory={found['subdirectory']}" if "subdirectory" in found else "")
