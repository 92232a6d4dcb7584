"""The masked step against an oracle: torch.nn.utils.prune's reparametrisation w ⊙ m in a plain Trainer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from hf_lottery import LotteryConfig, Mask
from hf_lottery.training.masked_step import MaskedStep, inner_optimizer
from tests.tiny import Net, Recorder, curve, make_trainer, seeded_net

SETTINGS = {
    "fused adamw with decay": {"weight_decay": 0.1},
    "adamw": {"optim": "adamw_torch", "weight_decay": 0.1, "max_grad_norm": 0.1},
    "no clipping": {"optim": "adamw_torch", "max_grad_norm": 0},
    "sgd with momentum": {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 0.01, "max_grad_norm": 0.5},
    "adafactor": {"optim": "adafactor"},
    "adagrad": {"optim": "adagrad"},
    "rmsprop": {"optim": "rmsprop", "weight_decay": 0.01},
    "schedule-free adamw": {"optim": "schedule_free_adamw", "lr_scheduler_type": "constant", "weight_decay": 0.1},
    "accumulation": {"gradient_accumulation_steps": 3, "max_grad_norm": 0.1},
    "bf16 autocast": {"bf16": True, "weight_decay": 0.1, "max_grad_norm": 0.1},
    "label smoothing": {"label_smoothing_factor": 0.1},
}


def some_mask(model: nn.Module, density: float = 0.3) -> Mask:
    generator = torch.Generator().manual_seed(5)
    return Mask(
        {n: torch.rand(p.shape, generator=generator) < density for n, p in model.named_parameters() if p.dim() > 1}
    )


def reparametrised(mask: Mask) -> Net:
    """w ⊙ m as torch.nn.utils.prune does it: autograd itself masks the gradient of `weight_orig`."""
    model = seeded_net()
    for name, kept in mask.items():
        module = model.get_submodule(name.rpartition(".")[0])
        prune.custom_from_mask(module, "weight", kept)
        with torch.no_grad():
            module.weight_orig.mul_(kept)  # an optimizer that decays or factors sees zeros, as ours does
        module.register_parameter(
            "bias", module._parameters.pop("bias")
        )  # weight before bias, as it was: one sum order
    return model


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_masked_run_is_the_run_of_the_smaller_network(tmp_path, settings):
    recorder = Recorder()
    ours = make_trainer(tmp_path, lottery_config=LotteryConfig(), callbacks=[recorder], **settings)
    ours.mask = mask = some_mask(ours.model)
    ours.train()
    oracle = make_trainer(tmp_path, model=reparametrised(mask), cls=Trainer, **settings)
    oracle.train()

    assert curve(ours) == curve(oracle)  # losses and gradient norms, bit for bit
    for name, kept in mask.items():
        for step, recorded in enumerate(recorder.weights, start=1):
            assert not recorded[name][~kept].any(), f"'{name}' has a pruned weight that is not 0 after step {step}"
        assert ours.model.get_parameter(name)[kept].abs().min() > 0
    theirs = dict(oracle.model.named_parameters())
    their_state = inner_optimizer(oracle.optimizer).state
    for name, parameter in ours.model.named_parameters():
        twin = theirs[name + "_orig" if name in mask else name]
        assert torch.equal(parameter, twin), name
        state, twin_state = inner_optimizer(ours.optimizer).state[parameter], their_state[twin]
        assert state.keys() == twin_state.keys()
        for key, value in state.items():
            if torch.is_tensor(value):
                assert torch.equal(value, twin_state[key]), f"{key} of {name}"


@pytest.mark.parametrize("k", [0, 4])
def test_pruned_weights_stay_at_their_rewind_value(tmp_path, k):
    recorder = Recorder()
    config = LotteryConfig(pruned_value="init", rewind_step=k)
    trainer = make_trainer(tmp_path, lottery_config=config, callbacks=[recorder], weight_decay=0.5)
    trainer.train()
    theta_k = trainer.rewind_point.tensors
    assert all(torch.equal(theta_k[name], recorder.weights[k - 1][name]) for name in trainer.mask) or k == 0
    mask = trainer.prune()
    trainer.rewind()
    recorder.weights.clear()
    trainer.train()
    for recorded in recorder.weights:
        for name, kept in mask.items():
            assert torch.equal(recorded[name][~kept], theta_k[name][~kept])
            assert (recorded[name][kept] != theta_k[name][kept]).any()


def test_nan_and_inf_do_not_get_past_the_mask():
    layer = nn.Linear(4, 2)
    kept = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1]]).bool()
    step = MaskedStep(dict(layer.named_parameters()), Mask({"weight": kept}))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    step.attach(optimizer)
    x = torch.tensor([[1.0, float("nan"), 1.0, float("inf")]])
    layer(x)[0, 0].backward()
    assert layer.weight.grad[~kept].tolist() == [0.0, 0.0, 0.0]
    layer.weight.data[~kept] = float("nan")
    step.mask_weights()
    assert layer.weight[~kept].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("held", ["zero", "init"])
def test_every_float_dtype_is_masked_exactly(dtype, held):
    torch.manual_seed(0)
    layer = nn.Linear(9, 7, dtype=dtype)
    before, kept = layer.weight.detach().clone(), torch.rand(7, 9) < 0.5
    values = None if held == "zero" else {"weight": before.clone()}
    step = MaskedStep(dict(layer.named_parameters()), Mask({"weight": kept}), values)
    with torch.no_grad():
        layer.weight.add_(1)
    moved = layer.weight.detach().clone()
    step.mask_weights()
    expected = torch.where(kept, moved, torch.zeros_like(moved) if held == "zero" else before)
    assert torch.equal(layer.weight, expected)


def test_moments_are_gone_when_the_mask_changes_in_the_middle_of_training(tmp_path):
    """A gradient mask alone would let live moments carry pruned weights away again."""
    from transformers import TrainerCallback

    class PruneAtFour(TrainerCallback):
        trainer = None

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                self.trainer.prune()
                assert not inner_optimizer(self.trainer.optimizer).state

    callback, recorder = PruneAtFour(), Recorder()
    trainer = make_trainer(tmp_path, lottery_config=LotteryConfig(pruning_rate=0.5), callbacks=[callback, recorder])
    callback.trainer = trainer
    trainer.train()
    assert trainer.mask.density() == pytest.approx(0.5)
    for recorded in recorder.weights[3:]:
        assert all(not recorded[name][~kept].any() for name, kept in trainer.mask.items())
    state = inner_optimizer(trainer.optimizer).state
    for name, kept in trainer.mask.items():
        assert not state[trainer.model.get_parameter(name)]["exp_avg"][~kept].any()


def test_tied_weights_are_masked_once_and_stay_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.outside, self.classifier = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
            self.outside.weight = self.inside.weight

        def forward(self, x, labels=None):
            logits = self.classifier(torch.relu(self.outside(torch.relu(self.inside(x)))))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    torch.manual_seed(0)
    trainer = make_trainer(tmp_path, model=Tied(), lottery_config=LotteryConfig(pruning_rate=0.5), save_strategy="no")
    assert list(trainer.mask) == ["inside.weight", "classifier.weight"]
    trainer.train()
    mask = trainer.prune()
    trainer.rewind()
    trainer.train()
    assert trainer.model.outside.weight is trainer.model.inside.weight
    assert not trainer.model.outside.weight[~mask["inside.weight"]].any()


def test_torch_compile(tmp_path):
    """Hooks sit on the parameters, which a compiled module shares."""
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path,
        lottery_config=LotteryConfig(),
        callbacks=[recorder],
        torch_compile=True,
        torch_compile_backend="aot_eager",
    )
    trainer.mask = mask = some_mask(trainer.model)
    trainer.train()
    plain = make_trainer(tmp_path, lottery_config=LotteryConfig())
    plain.mask = mask
    plain.train()
    for recorded in recorder.weights:
        assert all(not recorded[name][~kept].any() for name, kept in mask.items())
    for (_, loss, norm), (_, plain_loss, plain_norm) in zip(curve(trainer), curve(plain), strict=True):
        assert (loss, norm) == pytest.approx((plain_loss, plain_norm), rel=1e-4)


def test_a_mask_that_does_not_fit_is_refused():
    layer = nn.Linear(4, 2)
    with pytest.raises(ValueError, match="'bias2'"):
        MaskedStep(dict(layer.named_parameters()), Mask({"bias2": torch.zeros(2, dtype=torch.bool)}))
    with pytest.raises(ValueError, match=r"\(2, 3\), the parameter \(2, 4\)"):
        MaskedStep(dict(layer.named_parameters()), Mask({"weight": torch.zeros(2, 3, dtype=torch.bool)}))


def test_hooks_are_gone_after_training(tmp_path):
    trainer = make_trainer(tmp_path, lottery_config=LotteryConfig())
    trainer.mask = some_mask(trainer.model)
    trainer.train()
    trainer.remove_callback(PrinterCallback)
    for parameter in trainer.model.parameters():
        assert not parameter._post_accumulate_grad_hooks
    with torch.no_grad():
        trainer.model.first.weight.fill_(1)
    inner_optimizer(trainer.optimizer).step()
    assert trainer.model.first.weight.all()
