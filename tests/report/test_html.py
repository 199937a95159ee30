"""The page: well-formed, silent (no script, no network), complete, small, and honest where something is missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from understudy.report import figures, html, numbers, svg
from understudy.report.facts import Arm, Classification, Size
from understudy.report.summary import summarise

VOID = {"meta", "img", "br", "hr", "input", "link"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;{{ 7*7 }}"


class Page(HTMLParser):
    """Checks that tags nest, and collects tags, attributes, text, and the ids of sections."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words, self.sections = [], [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.sections += [value for name, value in attrs if tag == "section" and name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page(documents, **options):
    text = html.render(*documents(**options))
    return text, Page(text)


@pytest.mark.parametrize(
    "options",
    [{}, {"control": False, "images": False}, {"groups": True, "word": "hurts"}, {"seeds": 1, "word": "no evidence"}],
    ids=["whole", "no control", "groups", "one seed"],
)
def test_well_formed_and_silent(documents, options):
    """A forwarded report must not run anything, nor tell a server that it was opened."""
    text, parsed = page(documents, **options)
    assert text.startswith("<!doctype html>") and text.count("<html") == 1
    assert not {"script", "link", "iframe", "object", "embed", "form", "base", "use", "foreignobject"} & set(parsed.tags)
    assert "http:" not in text and "https:" not in text
    for name, value in parsed.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert value.startswith("data:image/")
    assert "url(" not in text and "@import" not in text and "javascript:" not in text
    assert "default-src 'none'" in text


def test_every_claim_and_gate_has_its_row(documents):
    """A refuted claim or a failed gate must not be lost on the way to the reader."""
    summary, details = documents()
    parsed = Page(html.render(summary, details))
    for claim in details["claims"]:
        assert claim["promise"][1:] in parsed.text and claim["conditions"][1:] in parsed.text
    for word in ("confirmed", "refuted", "not shown"):
        # once in the words above the table for two of them
        assert parsed.text.lower().count(word) >= sum(claim["result"] == word for claim in details["claims"])
    for gate in details["gates"]:
        assert gate["name"] in parsed.text
    assert "✓ passed" in parsed.text and "✗ failed" in parsed.text and "1 of 2" in parsed.text


def test_order_of_the_sections(documents):
    _, parsed = page(documents, groups=True)
    assert parsed.sections == [
        "claims",
        "models",
        "lost",
        "reliability",
        "dark",
        "examples",
        "curves",
        "temperature",
        "selftest",
        "provenance",
    ]


@pytest.mark.parametrize(
    ("key", "empty", "section"),
    [
        ("calibration", {}, "reliability"),
        ("ranked", {"rule": "", "rows": []}, "examples"),
        ("curves", {}, "curves"),
        ("temperature", [], "temperature"),
        ("selftest", [], "selftest"),
        ("dark_knowledge", None, "dark"),
    ],
)
def test_a_section_without_facts_is_left_out(documents, key, empty, section):
    """An empty figure reads as "nothing wrong here"."""
    summary, details = documents()
    assert section in Page(html.render(summary, details)).sections
    parsed = Page(html.render(summary, {**details, key: empty}))
    assert section not in parsed.sections and "provenance" in parsed.sections


def test_missing_parts_are_said_or_left_out(documents):
    summary, details = documents(control=False, images=False)
    text = html.render(summary, details)
    parsed = Page(text)
    assert "Not compared with a control" in parsed.text and "Control" not in parsed.text.replace("Not compared with a control", "")
    assert "<img" not in text and "occupation Sales" in parsed.text
    assert "group" not in parsed.text.lower().replace("groups alike", "")
    bare = {
        **details,
        "gates": [],
        "claims": [],
        "latency": None,
        "worst_slice": None,
        "notes": [],
        "groups": [],
        "severity": None,
        "duplicates": None,
        "exports": [],
        "provenance": {},
        "split": {},
        "inherited": {**details["inherited"], "teacher_wrong": 0},
    }
    parsed = Page(html.render(summary, bare))
    assert "The recipe asks for no gates." in parsed.text and "Mistakes learnt" not in parsed.text and "Faster" not in parsed.text


