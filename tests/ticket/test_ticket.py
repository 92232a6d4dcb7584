"""A ticket goes to its folder and comes back; apply_to puts θ_k ⊙ m into a model, or says what does not fit."""

import json
import re
import shutil
from importlib.metadata import version

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn
from torch.nn.utils import prune

from hf_lottery.config import LotteryConfig
from hf_lottery.mask import Mask
from hf_lottery.ticket.info import ticket_info
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.ticket import Ticket, TicketError
from tests.ticket_cases import Tiny, random_mask, reseal, tiny_ticket


def all_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=4),
    density=st.sampled_from([0.0, 0.02, 0.3, 0.98, 1.0]),
    compress=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_mask_comes_back(tmp_path, shapes, density, compress, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = {f"layer.{i}.weight": torch.rand(shape, generator=generator) for i, shape in enumerate(shapes)}
    mask = Mask({name: torch.rand(w.shape, generator=generator) < density for name, w in weights.items()})
    Ticket(mask, RewindPoint(3, weights)).save_pretrained(tmp_path, compress=compress)
    found = Ticket.from_pretrained(tmp_path)
    assert found.mask == mask
    assert list(found.mask) == list(mask)
    for name, weight in weights.items():
        assert torch.equal(found.rewind.tensors[name], weight * mask[name])
    assert found.rewind.step == found.rewind_step == 3


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("pruned_value", ["zero", "init"])
def test_apply_to_writes_the_rewound_weights(tmp_path, pruned_value, compress):
    ticket = tiny_ticket(pruned_value)
    ticket.save_pretrained(tmp_path, compress=compress)
    model, origin = Tiny(seed=1), Tiny(seed=0)
    identities = {name: id(p) for name, p in model.named_parameters()}
    with torch.no_grad():
        model.frozen.copy_(origin.frozen)
    assert Ticket.from_pretrained(tmp_path).apply_to(model) is model
    if pruned_value == "zero":  # an independent mask: torch's own
        for name, module in origin.named_modules():
            if f"{name}.weight" in ticket.mask:
                prune.custom_from_mask(module, "weight", ticket.mask[f"{name}.weight"])
                prune.remove(module, "weight")
        # removing the hook unties the weight, so put the pruned one into both
        origin.head.weight = origin.embed.weight
    expected = all_tensors(origin)
    assert all_tensors(model).keys() == expected.keys()
    for name, value in all_tensors(model).items():
        assert torch.equal(value, expected[name]), name
    assert model.head.weight is model.embed.weight
    assert {name: id(p) for name, p in model.named_parameters()} == identities


def test_only_survivors_are_stored_and_tied_weights_once(tmp_path):
    ticket = tiny_ticket()
    ticket.save_pretrained(tmp_path)
    with safe_open(tmp_path / "rewind.safetensors", "pt") as file:
        lengths = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    counts = ticket.mask.counts()
    assert {name: lengths[name] for name in counts} == {name: [kept] for name, (kept, _) in counts.items()}
    assert "head.weight" not in lengths and "frozen" not in lengths
    assert lengths["norm.running_mean"] == [5]


def test_packed_masks_take_a_bit_a_weight(tmp_path):
    mask = Mask({f"l.{i}.weight": torch.rand(512, 256) < 0.5 for i in range(2)})
    Ticket(mask, RewindPoint(0, {n: torch.zeros(m.shape) for n, m in mask.items()})).save_pretrained(tmp_path)
    assert 8 * (tmp_path / "mask.safetensors").stat().st_size <= 1.01 * mask.numel()


def test_applying_twice_is_applying_once(tmp_path):
    ticket = tiny_ticket()
    model = Tiny()
    once = all_tensors(ticket.apply_to(model))
    twice = all_tensors(ticket.apply_to(model))
    assert all(torch.equal(twice[name], value) for name, value in once.items())


def test_a_loaded_ticket_saves_to_the_same_bytes(tmp_path):
    ticket = tiny_ticket(step=7, seeds=[1, 2], criterion="magnitude")
    ticket.save_pretrained(tmp_path / "a")
    again = Ticket.from_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "b")
    for name in ("ticket.json", "mask.safetensors", "rewind.safetensors", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_ticket_outlives_its_folder(tmp_path):
    tiny_ticket().save_pretrained(tmp_path / "a")
    ticket = Ticket.from_pretrained(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    assert torch.equal(ticket.apply_to(Tiny()).low.weight, tiny_ticket().apply_to(Tiny()).low.weight)


def test_saving_over_an_older_ticket_leaves_nothing_of_it(tmp_path):
    tiny_ticket(step=3).save_pretrained(tmp_path, compress=True)
    tiny_ticket(density=0.5).save_pretrained(tmp_path)
    assert Ticket.from_pretrained(tmp_path).mask == tiny_ticket(density=0.5).mask


def test_density_counts_the_mask():
    ticket = tiny_ticket()
    kept, total = zip(*ticket.mask.counts().values(), strict=True)
    assert ticket.density() == sum(kept) / sum(total)


def test_results_and_info_come_back(tmp_path):
    model = Tiny()
    mask, rewind = random_mask(model), RewindPoint.capture(model)
    lines = [
        {
            "replicate": 0,
            "seed": 4,
            "control": "ticket",
            "sample": 0,
            "round": r,
            "density": d,
            "test_accuracy": 0.5 + r,
            "eval_f1": float("nan"),
            "fingerprint": mask.fingerprint(),
            "densities": mask.counts(),
            "note": "a text",
        }
        for r, d in enumerate([1.0, 0.8])
    ]
    info = ticket_info(
        model, mask, rewind, LotteryConfig(), results=lines, seeds=[4], recipe="a: 1\n", datasets=["a/b"]
    )
    ticket = Ticket(mask, rewind, info)
    ticket.save_pretrained(tmp_path)
    found = Ticket.from_pretrained(tmp_path).info
    assert found["results"][1]["test_accuracy"] == 1.5
    assert found["results"][1]["eval_f1"] is None
    assert "note" not in found["results"][1]
    assert found["densities"] == [{name: list(pair) for name, pair in mask.counts().items()}] * 2
    assert (found["seeds"], found["recipe"], found["datasets"]) == ([4], "a: 1\n", ["a/b"])
    assert found["criterion"] == "magnitude" and found["versions"]["torch"] == version("torch")


# --- a model that the ticket does not belong to ---


def frozen_ticket(tmp_path) -> Ticket:
    model = Tiny()
    mask, rewind = random_mask(model), RewindPoint.capture(model)
    Ticket(mask, rewind, ticket_info(model, mask, rewind, LotteryConfig())).save_pretrained(tmp_path)
    return Ticket.from_pretrained(tmp_path)


def renamed(model):
    model.other = model.low
    del model.low


def reshaped(model):
    model.low = nn.Linear(5, 8).to(torch.bfloat16)


def another_frozen_value(model):
    model.frozen.data[1] += 1e-3


def an_unknown_weight(model):
    model.extra = nn.Parameter(torch.zeros(2))


def another_dtype(model):
    model.frozen = nn.Parameter(model.frozen.half(), requires_grad=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, "trains 'other.weight', which the ticket does not know"),
        (reshaped, "'low.weight' has shape (8, 5) in this model and (7, 5) in the ticket"),
        (another_frozen_value, "'frozen' is the first tensor that differs"),
        (an_unknown_weight, "trains 'extra', which the ticket does not know"),
        (another_dtype, "'frozen' is float16 in this model and float32 in the ticket"),
        (lambda model: model.to("meta"), "'frozen' is on the meta device"),
        (lambda model: delattr(model, "norm"), "the ticket holds 'norm.weight', which is not a weight or buffer"),
    ],
)
def test_a_model_that_does_not_fit_is_named_and_not_touched(tmp_path, change, message):
    ticket = frozen_ticket(tmp_path)
    model = Tiny(seed=0)
    with torch.no_grad():
        model.embed.weight.add_(1)  # trained since: the ticket brings its own
    change(model)
    before = all_tensors(model)
    with pytest.raises(TicketError, match=re.escape(message)):
        ticket.apply_to(model)
    if "meta" not in message:
        assert all(torch.equal(value, before[name]) for name, value in all_tensors(model).items())


