"""Imports point one way: a file sees only lower levels, and inside a folder its own files. Lazy imports count as well."""

from __future__ import annotations

import ast
from pathlib import Path

import understudy

LEVELS = [
    {"errors", "atomic", "randomness", "events", "extras"},
    {"divergence", "records", "columns", "disk", "readers", "sound", "threads", "tokens", "model_folder"},
    {"preprocess", "views", "arrays", "cache", "tree", "_fused_math", "spelling", "static_embedding", "transfer"},
    {"alignment", "_fused_job"},
    {"architecture", "objective", "data", "answer", "fused"},
    {"kinds", "pictures", "projections"},  # so that a saved student's architecture is found by its name
    {"models", "objectives", "datasets", "collate", "store", "students"},
    {"teachers"},
    {"evaluation", "runtimes"},
    {"training"},
    {"compress"},  # below export, whose int8 format it makes
    {"selftest", "export", "rights"},
    {"report"},
    {"sections"}, {"completion"}, {"recipe"},
    {"run_folder"},
    {"stages"},
    {"pipeline"},
    {"comparison", "fitting"},
    {"advice"},
    {"api"},
    {"cli", "service"},
]
"""Lowest first; each name is a file or a folder of the package. `recipes` holds no code."""
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
PACKAGE = Path(understudy.__file__).parent


def imports(file: Path, package: Path) -> set[tuple[str, int]]:
    """(file or folder of the package, line) of all that a source file imports from its own package, wherever in the file."""
    here = file.relative_to(package).parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list((package.name, *here[:-1])[:len(here) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        found |= {(name[1], node.lineno) for name in names if name[0] == package.name and len(name) > 1}
    return found


def violations(package: Path) -> list[str]:
    """Every import that points up or sideways, and every file whose level nobody has stated."""
    found = []
    for file in sorted(package.rglob("*.py")):
        relative = file.relative_to(package)
        if relative == Path("__init__.py"):  # the public names come from everywhere
            continue
        own = relative.parts[0].removesuffix(".py")
        if own not in LEVEL:
            if own != "recipes":
                found.append(f"{relative}: has no level: add {own} to LEVELS")
            continue
        for target, line in imports(file, package):
            if target != own and target in LEVEL and LEVEL[target] >= LEVEL[own]:
                found.append(f"{relative}:{line}: {own} (level {LEVEL[own]}) imports {target} (level {LEVEL[target]})")
    return found


def test_imports_point_down():
    assert violations(PACKAGE) == []


def test_every_stated_name_exists_or_is_planned():
    """Prevents: a folder is renamed, and the rule goes on guarding a name that nobody has."""
    planned = {"service"}
    missing = {name for name in LEVEL if not (PACKAGE / name).is_dir() and not (PACKAGE / f"{name}.py").is_file()}
    assert missing <= planned


def test_the_rule_sees_every_way_of_importing(tmp_path):
    """Prevents: an upward import slips through because it is lazy, relative or an alias."""
    package = tmp_path / "pack"
    (package / "models").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "recipe.py", "models/__init__.py", "models/cnn.py"):
        (package / name).write_text("")
    (package / "models/mlp.py").write_text("\n".join([
        "import pack.errors", "from pack.models import cnn", "from . import cnn", "from .. import errors",  # these may
        "import pack.recipe", "from pack.recipe import load", "from pack import recipe", "from .. import recipe",
        "def f():", "    from pack.cli import main", "    from ..recipe import load", "from pack.objectives.logits import MSE"]))
    (package / "newcomer.py").write_text("")
    found = violations(package)
    assert [int(line.split(":")[1]) for line in sorted(found[:-1], key=lambda line: int(line.split(":")[1]))] == [5, 6, 7, 8, 10, 11, 12]
    assert found[-1].startswith("newcomer.py: has no level")