@pytest.mark.parametrize("hide", ["value", "ci95"])
def test_figures_that_cannot_be_said_are_dashes(documents, hide):
    """With one seed there are no intervals; "None" or "nan" in a report is a number nobody can explain."""
    summary, details = documents(seeds=1)

    def blank(item):
        if isinstance(item, dict):
            return {k: None if k == hide or (hide == "ci95" and k == "smallest_visible") else blank(v) for k, v in item.items()}
        return [blank(v) for v in item] if isinstance(item, list) else item

    details = {**blank(details), "metric": details["metric"]}
    details["verdict"] |= {"df": None, "p_value": None}
    parsed = Page(html.render(blank(summary), details))
    assert not re.search(r"\b(None|nan|inf)\b", parsed.text) and numbers.NOTHING in parsed.text


def test_hostile_names_are_only_shown(documents):
    """A class, column or path with markup in it must be read, never parsed."""
    classes = (HOSTILE, *"123456789")
    summary, details = documents(classes, groups=True, images=False)
    hostile = {
        **details,
        "notes": [HOSTILE],
        "sentence": HOSTILE,
        "verdict_line": HOSTILE,
        "control_reason": HOSTILE,
        "split": {HOSTILE: HOSTILE},
        "provenance": {"command": HOSTILE, "recipe": {HOSTILE: HOSTILE}, HOSTILE: {HOSTILE: HOSTILE}, "loose": HOSTILE},
        "selftest": [{"check": HOSTILE, "result": HOSTILE, "figure": HOSTILE}],
        "exports": [{"format": HOSTILE, "path": HOSTILE}],
        "temperature_note": HOSTILE,
        "curves": {HOSTILE: details["curves"]["kd/mean_nats"]},
        "worst_slice": {**details["worst_slice"], "name": HOSTILE},
    }
    hostile["ranked"]["rows"][0] |= {"id": HOSTILE, "text": HOSTILE, "image": 'data:image/png;base64,"><script>alert(1)</script>'}
    hostile["claims"][0] |= {"promise": HOSTILE, "conditions": HOSTILE, "reason": HOSTILE}
    hostile["gates"][0] |= {"name": HOSTILE}
    text = html.render({**summary, "name": HOSTILE}, hostile)
    parsed = Page(text)
    assert "script" not in parsed.tags and "img" not in parsed.tags
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert HOSTILE in "".join(parsed.words) and "49" not in "".join(w for w in parsed.words if "alert" in w)


def test_pictures_that_are_none_are_dropped(documents):
    """An example's picture must not become a way to load something."""
    summary, details = documents()
    for image in ("http://x.test/a.png", "data:text/html;base64,AAAA", "data:image/svg+xml;base64,AAAA", "javascript:alert(1)"):
        details["ranked"]["rows"][0]["image"] = image
        text = html.render(summary, details)
        assert image not in text and text.count("<img") == html.EXAMPLES - 1


def test_small_whatever_comes(documents):
    """A page of a hundred classes or a thousand seeds that no mail server takes is not read."""
    classes = tuple(f"class {i} with a long name" for i in range(150))
    summary, details = documents(classes, groups=True, seeds=20, rows=200)
    details["ranked"]["rows"][0]["image"] = "data:image/png;base64," + "A" * 3_000_000
    details["curves"] = {f"series {i}": arms for i in range(30) for arms in details["curves"].values()}
    details["provenance"]["recipe"] = {f"key {i}": i for i in range(5000)}
    text = html.render(summary, details)
    parsed = Page(text)
    assert len(text.encode()) < 1_500_000
    assert (
        f"The first {html.CLASSES} of 150 classes." in parsed.text
        and f"The {figures.CONFUSED} classes that the teacher confuses most, of 150." in parsed.text
    )
    assert (
        f"The first {html.EXAMPLES} of 200." in parsed.text
        and "6 of 30 series" in parsed.text
        and "more lines in recipe.yaml" in parsed.text
    )


