import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_lottery.mask import Mask
from hf_lottery.results.overlap import chance, jaccard, overlaps
from hf_lottery.results.results import read_results
from tests.result_lines import line, lines, write_folder


def mask(**bits: str) -> Mask:
    return Mask({name: torch.tensor([bit == "1" for bit in row]) for name, row in bits.items()})


def test_jaccard_by_hand():
    a, b = mask(x="1100", y="11"), mask(x="0110", y="10")
    assert jaccard(a, b) == 2 / 5  # shared: one in x, one in y; either: three in x, two in y
    assert jaccard(a, a) == 1
    assert jaccard(a, ~a) == 0
    assert math.isnan(jaccard(mask(x="0000"), mask(x="0000")))


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_jaccard_is_that_of_the_sets_of_kept_weights(bits, random):
    other = [random.random() < 0.5 for _ in bits]
    ours, theirs = ({i for i, bit in enumerate(row) if bit} for row in (bits, other))
    if ours | theirs:
        found = jaccard(Mask({"x": torch.tensor(bits)}), Mask({"x": torch.tensor(other)}))
        assert found == len(ours & theirs) / len(ours | theirs)


def test_chance_of_one_density_is_d_over_two_minus_d():
    half, fifth = mask(x="1100"), mask(x="10000")
    assert chance(half, half) == pytest.approx(0.5 / 1.5)
    assert chance(fifth, fifth) == pytest.approx(0.2 / 1.8)


def test_chance_adds_up_layers_by_their_expected_counts():
    # x: 2 and 2 of 4 share 1 on average, either has 3; y: 1 and 1 of 10 share 0.1, either has 1.9
    found = mask(x="1100", y="1000000000")
    assert chance(found, found) == pytest.approx(1.1 / 4.9)


def test_shuffled_masks_overlap_as_chance_says():
    generator = torch.Generator().manual_seed(0)
    start = Mask({"a": torch.arange(40_000) < 12_000, "b": torch.arange(10_000) < 500})
    a, b = start.shuffled(generator), start.shuffled(generator)
    assert jaccard(a, b) == pytest.approx(chance(a, b), rel=0.03)


def test_rounds_of_a_folder_are_compared_pair_by_pair(tmp_path):
    folder = write_folder(tmp_path, lines(3, controls=()))
    rows = overlaps(folder, read_results(folder))
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert all(row["n"] == 3 and row["minimum"] <= row["jaccard"] <= row["maximum"] for row in rows)

    (folder / "replicate-2" / "round-01" / "mask.safetensors").unlink()
    assert overlaps(folder, read_results(folder))[0]["n"] == 1


def test_one_replicate_has_nothing_to_compare(tmp_path):
    folder = write_folder(tmp_path, [line("ticket", 0), line("ticket", 1)])
    (row,) = overlaps(folder, read_results(folder))
    assert row["n"] == 0 and math.isnan(row["jaccard"])
