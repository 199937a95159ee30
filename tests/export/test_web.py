"""export/web.py: what the page encodes is what Python encodes, what it answers is what Python answers, and it asks nobody else."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.util
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from understudy import kinds, tokens
from understudy.errors import RecipeError
from understudy.export import web
from understudy.export._npm import Package
from understudy.export._probe import Probe
from understudy.export.web import Exporter
from understudy.preprocess import Preprocess
from understudy.preprocess.image import Image
from understudy.preprocess.text import Text
from understudy.students import artefact

SOURCES = Path(web.__file__).parent / "_web"
TEXTS = ["play some music", "turn the light on", "turn the lights off!", "is it raining?", "send money to my bank", "Überweise Geld, bitte"]
ODD = [
    "", " ", "Ünïcödé naïve café", "don't we've I'm", "tabs\tand\nlines\r\n", "数字 and 漢字", "Σίσυφος ΣΑΣ", "İstanbul ß ﬁ",
    "a\u0301 e\u0308",
    "1,000.5 %", "zero\u200bwidth\u00adsoft", "[SEP] [CLS][PAD] x", "\u00a0no\u3000break\u2028line\u0085next", "emoji 👩‍💻 🎉", "x" * 130,
    "a  b   c", "\ufeffbom", "$5 + 3 = `8`|~^<>", "no\x00null\x07bell", "\ue000private", "Ⅻ ½ ² ١٢٣", "don’t “quote” — dash…",
    "한국어 日本語テキスト", "ไทย हिन्दी", "a\u0378b", "\U0002a6d0\U0002b740"]


# --- encoding, by node


@pytest.fixture(scope="module")
def javascript(tmp_path_factory):
    """run(module, expression of `given`, given) -> what the expression gives; arrays come as lists."""
    if shutil.which("node") is None:
        pytest.skip("needs node")
    folder = tmp_path_factory.mktemp("js")
    for name in ("encode", "text"):
        shutil.copy(SOURCES / f"{name}.js", folder / f"{name}.mjs")

    def run(module, expression, given):
        (folder / "given.json").write_text(json.dumps(given))
        (folder / "run.mjs").write_text(
            f'import * as m from "./{module}.mjs"; import fs from "node:fs";'
            f'const given = JSON.parse(fs.readFileSync("given.json", "utf8"));'
            f'console.log(JSON.stringify({expression}, (key, one) => ArrayBuffer.isView(one) ? Array.from(one) : one));')
        done = subprocess.run(["node", "run.mjs"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize(("channels", "maximum"), [(1, 255.0), (3, 255.0), (1, 16.0)])
def test_pixels_are_those_that_python_gives_the_model(javascript, channels, maximum):
    """Prevents: a browser's own resampling, which blurs otherwise, and answers that drift with the browser."""
    random, given, wanted = np.random.default_rng(0), [], []
    for at in range(40):
        (height, width), size = random.integers(1, 60, 2), tuple(map(int, random.integers(1, 40, 2)))
        colours = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        colours = colours[..., :1].repeat(3, axis=2) if at % 3 == 0 else colours
        read = Image(size, channels, (0.1,) * channels, (1.0,) * channels, maximum)
        rgba = np.concatenate([colours, np.full((height, width, 1), 255, np.uint8)], axis=2)
        given.append({"picture": {"width": int(width), "height": int(height), "data": rgba.ravel().tolist()}, "read": read.to_dict()})
        raw = colours if maximum == 255 else np.rint(colours * (maximum / 255)).astype(np.uint8)
        wanted.append(read.encode([raw])[0].ravel().tolist())
    assert javascript("encode", "given.map(one => m.encodeImage(one.picture, one.read))", given) == wanted


def test_a_drawing_is_centred_like_mnist_s_digits(javascript):
    ink = np.zeros((28, 28), int)
    ink[1:5, 20:22] = 255
    found = np.array(javascript("encode", "m.centred(Uint8Array.from(given), 28)", ink.ravel().tolist())).reshape(28, 28)
    filled = np.flatnonzero(found.any(axis=1))
    assert filled[-1] - filled[0] + 1 == 20, "its longer side fills 20 of 28"
    mass = found.sum()
    centre = [(found.sum(axis=axis) * np.arange(28)).sum() / mass for axis in (0, 1)]
    assert max(abs(place - 13.5) for place in centre) <= 0.5
    assert not any(javascript("encode", "m.centred(new Uint8Array(784), 28)", None)), "nothing drawn stays nothing"


