from __future__ import annotations

import pytest
import yaml

from understudy.recipe import load

CSV = "age,income,bought\n" + "".join(f"{20 + n % 40},{1000 + 37 * n},{'yes' if n % 3 else 'no'}\n" for n in range(60))


def test_the_starter_is_a_recipe_for_the_given_data(understudy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sales.csv").write_text(CSV)
    done = understudy("init", "sales.csv")
    assert done.code == 0 and done.out == "recipe.yaml\n" and "next: understudy check recipe.yaml" in done.err
    recipe = load(tmp_path / "recipe.yaml")
    assert recipe.data.kind == "table" and recipe.data.options["label"] == "bought"
    guesses = [line for line in (tmp_path / "recipe.yaml").read_text().splitlines() if line.startswith("# Guess: ")]
    assert len(guesses) == 1 and "bought" in guesses[0] and "bought" in done.err


def test_a_recipe_that_is_there_is_kept(understudy, tmp_path, monkeypatch):
    """Prevents: a second `init` throws away what somebody wrote into the recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("mine: true\n")
    done = understudy("init", "wine")
    assert done.code == 2 and "--force" in done.err and (tmp_path / "recipe.yaml").read_text() == "mine: true\n"
    assert understudy("init", "wine", "--force").code == 0
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["data"]["name"] == "wine"
    assert understudy("init", "wine", "--out", "other.yaml").code == 0 and (tmp_path / "other.yaml").is_file()


def test_what_is_missing_is_said_in_a_comment(understudy, tmp_path, monkeypatch):
    """Prevents: empty cells and rows without label are guessed at in silence."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{n},{n % 7 if n % 20 else ''},{'' if n % 30 == 9 else 'no' if n % 3 else 'yes'}" for n in range(60)]
    (tmp_path / "gaps.csv").write_text("id,age,bought\n" + "\n".join(rows) + "\n")
    done = understudy("init", "gaps.csv")
    text = (tmp_path / "recipe.yaml").read_text()
    for line in ("2 of 60 rows have no label", "missing, which the models are told: 3 in 'age'", "not used: 'id' (it numbers the rows)"):
        assert line in text and line in done.err, text


@pytest.mark.parametrize("name", ["nothing.csv", "empty.csv", "one.csv"])
def test_data_that_cannot_be_read_leaves_no_recipe(understudy, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "one.csv").write_text(CSV.replace("yes", "no"))
    done = understudy("init", name)
    assert done.code == 3 and ("fewer than two classes: got 60 rows, labelled as 'no'" if name == "one.csv" else name) in done.err
    assert not (tmp_path / "recipe.yaml").exists()


def test_a_hostile_file_name_stays_in_its_comment(understudy, tmp_path, monkeypatch):
    """Prevents: a newline in a file name ends the comment, and its second half becomes part of the recipe."""
    monkeypatch.chdir(tmp_path)
    name = "a\nallow: yes\x1b.csv"
    (tmp_path / name).write_text(CSV)
    done = understudy("init", name)
    assert done.code == 0 and "\x1b" not in done.out + done.err
    assert set(yaml.safe_load((tmp_path / "recipe.yaml").read_text())) <= set(load(tmp_path / "recipe.yaml").model_fields_set)
    assert load(tmp_path / "recipe.yaml").data.options["path"] == name
