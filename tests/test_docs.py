"""The pages say what the code does: generated pages, links, commands, recipes, tables of fields, figures."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer

import understudy
from understudy import cli, errors, kinds, recipe, sections
from understudy.errors import RecipeError
from understudy.evaluation import claims, metrics, shift
from understudy.selftest.examine import CHECKS, NO_ANSWER
from understudy.store.schema import Header
from understudy.store.writer import POINTS
from understudy.teachers.predictor import ESTIMATORS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("methods/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
SPAN = re.compile(r"`([^`\n]+)`")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def module_at(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)  # as `python FILE` has it
        patch.setitem(sys.modules, path.stem, module)  # where a dataclass looks for its annotations
        spec.loader.exec_module(module)
    return module


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def table(page: Path, marker: str) -> list[list[str]]:
    """The cells below the header of the table after `<!-- marker -->`."""
    _, found, after = page.read_text(encoding="utf-8").partition(f"<!-- {marker} -->\n")
    assert found, f"{page.name} has no table {marker}"
    lines = [line for line in after.split("\n\n")[0].splitlines() if line.startswith("|")]
    assert lines
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def names(page: Path, marker: str) -> list[str]:
    return [row[0].strip("`") for row in table(page, marker)]


# --- pages and links


def test_the_pages_are_there():
    there = {page.name for page in PAGES}
    assert there >= {"design.md", "recipe.md", "cli.md", "store-format.md", "self-test.md", "objectives.md", "log.md", "CHANGELOG.md"}


def test_the_objectives_page_is_what_the_docstrings_say():
    """Prevents: a formula or a default changes, and the page goes on teaching the old one."""
    made = module_at(DOCS / "make_objectives.py").page()
    assert (DOCS / "objectives.md").read_text(encoding="utf-8") == made, "run: python docs/make_objectives.py"


def test_the_pages_of_methods_are_what_docstrings_recipes_and_results_say():
    """Prevents: a recipe changes, and its page goes on showing what another one measured."""
    made = module_at(DOCS / "make_methods.py").pages()
    there = {page.name: page.read_text(encoding="utf-8") for page in (DOCS / "methods").glob("*.md")}
    assert there == made, "run: python docs/make_methods.py"


def test_the_page_of_methods_on_cifar10_is_that_of_its_result():
    """Prevents: a figure on the page that no run gave."""
    methods = module_at(DOCS / "make_methods_cifar10.py")
    assert methods.PAGE.read_text(encoding="utf-8") == methods.page(methods.newest()), "run: python docs/make_methods_cifar10.py"


def test_the_figures_on_the_page_of_language_are_those_of_their_runs():
    """Prevents: a figure on the page that no run gave."""
    made = module_at(ROOT / "benchmarks" / "language.py")
    page, readme = made.PAGE.read_text(encoding="utf-8"), made.README.read_text(encoding="utf-8")
    assert page == made.put(page, made.blocks(made.results())), "run: python benchmarks/language.py"
    assert readme == made.put(readme, {"labels": made.labels(made.results())}), "run: python benchmarks/language.py"


def test_the_figures_of_importance_are_those_of_their_run():
    made = module_at(ROOT / "benchmarks" / "importance.py")
    page = made.PAGE.read_text(encoding="utf-8")
    assert page == made.put(page, {"importance": made.table(made.newest("importance"))}), "run: python benchmarks/importance.py"


def test_the_figures_on_the_page_of_shipping_are_those_of_their_runs():
    made = module_at(ROOT / "benchmarks" / "ship.py")
    page = made.PAGE.read_text(encoding="utf-8")
    assert page == made.put(page, made.blocks(made.newest("ship"))), "run: python benchmarks/ship.py"


def test_the_knee_of_a_curve_is_where_it_bends():
    """By hand: 1, 10, 100, 1000 are evenly far apart by their logarithm, so a curve that rises to 10 and is flat then bends at 10."""
    knee = module_at(ROOT / "benchmarks" / "ship_page.py").knee
    assert knee([(1, 0.5), (10, 0.9), (100, 0.91), (1000, 0.92)]) == 1
    assert knee([(1, 0.5), (10, 0.55), (100, 0.9), (1000, 0.92)]) == 2
    for none in ([(1, 0.9), (10, 0.8), (100, 0.7)], [(1, 0.9), (10, 0.95)], [(1, 0.0), (10, 0.1), (100, 0.3), (1000, 1.0)], [
            (1, 0.0), (10, 0.5), (100, 1.0)]):
        assert knee(none) is None, "where nothing lies above the line there is no bend, and an end is none"


def test_every_mode_has_its_recipe_and_every_teacher_its_page():
    """Prevents: a kind of teacher or a packaged recipe that no page leads to."""
    methods = module_at(DOCS / "make_methods.py")
    sources = {source for mode in methods.MODES.values() for source in mode.sources}
    assert {source for source in sources if source.startswith("teachers.")} == {f"teachers.{name}" for name in kinds.names("teachers")}
    listed = {name for mode in methods.MODES.values() for name in mode.recipes}
    measured = module_at(ROOT / "benchmarks" / "modes.py")
    assert listed == set(measured.names())
    stale = [name for name, found in methods.results()["runs"].items() if measured.digest(name) != found["recipe"]]
    assert stale == [], "run: python benchmarks/modes.py"


def test_the_readme_s_two_axes_have_a_recipe_in_every_cell():
    methods = module_at(DOCS / "make_methods.py")
    assert all(methods.cells().values())
    assert methods.axes("") in (ROOT / "README.md").read_text(encoding="utf-8"), "put in what make_methods.axes('') gives"


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(line.lstrip("#")) for line in prose(page).splitlines() if re.match(r"#{1,6} ", line)}


@every_page
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", SPAN.sub("", prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@every_page
def test_named_files_exist(page):
    """Prevents: a promise that is said to be held by a test which nobody has."""
    paths = [span for span in SPAN.findall(prose(page)) if re.fullmatch(r"(?:tests|benchmarks|docs|src)/[\w./-]+", span)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


# --- commands


def commands(page: Path) -> Iterator[tuple[list[str], bool]]:
    """(words after `understudy`, whether the next line is its refusal) of every command on the page."""
    for language, code in FENCE.findall(page.read_text(encoding="utf-8")):
        if language in ("python", "json", "yaml"):
            continue
        lines = code.replace("\\\n", " ").splitlines()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            found = re.match(r"(?:\$ |next: )?understudy (.+)", line)
            if found:
                yield words_of(found[1]), following.startswith("understudy: ")
    for span in SPAN.findall(prose(page)):
        if span.startswith("understudy "):
            yield words_of(span.removeprefix("understudy ")), False


def words_of(line: str) -> list[str]:
    words = shlex.split(line.replace("\\|", "|"), comments=True)
    return words[: next((at for at, word in enumerate(words) if word in ("|", ">", "2>", "&&")), len(words))]


def placeholder(word: str) -> bool:
    return word.isupper() or "..." in word or "<" in word


@every_page
def test_commands_can_be_typed(page):
    for words, refused in commands(page):
        where = f"{page.name}: understudy {' '.join(words)}"
        verb = words[0]
        if placeholder(verb) or verb.startswith("-"):
            continue
        assert verb in cli.verbs(), where
        command = typer.main.get_command(importlib.import_module(f"understudy.cli.{verb}").app)
        rest = words[1:]
        for name in rest.pop(0).split("|") if hasattr(command, "commands") and rest and not rest[0].startswith("-") else []:
            assert name in command.commands, where
            chosen = command.commands[name]
        chosen = chosen if hasattr(command, "commands") and len(words) > 1 and not words[1].startswith("-") else command
        known = {option for parameter in chosen.params for option in parameter.opts} | {"--help", "--debug", "--verbose"}
        assert {word for word in rest if word.startswith("--")} <= known, where
        check_recipe(verb, [word for word in rest if not word.startswith("-")], refused, where)


def check_recipe(verb: str, words: list[str], refused: bool, where: str) -> None:
    """A recipe that is named exists, and takes the overrides that stand beside it."""
    at = {"run": 0, "check": 0, "record": 0, "evaluate": 1, "recipes": 0}.get(verb, len(words))
    words = words[at:]
    if not words or placeholder(words[0]) or "/" in words[0] or words[0].endswith(".yaml"):
        return
    assert words[0] in recipe.packaged(), where
    if verb == "recipes":
        return
    overrides = [word for word in words[1:] if "=" in word and not placeholder(word)]
    if refused:
        with pytest.raises(RecipeError):
            recipe.load(words[0], overrides)
    else:
        recipe.load(words[0], overrides)


@every_page
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.M))
    code = [line.strip().removeprefix("$ ") for _, block in FENCE.findall(page.read_text(encoding="utf-8")) for line in block.splitlines()]
    typed = {found[1] for line in [*SPAN.findall(prose(page)), *code] if (found := re.match(r"make ([a-z-]+)\b", line))}
    assert typed <= targets


def test_every_verb_has_its_line_and_every_line_is_a_verb():
    there = []
    for verb in cli.verbs():
        command = typer.main.get_command(importlib.import_module(f"understudy.cli.{verb}").app)
        there += [f"{verb} {name}" for name in command.commands] if hasattr(command, "commands") else [verb]
    rows = table(DOCS / "cli.md", "verbs")
    assert sorted(row[0].strip("`") for row in rows) == sorted(there)
    assert all(row[2].startswith(f"`understudy {row[0].strip('`')}") for row in rows)


def test_exit_codes():
    kinds = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, errors.UnderstudyError)]
    rows = {int(row[0]): row[2].strip("`") for row in table(DOCS / "cli.md", "exit codes")}
    assert {code: name for code, name in rows.items() if name} == {kind.exit_code: kind.__name__ for kind in kinds}
    assert {code for code, name in rows.items() if not name} == {0, cli.READER_GONE}


def test_environment_variables():
    """Prevents: a variable that does nothing, or one that nobody is told of."""
    sources = "\n".join(path.read_text(encoding="utf-8") for folder in ("src", "tests") for path in (ROOT / folder).rglob("*.py")
                        if path != Path(__file__))
    listed = names(DOCS / "cli.md", "environment")
    assert [name for name in listed if name not in sources] == []
    assert set(re.findall(r"\bUNDERSTUDY_[A-Z]+\b", sources)) <= set(listed)


# --- recipes


def snippets() -> list[tuple[str, str]]:
    return [(f"{page.name} {number}", code) for page in PAGES for number, code in enumerate(blocks(page, "yaml"))]


@pytest.mark.parametrize(("where", "code"), snippets(), ids=[where for where, _ in snippets()])
def test_recipes_on_the_pages_can_be_run(where, code):
    """A part of a recipe is tried in the place of the same part of `digits`."""
    part = recipe.parse(code)
    assert set(part) <= set(recipe.Recipe.model_fields)
    whole = {key for key, field in recipe.Recipe.model_fields.items() if field.is_required()} <= set(part)
    start = {} if whole else recipe.parse(recipe.packaged()["digits"].read_text(encoding="utf-8"))
    built = recipe.build({**start, **part}, {}, where)
    if built.series is not None:
        assert len(recipe.members(built)) == len(built.series.values)


@pytest.fixture(scope="module")
def schema() -> dict:
    return recipe.json_schema()


def section(schema: dict, name: str) -> dict:
    return schema if name == "Recipe" else schema["$defs"][name]


def listed_sections() -> list[str]:
    return re.findall(r"<!-- fields: ([\w.]+) -->", (DOCS / "recipe.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", listed_sections())
def test_a_table_of_fields_is_the_schema_s(name, schema):
    part = section(schema, name)
    rows = {row[0].strip("`"): row[1] for row in table(DOCS / "recipe.md", f"fields: {name}")}
    assert list(rows) == [field for field in rows if field in part["properties"]]
    assert set(rows) == set(part["properties"])
    for field, cell in rows.items():
        default = part["properties"][field].get("default", {})
        if field in part.get("required", ()):
            assert cell == "required", field
        elif cell.startswith("see "):
            assert isinstance(default, dict), field
        else:
            assert recipe.parse(cell) == default, field


def test_every_section_has_its_table(schema):
    """A kind that is added to the package is added to the page; objectives have a page of their own, an ensemble is a list with weights."""
    wanted = {name for name, part in schema["$defs"].items() if part.get("properties") and not name.startswith("objectives.")}
    assert set(listed_sections()) == wanted - {"teachers.ensemble", "teachers.weighted"} | {"Recipe"}


def test_a_teacher_s_training_is_the_beginning_of_a_student_s():
    shared = names(DOCS / "recipe.md", "fields: StudentTraining")[: len(sections.Training.model_fields)]
    assert shared == list(sections.Training.model_fields) and len(shared) == 18, "the page says eighteen"


def test_words_of_the_recipe():
    text = (DOCS / "recipe.md").read_text(encoding="utf-8")
    assert names(DOCS / "recipe.md", "gates") == list(claims.QUANTITIES)
    for word in (*ESTIMATORS, *metrics.NAMES, *claims.WORDS):
        assert f"`{word}`" in text, word


def test_the_table_of_shifts_is_that_of_the_code():
    """Prevents: a severity changes, and the page goes on naming the old one."""
    rows = [[row[0].strip("`"), row[1].strip("`"), [float(level) for level in row[2].split(", ")]]
            for row in table(DOCS / "robustness.md", "shifts")]
    assert rows == [[kind, name, list(one.levels)] for kind, named in shift.SHIFTS.items() for name, one in named.items()]
    listed = next(row[3] for row in table(DOCS / "recipe.md", "fields: Robustness") if row[0] == "`shifts`")
    assert set(SPAN.findall(listed)) == {name for named in shift.SHIFTS.values() for name in named}


# --- the other pages


def test_the_self_test_s_table():
    order = [name for name, _ in CHECKS]
    order.insert(order.index("class-count"), NO_ANSWER)
    assert names(DOCS / "self-test.md", "checks") == order


def test_the_store_s_header_and_points():
    page = DOCS / "store-format.md"
    assert set(names(page, "header")) == {field.name for field in dataclasses.fields(Header)}
    after = page.read_text(encoding="utf-8").partition("<!-- points -->\n")[2].partition("\n\n")[0]
    assert tuple(SPAN.findall(after)) == POINTS


def test_the_levels_of_imports():
    levels = module_at(Path(__file__).with_name("test_imports.py")).LEVELS
    package = Path(understudy.__file__).parent
    there = [sorted(name for name in level if (package / name).is_dir() or (package / f"{name}.py").is_file()) for level in levels]
    rows = table(DOCS / "design.md", "levels")
    said = [sorted(name.rstrip("/").removesuffix(".py") for name in SPAN.findall(row[1])) for row in rows]
    assert said == [level for level in there if level]
    assert [int(row[0]) for row in rows] == list(range(len(rows)))


@every_page
def test_json_and_python_are_whole(page):
    for code in blocks(page, "json"):
        json.loads(code)
    for code in blocks(page, "python"):
        if code.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(code, {}, page.name, str(page), 0)
            assert doctest.DocTestRunner().run(test).failed == 0
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module == "understudy_runtime":  # of the other distribution, and not installed
                offered = (ROOT / "runtime" / "src" / "understudy_runtime" / "__init__.py").read_text(encoding="utf-8")
                assert all(f'"{alias.name}"' in offered for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("understudy"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), alias.name
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "understudy":
                assert node.attr in understudy.__all__, node.attr


# --- figures


def newest(what: str) -> dict:
    return json.loads(sorted((ROOT / "benchmarks" / "results").glob(f"*{what}.json"))[-1].read_text(encoding="utf-8"))


def test_figures_of_the_store_are_those_that_were_measured():
    """Prevents: a benchmark is run again, and the page goes on quoting the better figure of before."""
    text = re.sub(r"\s+", " ", (DOCS / "store-format.md").read_text(encoding="utf-8"))
    kills = newest("store_kills")
    assert kills["lost"] == kills["doubled"] == kills["wrong"] == 0 and kills["most_batches_repeated_by_one_kill"] <= 1
    assert f"did it {kills['kills']} times" in text and f"of {kills['acknowledged_rows_checked']:,} acknowledged rows" in text
    cases = [case["variants"] for case in newest("store_reads")["cases"].values()]
    small, large = sorted(cases, key=lambda case: -case["tensor in memory, index_select"]["rows_a_second"])
    for line in ("one shard, mapped", "six shards, joined", "six shards, mapped"):
        ratios = [f"{case[f'store of {line}: take']['ratio_median']:.2f}" for case in (small, large)]
        assert f"| {line} | {' | '.join(ratios)} |" in text


def test_figures_of_the_verdict_are_those_of_the_banks():
    text = (DOCS / "design.md").read_text(encoding="utf-8")
    banks = module_at(ROOT / "benchmarks" / "verdict_banks.py")
    from understudy.evaluation.compare import verdict

    helps, covered, gains, seen = [], [], [], []
    for name in ("digits", "digits_few"):
        control, distilled = banks.load(name)
        words = [verdict(one, other).word for one, other in banks.null_splits(control, 1000, 3, 0)]
        helps.append(f"{words.count('helps') / 1000:.1%}".replace("%", " %"))
        truth = distilled.mean() - control[:30].mean()
        found = [verdict(one, other) for one, other in banks.draws_of(control[:30], distilled, 2000, 3, 300, 1)]
        inside = sum(one.ci95 is not None and one.ci95[0] <= truth <= one.ci95[1] for one in found)
        covered.append(f"{inside / 2000:.1%}".replace("%", " %"))
        gains.append(f"{100 * truth:+.1f} points".replace("-", "−"))
        seen.append(f"{sum(one.word == 'helps' for one in found) / 2000:.1%}".replace("%", " %"))
    for figures in (helps, covered, gains, seen):
        assert f"| {' | '.join(figures)} |" in text, figures
    rates = [banks.text_rates(documents) for documents in (10, 20, 44, 200)]
    assert f"{rates[0]['difference']:+.3f} bits".replace("-", "−") in text
    for name in ("helps", "covered", "seen"):
        figures = [f"{one[name]:.1%}".replace("%", " %") for one in rates]
        assert f"| {' | '.join(figures)} |" in text, figures