def test_rows_of_a_table_and_numbers_are_those_that_python_gives(javascript):
    raw = {"age": np.array([20.0, np.nan, 41.5, 33.0]), "town": np.array(["x", "y", "", "y"], dtype=object),
           "height": np.array([1.5, 2, 1, 3])}
    read = Preprocess.fit("table", raw)
    cells = [["31", "x", "1e0"], ["", "y", " 2.5 "], ["?", "", "0"], ["-4.25", "elsewhere", ".5"], ["nan", " NA ", "7"]]
    found = javascript("encode", "given.cells.map(row => m.encodeTable(row, given.read))", {"read": read.to_dict(), "cells": cells})
    columns = {name: np.array([row[at] for row in cells], dtype=object) for at, name in enumerate(raw)}
    np.testing.assert_allclose(found, read.encode(columns), rtol=0, atol=0)
    numbers = Preprocess.fit("vector", np.random.default_rng(0).normal(5, 3, (20, 3)))
    found = javascript("encode", "m.encodeVector('1, 2.5;-3e1\\n', given)", numbers.to_dict())
    np.testing.assert_array_equal(np.float32(found), numbers.encode(np.array([[1, 2.5, -30]]))[0])


@pytest.mark.parametrize("words", [["1_000"], ["0x10"], ["one"], ["Infinity"], ["1", "2"]])
def test_what_is_no_number_is_said_in_words(javascript, words):
    """Prevents: JavaScript reads "0x10" as 16 and "" as 0, and the page answers."""
    read = Preprocess.fit("vector", np.arange(4.0)[:, None]).to_dict()
    tried = "(() => { try { return m.encodeVector(given.text, given.read); } catch (error) { return error.message; } })()"
    said = javascript("encode", tried, {"text": " ".join(words), "read": read})
    assert ("is no number" if len(words) == 1 else "2 numbers, the model takes 1") in said


@pytest.mark.parametrize("kind", ["bpe", "bpe as written", "words", "WordPiece, pruned"])
def test_tokens_are_those_that_python_gives_the_model(javascript, folders, kind):
    """Prevents: a word that the page spells otherwise, and an answer to another text."""
    random = np.random.default_rng(0)
    signs = list("abcdefghijklmnop  éßΣ'.,!?-$1234\t\n漢😀")
    texts = TEXTS + ODD + ["".join(random.choice(signs, 30)) for _ in range(100)]
    if kind.startswith("bpe"):
        tokenizer = tokens.train("bpe", TEXTS * 3, 400, lowercase=kind == "bpe")
    elif kind == "words":
        tokenizer = tokens.train("words", TEXTS * 3, 400)
    else:
        whole = folders.wordpiece()
        tokenizer = tokens.pruned(tokens.Tokenizer(whole.to_str(), whole.token_to_id("[PAD]")), TEXTS)
    for length in (64, 6):
        read = Text(tokenizer, length)
        found = javascript("text", "given.texts.map(m.textEncoder(given.read, given.marks))",
                           {"texts": texts, "read": read.to_dict(), "marks": web._about(read)})
        wanted = [row[: len(row) - int(np.argmax(row[::-1] != read.pad))].tolist() for row in read.encode(texts)]
        wrong = [(text, a, b) for text, a, b in zip(texts, found, wanted, strict=True) if a != b]
        assert not wrong, wrong[:3]


# --- what is refused


