"""Mask: counts, packing against numpy, fingerprints, shuffles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lottery import Mask
from hf_lottery.mask import pack_bits, unpack_bits


@st.composite
def masks(draw):
    shapes = draw(st.lists(st.lists(st.integers(0, 7), min_size=0, max_size=3), min_size=1, max_size=4))
    seed = draw(st.integers(0, 2**31))
    density = draw(st.floats(0, 1))
    generator = torch.Generator().manual_seed(seed)
    return Mask({f"t{i}": torch.rand(shape, generator=generator) < density for i, shape in enumerate(shapes)})


@given(masks())
@settings(deadline=None)
def test_pack_round_trips_and_is_numpys_layout(mask):
    packed = mask.pack()
    assert Mask.unpack(packed, {name: tensor.shape for name, tensor in mask.items()}) == mask
    for name, tensor in mask.items():
        assert np.array_equal(packed[name].numpy(), np.packbits(tensor.numpy()))


@given(masks())
@settings(deadline=None)
def test_a_packed_mask_is_the_same_mask(mask):
    packed = Mask.packing(mask.items())
    assert packed == mask and mask == packed
    assert packed.fingerprint() == mask.fingerprint()
    assert packed.counts() == mask.counts() and packed.density() == mask.density()
    assert all(torch.equal(bits, mask.pack()[name]) for name, bits in packed.pack().items())
    assert ~packed == ~mask and (packed & mask) == mask


def test_packing_keeps_an_eighth_of_the_memory(traced_peak):
    with traced_peak(at_most=3 << 20):  # of 16 MiB of bools that exist one after the other
        mask = Mask.packing((str(i), torch.ones(1 << 20, dtype=torch.bool)) for i in range(16))
    assert mask.count() == 16 << 20


def test_packing_crosses_the_chunks_it_works_in():
    tensor = torch.rand((1 << 20) + 13, generator=torch.Generator().manual_seed(0)) < 0.3
    packed = pack_bits(tensor)
    assert np.array_equal(packed.numpy(), np.packbits(tensor.numpy()))
    assert torch.equal(unpack_bits(packed, tensor.shape), tensor)


@given(masks())
@settings(deadline=None)
def test_counts_are_counted(mask):
    total = sum(int(np.count_nonzero(t.numpy())) for t in mask.values())
    assert mask.count() == total
    assert sum(kept for kept, _ in mask.counts().values()) == total
    if mask.numel():
        assert mask.density() == total / mask.numel()
        assert mask.sparsity() == pytest.approx(1 - mask.density())


def test_fingerprint_tells_bits_names_and_shapes_apart():
    base = Mask({"a": torch.tensor([True, False, True, True])})
    others = [
        Mask({"a": torch.tensor([True, True, True, True])}),
        Mask({"b": torch.tensor([True, False, True, True])}),
        Mask({"a": torch.tensor([[True, False], [True, True]])}),
        Mask({"a": torch.tensor([True, False, True, True, False])}),
    ]
    assert len({m.fingerprint() for m in [base, *others]}) == 5
    assert base.fingerprint() == Mask({"a": torch.tensor([True, False, True, True])}).fingerprint()


def test_shuffled_keeps_each_tensors_count_and_follows_the_seed():
    generator = torch.Generator().manual_seed(3)
    mask = Mask({"a": torch.rand(30, 40, generator=generator) < 0.2, "b": torch.rand(500, generator=generator) < 0.7})
    one, again = (mask.shuffled(torch.Generator().manual_seed(1)) for _ in range(2))
    assert one == again != mask
    assert one.counts() == mask.counts()
    assert one != mask.shuffled(torch.Generator().manual_seed(2))


def test_and_or_invert():
    a, b = Mask({"w": torch.tensor([1, 1, 0, 0]).bool()}), Mask({"w": torch.tensor([1, 0, 1, 0]).bool()})
    assert (a & b)["w"].tolist() == [True, False, False, False]
    assert (a | b)["w"].tolist() == [True, True, True, False]
    assert (~a)["w"].tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match="'v'"):
        a & Mask({"v": torch.ones(4, dtype=torch.bool)})


@pytest.mark.parametrize(
    "packed, shape, says",
    [
        (torch.zeros(3, dtype=torch.uint8), (9,), "takes 2 bytes"),
        (torch.zeros(2, dtype=torch.int8), (9,), "torch.uint8"),
        (torch.tensor([0, 1], dtype=torch.uint8), (9,), "after its last weight"),
    ],
)
def test_unpack_refuses_what_pack_never_writes(packed, shape, says):
    with pytest.raises(ValueError, match=says):
        unpack_bits(packed, shape)


def test_a_mask_is_never_guessed_from_numbers():
    with pytest.raises(TypeError, match="'w' has dtype torch.float32"):
        Mask({"w": torch.ones(3)})
