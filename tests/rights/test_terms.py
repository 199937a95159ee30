from __future__ import annotations

import itertools

import pytest

from understudy.errors import RecipeError
from understudy.rights.terms import TERMS, Rights, from_dict, strictest


@pytest.mark.parametrize("terms", list(itertools.product(TERMS, repeat=3)))
def test_strictest_is_the_last_in_the_order_wherever_it_stands(terms):
    want = next(name for name in ("disallowed", "unknown", "allowed", "own") if name in terms)
    assert strictest(Rights(terms=name) for name in terms) == want


def test_terms_that_are_not_stated_are_unknown():
    """Prevents: a teacher that nobody has looked at passes as allowed because the recipe says nothing."""
    assert Rights().terms == "unknown"
    assert from_dict({}).terms == "unknown"


def test_a_record_survives_its_own_dictionary():
    rights = Rights(terms="allowed", licence="MIT", basis="the licence", source="https://example.org/LICENSE")
    assert from_dict(rights.to_dict()) == rights


@pytest.mark.parametrize(("values", "hint"), [
    ({"terms": "dissallowed"}, '"disallowed"'),
    ({"terms": "ALLOWED"}, '"allowed"'),
    ({"terms": ""}, '"unknown"'),
    ({"terms": "own", "license": "MIT"}, '"licence"'),
    ({"terms": None}, "terms is not text"),
    ({"licence": 3}, "licence is not text"),
])
def test_what_is_not_known_is_refused_with_a_hint(values, hint):
    """Prevents: a misspelt "disallowed" is taken for something weaker."""
    with pytest.raises(RecipeError) as error:
        from_dict(values)
    assert hint in str(error.value)
