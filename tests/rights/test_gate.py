from __future__ import annotations

import json

import pytest

from understudy.errors import RecipeError, RightsError
from understudy.rights.gate import Acknowledgement, acknowledgement, gate
from understudy.rights.terms import Rights

OWN, ALLOWED, UNKNOWN = Rights(terms="own"), Rights(terms="allowed", licence="MIT"), Rights(terms="unknown")
DISALLOWED = Rights(terms="disallowed", licence="Example Terms 3.1")


def test_own_and_allowed_pass_and_are_recorded():
    record = gate({"a": OWN, "b": ALLOWED})
    assert record == {"terms": "allowed", "teachers": {"a": OWN.to_dict(), "b": ALLOWED.to_dict()}, "acknowledged": []}
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize("acknowledgements", [[], ["Ada: it is fine"]])
def test_a_disallowed_member_refuses_the_ensemble_whatever_anybody_says(acknowledgements):
    """Prevents: one forbidden member hides in an ensemble, or a flag meant for unknown terms opens a forbidden teacher."""
    with pytest.raises(RightsError) as error:
        gate({"mine": OWN, "theirs": DISALLOWED, "third": UNKNOWN}, acknowledgements)
    assert error.value.exit_code == 6
    assert '"theirs" (Example Terms 3.1)' in str(error.value)
    assert "mine" not in str(error.value)


def test_unknown_needs_a_name_and_keeps_it():
    with pytest.raises(RightsError) as error:
        gate({"mine": OWN, "theirs": UNKNOWN})
    assert "--acknowledge-unknown-rights" in str(error.value) and '"theirs"' in str(error.value)
    record = gate({"mine": OWN, "theirs": UNKNOWN}, ["Ada Lovelace: asked the author, ticket: 12"])
    assert record["terms"] == "unknown"
    assert record["acknowledged"] == [{"name": "Ada Lovelace", "reason": "asked the author, ticket: 12"}]


def test_an_acknowledgement_that_nothing_needs_is_not_recorded():
    """Prevents: a card says that somebody answered for unknown terms where all terms are known."""
    assert gate({"mine": OWN}, ["Ada: why not"])["acknowledged"] == []


@pytest.mark.parametrize("text", ["", "Ada", ": because", "Ada:", "Ada:   ", " : "])
def test_an_acknowledgement_without_a_name_or_a_reason_is_refused(text):
    with pytest.raises(RecipeError):
        acknowledgement(text)
    with pytest.raises(RecipeError):
        gate({"mine": OWN}, [text])


def test_an_acknowledgement_is_split_at_the_first_colon():
    assert acknowledgement("  Ada :  see note: 4 ") == Acknowledgement("Ada", "see note: 4")
