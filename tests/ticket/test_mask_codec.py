"""The mask codec: exact, near the entropy, and bounded by what it is told to expect."""

import contextlib
import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lottery.ticket.mask_codec import CodecError, decode, encode


def entropy(density: float) -> float:
    return -density * math.log2(density) - (1 - density) * math.log2(1 - density)


def random_bits(numel: int, density: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(numel) < density


@given(
    numel=st.integers(0, 3000),
    density=st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.06, 0.1, 0.5, 0.9, 0.97, 0.999, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_bits_come_back(numel, density, seed):
    packed = np.packbits(random_bits(numel, density, seed))
    coded = encode(packed, numel)
    np.testing.assert_array_equal(decode(coded, numel), packed)
    assert len(coded) <= len(packed) + 1


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.07, 0.059, 0.05, 0.02, 0.01, 0.004, 0.001, 0.9, 0.98])
def test_random_bits_take_at_most_5_percent_more_than_their_entropy(density):
    numel = 1 << 21
    bits = random_bits(numel, density)
    coded = encode(np.packbits(bits), numel)
    assert 8 * len(coded) / numel <= 1.05 * entropy(bits.mean())


def test_pruned_neurons_take_far_less_than_the_entropy_of_independent_bits():
    rows = np.repeat(random_bits(1000, 0.3), 800)
    assert 8 * len(encode(np.packbits(rows), rows.size)) / rows.size < 0.1 * entropy(0.3)


@settings(max_examples=300)
@given(
    density=st.sampled_from([0.002, 0.03, 0.3, 0.99]),
    position=st.integers(0, 10**6),
    value=st.integers(0, 255),
    cut=st.booleans(),
)
def test_damage_gives_our_error_or_bits_of_the_right_number(density, position, value, cut):
    numel = 4000
    coded = bytearray(encode(np.packbits(random_bits(numel, density)), numel))
    position %= len(coded)
    coded[position] = value
    damaged = bytes(coded[:position]) if cut else bytes(coded)
    with contextlib.suppress(CodecError):
        assert len(decode(damaged, numel)) == 500


def test_a_bomb_is_not_expanded(traced_peak):
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"\x01" + coder.compress(bytes(1 << 24)) + coder.flush()
    assert len(bomb) < 20_000
    with traced_peak(at_most=1 << 18), pytest.raises(CodecError):
        decode(bomb, 4000)


def test_a_claim_of_many_gaps_is_not_believed(traced_peak):
    claim = b"\x02" + struct.pack("<QB", 1 << 40, 0) + b"\x00"
    with traced_peak(at_most=1 << 18), pytest.raises(CodecError):
        decode(claim, 4000)