def test_worst_classes_are_the_ones_that_lost_most(documents):
    """A table cut by name would hide the class that the student forgot."""
    _, details = documents(tuple(f"c{i}" for i in range(60)))
    rows = html.class_rows(details)["rows"]
    lost = {row["name"]: row["teacher"]["value"] - row["distilled"]["value"] for row in details["classes"]}
    assert [row["name"] for row in rows] == sorted(lost, key=lambda name: -lost[name])[: html.CLASSES]


def test_the_real_summary_renders():
    """The page and the summary are written apart; a renamed key would only be seen by a user."""
    rng = np.random.default_rng(0)
    n, m, c = 120, 30, 4
    labels, labels_val = rng.integers(0, c, n), rng.integers(0, c, m)

    def logits(truth, seeds, sharp):
        return rng.normal(size=(seeds, len(truth), c)) + sharp * np.eye(c)[truth]

    def log_probs(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    for seeds, arms in ((3, ("control", "distilled")), (1, ("control", "distilled")), (3, ("distilled",))):
        made = {arm: Arm(logits(labels, seeds, 2.0), logits(labels_val, seeds, 2.0), tuple(range(seeds))) for arm in arms}
        curves = [
            {"arm": arm, "seed": s, "epoch": e, "step": e, "validation/accuracy": 1 - 1 / e, "lr": 0.1 / e}
            for arm in arms
            for s in range(seeds)
            for e in range(1, 9)
        ]
        facts = Classification(
            name="run",
            metric="accuracy",
            classes=tuple("abcd"),
            class_counts=np.full(c, 40),
            ids_test=np.array([f"t/{i}" for i in range(n)]),
            labels_test=labels,
            labels_val=labels_val,
            teacher_log_probs_test=log_probs(logits(labels, 1, 4.0)[0]),
            teacher_log_probs_val=log_probs(logits(labels_val, 1, 4.0)[0]),
            arms=made,
            shipped=0,
            teacher=Size(900, 3600, 900),
            student=Size(90, 400),
            temperature=3.0,
            groups={"a": "x", "b": "x"},
            gates={"min_kept": 0.1, "max_bytes": 500},
            duplicates=np.array([1, 5]),
            thumbnail=lambda row: f"row {row}",
            curves=curves,
            control="no_teacher" if "control" in arms else "none",
            control_reason="" if "control" in arms else "too dear",
        )
        summary, details = summarise(facts)
        parsed = Page(html.render(summary, details))
        assert details["sentence"] in parsed.text and not re.search(r"\b(None|nan)\b", parsed.text)
        assert "400 B" in parsed.text.replace("\N{NO-BREAK SPACE}", " ") and "dark" in parsed.sections and "curves" in parsed.sections


def test_digits_follow_the_interval():
    """98.5 % with an interval of ± 0.07 hides the difference that the run was made for."""
    assert numbers.estimate({"value": 0.98541, "ci95": [0.98471, 0.98611]}).replace("\N{NO-BREAK SPACE}", " ") == "98.54 % [98.47, 98.61]"
    assert numbers.estimate({"value": 0.9681, "ci95": [0.960, 0.975]}).replace("\N{NO-BREAK SPACE}", " ") == "96.8 % [96.0, 97.5]"
    assert numbers.value(-0.0204, difference=True).replace("\N{NO-BREAK SPACE}", " ") == "−2.0 points"
    assert numbers.fixed(-0.04, 1, signed=True) == "0.0" and numbers.exact(0.9) == "90\N{NO-BREAK SPACE}%"
    assert numbers.bracket([30.3, 30.3], "times") == "" and numbers.value(None) == numbers.NOTHING
    assert numbers.value(0.00003).startswith("<") and numbers.count(121_530) == "122\N{NO-BREAK SPACE}k"


def test_heat_map_chooses_the_confused():
    matrix = np.eye(50)
    matrix[7, 31] = matrix[44, 3] = 0.4
    chosen = figures.confused(matrix.tolist(), limit=4)
    assert chosen == [3, 7, 31, 44]
    assert figures.shade(1e-3, (1e-3, 1.0)) == 0 and figures.shade(1.0, (1e-3, 1.0)) == 1
    assert 0 < figures.shade(0.01, (1e-3, 1.0)) < figures.shade(0.1, (1e-3, 1.0)) < 1


@pytest.mark.parametrize(("low", "high"), [(0.02, 0.99), (0.9641, 0.9643), (-3.0, 5.0), (0.0, 1e6), (12.0, 12.5)])
def test_ticks_are_round_and_inside(low, high):
    found = svg.ticks(low, high)
    assert 2 <= len(found) <= 9 and all(low - 1e-12 <= t <= high + 1e-12 for t in found)
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])