def test_a_mask_over_what_the_rewind_point_lacks_is_refused(tmp_path):
    ticket = tiny_ticket()
    del ticket.rewind.tensors["low.weight"]
    with pytest.raises(TicketError, match=r"the mask is over 'low\.weight'"):
        ticket.save_pretrained(tmp_path)


# --- versions ---


def test_a_newer_minor_version_loads_with_a_warning(tmp_path):
    tiny_ticket().save_pretrained(tmp_path)
    reseal(tmp_path, lambda document: document.update(schema="2.7", colour="blue"))
    with pytest.warns(UserWarning, match=r"schema 2\.7, newer than"):
        ticket = Ticket.from_pretrained(tmp_path)
    assert ticket.mask == tiny_ticket().mask
    assert "colour" not in ticket.info


def test_a_newer_major_version_is_refused(tmp_path):
    tiny_ticket().save_pretrained(tmp_path)
    path = tmp_path / "ticket.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": "3.0"}))  # sealed in a way of its own
    with pytest.raises(TicketError, match=r"schema 3\.0.*pip install --upgrade"):
        Ticket.from_pretrained(tmp_path)


@pytest.mark.parametrize("place", ["nowhere/at/all", "./absent"])
def test_a_folder_that_is_not_there(place):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        Ticket.from_pretrained(place)


def test_a_folder_without_a_ticket(tmp_path):
    with pytest.raises(TicketError, match=r"there is no ticket\.json"):
        Ticket.from_pretrained(tmp_path)
