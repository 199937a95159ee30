"""The student's card: complete, parseable front matter, and nothing in it but text."""

from __future__ import annotations

import re

import yaml

from understudy.report import card

HOSTILE = "<script>alert(1)</script> | [x](http://evil.test) `code` **bold**\n# heading\n---\n"


def front(text):
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_says_what_and_how(documents):
    summary, details = documents()
    head, body = front(card.render(summary, details))
    assert head["library_name"] == "understudy" and head["metrics"] == ["accuracy"] and head["understudy"]["verdict"] == "helps"
    for part in ("## What it is", "## How good it is", "## Know before you use it", "## Use it", "## Rights", "## Where it comes from"):
        assert part in body
    assert "understudy.load(" in body and "understudy predict" in body and "own" in body and details["sentence"] in body
    for claim in details["claims"]:
        assert claim["promise"] in body and claim["conditions"] in body
    assert "**failed**" in body and "passed" in body


def test_hostile_names_stay_names(documents):
    """A class called like a tag, link or table cell must not change what the card says on a model hub."""
    summary, details = documents((HOSTILE, *"123456789"))
    details["provenance"] |= {
        "command": "x\n```\n# heading",
        "rights": {"terms": HOSTILE, "teachers": {HOSTILE: {"basis": HOSTILE}}, "acknowledged": [{"name": HOSTILE, "reason": HOSTILE}]},
    }
    details |= {
        "notes": [HOSTILE],
        "sentence": HOSTILE,
        "verdict_line": HOSTILE,
        "split": {HOSTILE: HOSTILE},
        "worst_slice": {**details["worst_slice"], "name": HOSTILE},
    }
    details["claims"][0] |= {"promise": HOSTILE, "conditions": HOSTILE}
    text = card.render({**summary, "name": HOSTILE}, details)
    head, body = front(text)
    assert head["understudy"]["name"] == " ".join(HOSTILE.split())
    assert not re.search(r"<|http://|(?<!\\)\]\(", body)
    assert "````sh\nx\n```\n# heading\n````" in body
    own = body.replace("````sh\nx\n```\n# heading\n````", "")
    assert [line for line in own.splitlines() if line.startswith("# ")] == [f"# {card.escaped(HOSTILE)}"]
    for line in own.splitlines():
        if line.startswith("| "):
            assert line.replace("\\|", "").count("|") in (5, 7)


def test_without_control_rights_or_seeds(documents):
    """A missing part is said, not shown as None."""
    summary, details = documents(control=False, seeds=1)
    details |= {"provenance": {}, "worst_slice": None, "gates": [], "claims": [], "notes": []}
    for row in details["table"]:
        row["ci95"] = None
    text = card.render(summary, details)
    assert "Nothing is recorded about the teacher's terms." in text and "None" not in text and "Control" not in text and "1 seed," in text


def test_many_classes_are_counted(documents):
    summary, details = documents(tuple(f"c{i}" for i in range(150)))
    text = card.render(summary, details)
    assert "Classes (150)" in text and "and 110 more" in text and len(text) < 20_000


def test_fences_outgrow_their_code():
    assert card.fenced("a ```` b").startswith("`````\n") and card.fenced("a", "sh") == "```sh\na\n```"