def test_inputs_that_the_page_can_t_encode_are_refused_before_compute(folders):
    kit = tokens.library()
    odd = kit.Tokenizer(kit.models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    spaced = kit.Tokenizer(kit.models.BPE())
    spaced.pre_tokenizer = kit.pre_tokenizers.Metaspace()
    floats = Image((8, 8), 1, (0.0,), (1.0,), 1.0, "float32")
    given = Exporter(onnxruntime_web="/nowhere")
    for read, said in ((floats, "pictures of float32"), (Text(tokens.Tokenizer(odd.to_str(), 0), 8), "Unigram"),
                       (Text(tokens.Tokenizer(spaced.to_str(), 0), 8), "Metaspace"),
                       (SimpleNamespace(kind="audio"), "inputs of kind audio")):
        with pytest.raises(RecipeError, match=said):
            given.refuse("classification", {}, read)
    with pytest.raises(RecipeError, match="of the task language"):
        given.refuse("language", {})
    with pytest.raises(RecipeError, match="no such file or folder.*npm pack onnxruntime-web@"):
        given.refuse("classification", {})
    with pytest.raises(RecipeError, match="tolerance"):
        Exporter(tolerance=0.0)


@pytest.fixture
def packed(tmp_path):
    """(package, its tarball): made here, with the hashes of what is in it."""
    file = tmp_path / "one.tgz"
    with tarfile.open(file, "w:gz") as tar:
        for name, data in (("package/dist/a.js", b"one"), ("package/other.js", b"two")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    return Package("one-package", "1.2.3", integrity, {"dist/a.js": hashlib.sha256(b"one").hexdigest()}), file


def test_a_package_is_read_from_its_tarball_or_folder(packed, tmp_path):
    package, file = packed
    assert package.read(str(file)) == {"dist/a.js": b"one"}
    with tarfile.open(file) as tar:
        tar.extractall(tmp_path / "there", filter="data")
    assert package.read(str(tmp_path / "there/package")) == {"dist/a.js": b"one"}


def test_another_byte_is_refused(packed, tmp_path):
    """Prevents: somebody else's script runs in the page of whoever opens it."""
    package, file = packed
    with pytest.raises(RecipeError, match="no dist/a.js"):
        package.read(str(tmp_path))
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist/a.js").write_bytes(b"One")
    with pytest.raises(RecipeError, match="another dist/a.js"):
        package.read(str(tmp_path))
    with pytest.raises(RecipeError, match="another dist/a.js"):
        dataclasses.replace(package, files={"dist/a.js": "0"}).read(str(file))
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(RecipeError, match="integrity.*set one_package=FILE.tgz"):
        package.read(str(file))


def test_without_npm_or_where_it_fails_the_other_way_is_said(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match="no npm on this machine.*npm pack one-package@1.2.3"):
        packed[0].read(None)
    (tmp_path / "npm").write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    with pytest.raises(RecipeError, match="did not bring one-package@1.2.3.*ENOTFOUND"):
        packed[0].read(None)


def test_nothing_in_the_page_comes_from_elsewhere_or_runs_from_a_string():
    """Prevents: an address in a script or style that the Content-Security-Policy would only block when somebody is online."""
    policy = (SOURCES / "index.html").read_text().partition('Policy" content="')[2].partition('"')[0]
    assert "default-src 'none'" in policy and "'unsafe-inline'" not in policy and "'unsafe-eval'" not in policy and "http" not in policy
    for name in web.PAGE:
        content = (SOURCES / name).read_text()
        assert "://" not in content.replace("http://localhost:8000", ""), name
        assert not any(word in content for word in ("innerHTML", "eval(", "onclick=", "onload=", "style=\"", "<script>")), name


# --- the page in a browser


@pytest.fixture(scope="module")
def chromium():
    """tests/browser.py."""
    spec = importlib.util.spec_from_file_location("browser", Path(__file__).parents[1] / "browser.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    if made.program() is None:
        pytest.skip("no chromium, which `make chromium` installs")
    return made


@pytest.fixture(scope="module")
def exporter():
    made = Exporter()
    try:
        made.refuse("classification", {})
    except RecipeError as error:
        pytest.skip(f"without npm and its registry: {error}")
    return made


def exported(exporter, folder, arch, options, read, raw, labels, classes):
    """(folder of the page, student): trained a little, so that its answers differ."""
    encoded = read.encode(raw)
    torch.manual_seed(0)
    module = kinds.configure("models", arch, options).build(read.shape, len(classes))
    inputs, targets = torch.from_numpy(read.normalise(encoded)), torch.from_numpy(np.asarray(labels))
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
    artefact.save(folder / "student", module.eval(), model={"arch": arch, **options}, shape=read.shape, classes=classes,
                  preprocess=read.to_dict(), card="# card", extra={"run": "a <b>name</b>"})
    exporter.export(folder / "student", folder, Probe(encoded), module)
    measured = {"shipped": 0.955, "mean": 0.95, "ci95": [0.94, 0.96], "seeds": [0.955, 0.945]}
    worst = {"worst_slice": {"name": "class=8", "distilled": 0.81}}
    exporter.told(folder, {"metric": "accuracy", "examples": 899, "arms": {"distilled": measured | worst}})
    return folder / "web", artefact.load(folder / "student")


@pytest.fixture(scope="module")
def digits(exporter, tmp_path_factory):
    from sklearn.datasets import load_digits

    found = load_digits()
    raw = found.images.astype(np.uint8)
    read = Preprocess.fit("image", raw, maximum=16)
    return exported(exporter, tmp_path_factory.mktemp("digits"), "mlp", {"hidden": [32]}, read, raw, found.target, [*map(str, range(10))])


@pytest.fixture
def opened(chromium):
    """open(folder, before) -> (page, stop the server): loaded, whatever it says. before: a script that runs before its own."""
    import contextlib

    with contextlib.ExitStack() as stack:
        def open_page(folder, before=""):
            address, stop = stack.enter_context(chromium.served(folder))
            page = stack.enter_context(chromium.browser())
            page.call("Page.addScriptToEvaluateOnNewDocument", source=before)
            page.screen(1100, 900)
            page.open(address)
            page.wait("document.readyState === 'complete' && document.querySelector('#trouble') && !document.querySelector('#wait')")
            return page, stop

        yield open_page


SAID = "document.querySelector('#said')"
TROUBLE = "document.querySelector('#trouble').textContent"
SHOWN = "[...document.querySelectorAll('#classes li')].map(row => [row.firstChild.textContent, Number(row.dataset.probability)])"


def asked(page, times):
    """{class: probability} of the answer with this number."""
    page.wait(f"{SAID}.dataset.asked === '{times}' || {TROUBLE}")
    assert page.ask(TROUBLE) == ""
    return dict(page.ask(SHOWN))


def agrees(found, student, wanted):
    """Same first class, every probability within 1e-4."""
    names = dict(zip(student.classes, wanted, strict=True))
    assert max(found, key=found.get) == max(names, key=names.get)
    assert max(abs(share - names[name]) for name, share in found.items()) < 1e-4


def quiet(page, address=""):
    """Nobody else was asked, and nothing went wrong."""
    assert page.blocked == [] and page.said == []
    assert all(one.startswith((page.home, "data:")) for one in page.asked), page.asked


def put(page, field, words):
    page.ask(f"document.querySelector({json.dumps(field)}).focus()")
    page.ask(f"document.querySelector({json.dumps(field)}).value = {json.dumps(words)}")


@pytest.mark.slow
def test_a_picture_that_is_dropped_is_answered_and_one_that_is_none_is_said(digits, opened, tmp_path):
    """Prevents: the browser opens the dropped file in place of the page."""
    folder, student = digits
    page, stop = opened(folder)
    stop()
    pixels = np.random.default_rng(1).integers(0, 256, (9, 9), dtype=np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / "dropped.png")
    data = base64.b64encode((tmp_path / "dropped.png").read_bytes()).decode()

    def drop(content, name):
        return page.ask(f"""(() => {{
          const bytes = Uint8Array.from(atob("{content}"), (letter) => letter.charCodeAt(0));
          const held = new DataTransfer();
          held.items.add(new File([bytes], "{name}", {{ type: "image/png" }}));
          const given = {{ bubbles: true, cancelable: true, dataTransfer: held }};
          const over = new DragEvent("dragover", given), dropped = new DragEvent("drop", given);
          document.body.dispatchEvent(over);
          document.body.dispatchEvent(dropped);
          return over.defaultPrevented && dropped.defaultPrevented;
        }})()""")

    assert drop(data, "dropped.png"), "the page takes it, and the browser does not leave"
    agrees(asked(page, 1), student, student.predict_file(tmp_path / "dropped.png")[0])
    quiet(page)
    assert drop(base64.b64encode(b"no picture").decode(), "text.png")
    page.wait(TROUBLE)


@pytest.mark.slow
def test_pictures_get_python_s_answers_with_the_network_cut(digits, opened, tmp_path):
    folder, student = digits
    page, stop = opened(folder)
    stop()
    random = np.random.default_rng(0)
    for at in range(100):
        size = tuple(random.integers(4, 50, 2)) + ((3,) if at % 2 else ())
        file = tmp_path / f"{at}.{'bmp' if at % 10 == 9 else 'png'}"
        Pillow.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(file)
        page.choose("#file", file)
        agrees(asked(page, at + 1), student, student.predict_file(file)[0])
    time = page.ask("document.querySelector('#time').textContent")
    assert "ms from input to answer; median of 100: " in time
    quiet(page)
    about = page.ask("document.querySelector('#about').innerText").replace("\u00a0", " ")
    assert "95.5 % (mean of 2 trainings 95.0 %, 95 % interval 94.0 % to 96.0 %) on 899 rows" in about and "class is 8: 81.0 %" in about
    assert page.ask("document.querySelector('h1').textContent") == "a <b>name</b>"
    assert "No network is used" in page.ask("document.body.innerText")


@pytest.mark.slow
def test_files_of_all_sorts_get_python_s_answers_or_a_word(digits, opened, tmp_path):
    """Prevents: a photograph that lies on its side in the page and stands in Python, or colours that only the browser corrects."""
    folder, student = digits
    page, _ = opened(folder)
    random = np.random.default_rng(0)
    photo = Pillow.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60), Pillow.Resampling.BICUBIC)
    turned = Pillow.Exif()
    turned[0x112] = 6
    few = photo.quantize(32)
    files = {"a.jpg": photo, "b.gif": few, "c.webp": photo, "d.png": photo.convert("1"), "e.bmp": photo, "f.png": few}
    for at, (name, one) in enumerate(files.items()):
        one.save(tmp_path / name, **({"exif": turned} if name.endswith("jpg") else {}))
        page.choose("#file", tmp_path / name)
        agrees(asked(page, at + 1), student, student.predict_file(tmp_path / name)[0])
    photo.putalpha(Pillow.fromarray(random.integers(0, 256, (60, 80), dtype=np.uint8)))
    photo.save(tmp_path / "clear.png")
    Pillow.fromarray(random.integers(0, 65535, (9, 9)).astype(np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "no.png").write_bytes(b"no picture")
    refused = {"clear.png": "has transparent parts", "deep.png": "has 16 bits a pixel", "no.png": "can't be read as an image"}
    for name, said in refused.items():
        page.choose("#file", tmp_path / name)
        page.wait(f"{TROUBLE}.includes({json.dumps(f'“{name}” {said}')})")
    quiet(page)


@pytest.mark.slow
def test_a_run_s_page_shows_its_figures(exporter, toy):
    """Prevents: a page that says "not measured", or an older run's figures, because it was made before there were any."""
    run = toy.run("export=[web]", "training.seeds=2")
    said = json.loads((run.path / "exports/web/measured.json").read_text())
    student = run.summary["arms"]["distilled"]
    assert (said["value"], said["ci95"], said["examples"]) == (student["shipped"], student["ci95"], run.summary["examples"])
    assert said["metric"] == "accuracy" and said["worst"]["value"] == student["worst_slice"]["distilled"]


@pytest.mark.slow
def test_a_drawn_digit_is_read_by_keyboard_and_by_mouse(digits, opened):
    page, _ = opened(digits[0])
    page.press("Tab", code=9)
    assert page.ask("document.activeElement.id") == "canvas", "the pad is the first that Tab reaches"
    for _ in range(8):
        page.press("ArrowUp", code=38)
    page.press(" ", " ", 32)
    for _ in range(17):
        page.press("ArrowDown", code=40)
    page.press(" ", " ", 32)
    line = asked(page, 1)
    page.press("Delete", code=46)
    reached = []
    for _ in range(3):
        page.press("Tab", code=9)
        reached.append(page.ask("document.activeElement.id"))
    assert reached == ["clear", "centre", "file"]
    left, top, side = page.ask("(({left, top, width}) => [left, top, width])(document.querySelector('#canvas').getBoundingClientRect())")
    turns = np.linspace(0, 6.4, 40)
    places = list(zip(left + side * (0.5 + 0.27 * np.sin(turns)), top + side * (0.5 - 0.42 * np.cos(turns)), strict=True))
    page.mouse("mousePressed", *places[0])
    for place in places:
        page.mouse("mouseMoved", *place)
    page.mouse("mouseReleased", *places[-1])
    found = asked(page, 2)
    assert max(found, key=found.get) == "0", found
    assert line["0"] < 0.5 and found != line, "what the keyboard drew was no ring, and Delete cleared it"
    drawn = "document.querySelector('#canvas').getContext('2d').getImageData(0, 0, 280, 280).data"
    assert page.ask(f"{drawn}.some((value, at) => at % 4 < 3 && value)")
    page.ask("document.querySelector('#clear').focus()")
    page.press("Enter", "\r", 13)
    assert not page.ask(f"{drawn}.some((value, at) => at % 4 < 3 && value)")
    quiet(page)


@pytest.mark.slow
def test_texts_get_python_s_answers(exporter, opened, tmp_path):
    texts = [*TEXTS, *ODD[2:]]
    read = Preprocess.fit("text", texts, tokenizer=tokens.train("bpe", TEXTS * 3, 400), length=24)
    options = {"width": 16, "vocabulary": read.vocabulary, "pad": read.pad}
    folder, student = exported(exporter, tmp_path, "bag", options, read, texts, np.arange(len(texts)) % 3, ["music", "light", "other"])
    page, _ = opened(folder)
    random = np.random.default_rng(0)
    words = " ".join(TEXTS).split()
    for at in range(100):
        text = texts[at] if at < len(texts) else " ".join(random.choice(words, random.integers(1, 30)))
        text = text.replace("\r\n", "\n").replace("\x00", "")
        put(page, "#typed", text)
        page.press("Enter", code=13, modifiers=2)
        agrees(asked(page, at + 1), student, student.predict([text])[0])
    quiet(page)


@pytest.mark.slow
def test_a_row_of_a_table_gets_python_s_answer(exporter, opened, tmp_path):
    raw = {"age": np.arange(20.0), "town": np.array(list("xyzxy") * 4, dtype=object)}
    read = Preprocess.fit("table", raw)
    folder, student = exported(exporter, tmp_path, "linear", {}, read, raw, np.arange(20) % 2, ["no", "yes"])
    page, _ = opened(folder)
    for at, (age, town) in enumerate([("3", "x"), ("17.5", "z"), ("", "y"), ("4", "")]):
        put(page, "#field-0", age)
        put(page, "#field-1", town)
        page.ask("document.querySelector('#ask').focus()")
        page.press("Enter", "\r", 13)
        agrees(asked(page, at + 1), student, student.predict({"age": np.array([age], object), "town": np.array([town], object)})[0])
    put(page, "#field-0", "old")
    page.press("Enter", "\r", 13)
    assert "age: “old” is no number" in page.wait(TROUBLE)
    assert page.ask(f"{SAID}.textContent") == "No answer." and page.ask(SHOWN) == [], "the last answer is not this input's"
    quiet(page)


@pytest.mark.slow
def test_the_page_may_ask_nobody_else(digits, opened):
    """Prevents: a policy that is written down and not in force. Without it the requests would be among those that are blocked here."""
    page, _ = opened(digits[0])
    page.ask("addEventListener('securitypolicyviolation', event => (window.refused ??= []).push(event.effectiveDirective))")
    assert page.ask("fetch('http://example.org/').then(() => 'an answer', () => 'none')") == "none"
    page.ask("Object.assign(new Image(), {src: 'http://example.org/x.png'}).decode().catch(() => 'none')")
    assert page.wait("window.refused?.length === 2 && window.refused") == ["connect-src", "img-src"]
    assert page.blocked == [], "they were refused before the browser asked"


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(digits, opened, dark):
    page, _ = opened(digits[0])
    page.screen(360, 740, dark)
    page.ask("document.querySelector('#clear').click()")
    assert page.ask("document.documentElement.scrollWidth") <= 360
    beyond = "filter(one => one.getBoundingClientRect().right > 360).map(one => one.tagName)"
    assert page.ask(f"[...document.querySelectorAll('body *')].{beyond}") == []
    assert page.ask("matchMedia('(prefers-color-scheme: dark)').matches") == dark
    brightness = page.ask("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (brightness < 64) == dark


@pytest.mark.slow
@pytest.mark.parametrize(("lacking", "said"), [
    ("model.onnx", "“model.onnx” is missing beside this page (404)"),
    ("vendor/ort.wasm.bundle.min.mjs", "onnxruntime-web is missing"),
    ("vendor/ort-wasm-simd-threaded.wasm", "The model can't be loaded"),
    (None, "WebAssembly is switched off")])
def test_what_is_missing_is_said_in_words(digits, opened, tmp_path, lacking, said):
    shutil.copytree(digits[0], tmp_path / "page")
    if lacking:
        (tmp_path / "page" / lacking).unlink()
    page, _ = opened(tmp_path / "page", "" if lacking else "delete globalThis.WebAssembly")
    assert said in page.ask(TROUBLE)
    assert page.ask("document.querySelector('#input').hidden")