def test_thinned_curves_keep_their_ends():
    x, y = list(range(1000)), [float(i) for i in range(1000)]
    found = figures.thin(x, y)
    assert len(found) == figures.POINTS and found[0] == (0.0, 0.0) and found[-1] == (999.0, 999.0)
    assert figures.thin([1, 2, 3], [1.0, None, float("nan")]) == [(1.0, 1.0)]


def test_artefacts_in_fewer_bits_are_compared(documents):
    """What was kept, what failed and why one was not made; the layers that suffer, the worst first."""
    summary, details = documents()
    parity = {"rows": 899, "max_abs": 0.1, "argmax_agreement": 0.9989, "drop": 0.0011, "drop_upper": 0.0043,
              "metric": "accuracy", "items": 30}
    row = {
        "format": "onnx_int8", "path": "exports/onnx_int8/model.onnx", "bytes": 9463, "parity": parity, "method": "static",
        "candidates": [
            {"method": "float", "bytes": 32000, "p50": 0.02, "p95": 0.03, "calls": 300},
            {"method": "static", "bytes": 9463, "p50": 0.0123, "p95": 0.02, "calls": 300, "parity": parity,
             "seen": {"alike": 0.9912, "drop": 0.001, "same": True, "fits": True}},
            {"method": "dynamic", "refused": "not for convolutions"},
        ],
        "kept_float": ["head"], "reason": "static: the fastest", "conditions": "batch 1, ONNX Runtime, 1 thread(s), two cores",
        "sensitivity": [{"layer": HOSTILE, "op": "Conv", "weights": 576, "kl_nats": 1.37e-5, "mse": 1e-5, "agreement": 1.0, "float": False},
                        {"layer": "head", "op": "Gemm", "weights": 640, "kl_nats": 6e-6, "mse": 1e-5, "agreement": 1.0, "float": True}],
    }  # fmt: skip
    parsed = Page(html.render(summary, {**details, "exports": [row]}))
    assert "quantised" in parsed.sections and "script" not in parsed.tags
    for words in ("Static: the fastest", "not for convolutions", "0.012", "9.46", "In float: head", "1.37e-05", "99.1", "passed kept",
                  "over 30 groups", "two cores; 300 calls of each"):
        assert words in parsed.text, words
    assert "quantised" not in Page(html.render(summary, details)).sections


def test_what_training_for_eight_bits_gave_is_shown(documents):
    summary, details = documents()
    figure = {"value": 0.004, "ci95": [-0.002, 0.01]}
    found = {
        "rows": [{"name": name, "label": f"int8, {name}", "value": 0.95, "ci95": [0.93, 0.97], "bytes": 9463}
                 for name in ("float", "after", "labels", "taught")],
        "differences": {name: figure for name in ("float", "after", "labels")}, "examples": 899, "sentence": "Not shown to differ.",
    }  # fmt: skip
    parsed = Page(html.render(summary, {**details, "quantised": found}))
    assert "aware" in parsed.sections and "Not shown to differ." in parsed.text and parsed.text.count("+0.4") == 3
    assert "aware" not in Page(html.render(summary, details)).sections
