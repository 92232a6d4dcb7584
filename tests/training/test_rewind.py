"""RewindPoint and RewindCallback: θ_k captured, kept apart from the live weights, saved, put back in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Trainer

from hf_lottery import RewindCallback, RewindPoint
from tests.tiny import Net, Recorder, make_trainer, same, seeded_net, weights


def disturb(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.add_(1)


def test_two_rewinds_are_exact_and_keep_the_tensors_identity():
    """Aliasing the copy would make the first rewind exact and the second wrong."""
    model = seeded_net()
    before, addresses = weights(model), {name: p.data_ptr() for name, p in model.named_parameters()}
    point = RewindPoint.capture(model)
    for _ in range(2):
        disturb(model)
        assert not same(weights(model), before)
        point.restore(model)
        assert same(weights(model), before)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == addresses


def test_weights_buffers_and_step_survive_the_file(tmp_path):
    model = Net().to(torch.bfloat16)
    model.norm.num_batches_tracked.fill_(12)
    model.register_buffer("scratch", torch.tensor([1.5]), persistent=False)
    before = weights(model)
    RewindPoint.capture(model, step=7).save(tmp_path / "deep" / "rewind.safetensors")
    disturb(model)
    loaded = RewindPoint.load(tmp_path / "deep" / "rewind.safetensors")
    loaded.restore(model)
    assert loaded.step == 7 and same(weights(model), before) and model.scratch.item() == 1.5
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["rewind.safetensors"]


def test_frozen_weights_are_not_copied_and_tied_ones_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    assert set(RewindPoint.capture(model).tensors) == {"0.weight", "0.bias", "1.bias"}


def test_a_model_that_does_not_fit_is_left_as_it_is():
    point = RewindPoint.capture(nn.Linear(4, 3))
    other = nn.Linear(5, 3)
    before = weights(other)
    with pytest.raises(ValueError, match=r"'weight' has shape \(3, 5\) in this model and \(3, 4\)"):
        point.restore(other)
    assert same(weights(other), before)
    with pytest.raises(ValueError, match="'weight', which is not a weight or buffer of this model"):
        point.restore(nn.Flatten())


@pytest.mark.parametrize("k, step", [(0, 0), (3, 3), (0.5, 5), (0.01, 1)])
def test_the_callback_on_a_plain_trainer(tmp_path, k, step):
    theta_0, recorder = weights(seeded_net()), Recorder()
    callback = RewindCallback(k, tmp_path)
    trainer = make_trainer(tmp_path, cls=Trainer, callbacks=[callback, recorder])
    trainer.train()
    expected = recorder.weights[step - 1] if step else theta_0
    callback.restore(trainer.model)
    assert callback.point.step == RewindPoint.load(tmp_path / "rewind.safetensors").step == step
    assert all(torch.equal(p, expected[name]) for name, p in trainer.model.named_parameters())


def test_the_callback_captures_once_and_says_when_it_is_too_early(tmp_path):
    callback = RewindCallback(0)
    with pytest.raises(RuntimeError, match="train to the rewind step first"):
        callback.restore(Net())
    trainer = make_trainer(tmp_path, cls=Trainer, callbacks=[callback])
    theta_0 = weights(trainer.model)
    trainer.train()
    trainer.train()
    assert torch.equal(callback.point.tensors["first.weight"], theta_0["first.weight"])
