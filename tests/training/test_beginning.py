"""What a trainer begins with: early refusals, what is said, and a model that is sparse already."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, TrainerCallback

from hf_lottery import LotteryConfig, Mask
from hf_lottery.experiment.controls import one_shot, random_mask, random_reinit
from hf_lottery.pruning.synflow import synaptic_flow
from hf_lottery.training.search import Search
from tests.tiny import Net, make_trainer, same, seeded_net, weights


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = PretrainedConfig()
        self.embed = nn.Linear(1, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x, labels=None):
        hidden = self.embed(x.unsqueeze(-1))
        logits = self.classifier(self.attention(hidden, hidden, hidden)[0].mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class Unused(Net):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(4, 4)


class NoLoss(Net):
    def forward(self, x, labels=None):
        return {"logits": super().forward(x)["logits"]}


class OwnName(Net):
    def forward(self, x, labels=None):
        found = super().forward(x, labels)
        return (
            {"loss": found["loss"], "scores": found["logits"]} if labels is not None else {"scores": found["logits"]}
        )


def with_nan(value: float) -> Net:
    model = seeded_net()
    with torch.no_grad():
        model.classifier.weight[1, 2] = value
    return model


WANDA = LotteryConfig(criterion="wanda")
NO_IN_PROJ = LotteryConfig(criterion="wanda", exclude_modules=["in_proj_weight"])
REFUSED = {
    "wanda and attention": (Attentive, NO_IN_PROJ, "out_proj.weight'.*exclude"),
    "wanda and a layer that is never called": (Unused, WANDA, "no activations reached .*'unused.weight'.*exclude"),
    "snip without a loss": (NoLoss, LotteryConfig(criterion="snip"), "loss"),
    "grasp without logits": (OwnName, LotteryConfig(criterion="grasp"), "grasp cannot score this OwnName.*logits"),
    "synflow without logits": (OwnName, LotteryConfig(criterion="synflow"), "synflow cannot score this.*logits"),
    "nan": (lambda: with_nan(torch.nan), LotteryConfig(), r"weight \[1, 2\] of 'classifier.weight' is nan before"),
    "infinity": (lambda: with_nan(-torch.inf), LotteryConfig(), r"weight \[1, 2\] of 'classifier.weight' is -inf"),
    "rates of what is no target": (Net, LotteryConfig(pruning_rates={"norm": 0.1}), "'norm' matches no weight that"),
    "a misspelt rate": (Net, LotteryConfig(pruning_rates={"classifer": 0.1}), "the nearest name is 'classifier'"),
    "zeros that are not there": (Net, LotteryConfig(start_from="zeros"), "none of the weights to prune is zero"),
}


@pytest.mark.parametrize(("model", "config", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_when_the_trainer_is_made(tmp_path, model, config, message):
    with pytest.raises(ValueError, match=message) as error:
        make_trainer(tmp_path, model(), lottery_config=config)
    assert "\n" not in str(error.value)


def test_a_criterion_that_needs_data_and_a_trainer_without(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match="criterion snip looks at data, and the trainer has no train_dataset"):
        type(trainer)(trainer.model, trainer.args, lottery_config=LotteryConfig(criterion="snip"))


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow", "wanda"])
def test_the_rehearsal_leaves_no_trace(tmp_path, criterion):
    trained = []
    for name in ("magnitude", criterion):
        trainer = make_trainer(tmp_path / name, seeded_net(), lottery_config=LotteryConfig(criterion=name))
        trainer.train()
        trained.append(weights(trainer.model))
    assert same(*trained)


def test_coverage_is_said_once_for_an_output_folder(tmp_path, caplog):
    caplog.set_level(logging.INFO, "hf_lottery")
    for _ in range(2):
        trainer = make_trainer(tmp_path, lottery_config=LotteryConfig())
    said = [record.getMessage() for record in caplog.records if "The mask is over" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith(
        "The mask is over 360 of 435 trained weights (82.8%); left out are 75 of"
    )
    assert trainer.coverage.prunable == trainer.mask.numel()


def test_it_is_a_warning_where_more_than_norms_and_biases_is_left_out(tmp_path, caplog):
    make_trainer(tmp_path / "all", lottery_config=LotteryConfig())
    assert not caplog.records
    make_trainer(tmp_path / "some", lottery_config=LotteryConfig(exclude_modules=["first"]))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "288 in first (in exclude_modules)" in record.getMessage()


def test_the_synaptic_flow_through_recurrent_weights_is_that_of_the_formula():
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(3, 4, batch_first=True, nonlinearity="relu")

        def forward(self, x):
            return self.rnn(x)[0]

    model, x = Model(), torch.ones(1, 2, 3)
    parameters = dict(model.named_parameters())
    names = {name: p for name, p in parameters.items() if "weight" in name}
    scores = synaptic_flow(model, {"x": x}, names, Mask.ones(names.items()))
    w, u, b = (parameters[f"rnn.{n}"].detach().double().abs() for n in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"))
    b = b + parameters["rnn.bias_hh_l0"].detach().double().abs()
    first = w @ torch.ones(3).double() + b
    by_hidden = u * first.expand(4, 4)  # u_ij first_j of the second step; all positive, so that relu does nothing
    assert torch.allclose(scores["rnn.weight_hh_l0"], by_hidden)
    assert torch.allclose(scores["rnn.weight_ih_l0"], w * (2 + u.sum(0)).view(-1, 1))


# --- a model that is sparse already


def sparse_net() -> Net:
    model = seeded_net()
    with torch.no_grad():
        for weight in (model.first.weight, model.classifier.weight):
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0
    return model


class Steps(TrainerCallback):
    def __init__(self):
        self.zeros = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.zeros.append(int((model.first.weight == 0).sum() + (model.classifier.weight == 0).sum()))


def zeros_of(model: Net) -> int:
    return int((model.first.weight == 0).sum() + (model.classifier.weight == 0).sum())


def test_a_sparse_model_is_warned_about_once_and_others_are_not(tmp_path, caplog):
    for _ in range(2):
        make_trainer(tmp_path / "sparse", sparse_net(), lottery_config=LotteryConfig())
    said = [r.getMessage() for r in caplog.records if "exactly zero" in r.getMessage()]
    assert (
        len(said) == 1
        and 'LotteryConfig(start_from="zeros")' in said[0]
        and f"{zeros_of(sparse_net()):,} of 360" in said[0]
    )
    caplog.clear()
    fresh = seeded_net()
    nn.init.zeros_(fresh.classifier.weight)  # a layer that starts at zero is not sparse
    make_trainer(tmp_path / "fresh", fresh, lottery_config=LotteryConfig())
    make_trainer(tmp_path / "dense", lottery_config=LotteryConfig())
    assert not any("exactly zero" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "settings",
    [{}, {"pruned_value": "init"}, {"pruned_value": "init", "rewind_step": 2}, {"scope": "global"}, {"scope": "erk"}],
)
def test_its_zeros_are_the_first_mask(tmp_path, caplog, settings):
    caplog.set_level(logging.WARNING)
    config = LotteryConfig(num_rounds=2, pruning_rate=0.2, start_from="zeros", **settings)
    steps, model = Steps(), sparse_net()
    zeros = zeros_of(model)
    trainer = make_trainer(tmp_path, model, lottery_config=config, callbacks=[steps], max_steps=4)
    assert trainer.mask.count() == 360 - zeros
    assert any(f"{zeros:,} of 360 prunable weights" in record.getMessage() for record in caplog.records)
    first = trainer.mask
    ticket = trainer.find_ticket()
    assert steps.zeros[:4] == [zeros] * 4  # round 0 filled none
    assert not any((ticket.mask[name] & ~first[name]).any() for name in first)
    lines = [Search(trainer).round_folder(number).result() for number in range(3)]
    assert lines[0]["density"] == (360 - zeros) / 360 and lines[0]["prunable"] == 360
    kept = lines[0]["kept"]
    if settings.get("scope") == "global":
        for line in lines[1:]:
            kept -= round(0.2 * kept)
            assert line["kept"] == kept
    assert ticket.info["start_from"] == "zeros"
    if "rewind_step" not in settings:
        theta, old = ticket.rewind.tensors["first.weight"], sparse_net().first.weight
        assert torch.equal(theta[ticket.mask["first.weight"]], old[ticket.mask["first.weight"]])


def test_a_search_that_is_resumed_keeps_it_and_another_start_is_refused(tmp_path):
    config = LotteryConfig(num_rounds=1, start_from="zeros")
    whole = make_trainer(tmp_path / "whole", sparse_net(), lottery_config=config, max_steps=4).find_ticket()
    Search(make_trainer(tmp_path / "parts", sparse_net(), lottery_config=config, max_steps=4)).run_round(0)
    again = make_trainer(tmp_path / "parts", sparse_net(), lottery_config=config, max_steps=4)
    assert again.find_ticket().mask == whole.mask
    with pytest.raises(ValueError, match="start_from 'zeros', and it is 'dense' now"):
        make_trainer(
            tmp_path / "whole", sparse_net(), lottery_config=LotteryConfig(num_rounds=1), max_steps=4
        ).find_ticket()


def test_a_ticket_brings_its_own_mask(tmp_path):
    config = LotteryConfig(num_rounds=1, start_from="zeros")
    ticket = make_trainer(tmp_path, sparse_net(), lottery_config=config, max_steps=2).find_ticket()
    trainer = make_trainer(tmp_path / "again", sparse_net(), ticket=ticket, max_steps=2)
    assert trainer.mask == ticket.mask
    with pytest.raises(ValueError, match="start_from 'zeros', and a ticket brings its own mask"):
        make_trainer(tmp_path / "both", sparse_net(), ticket=ticket, lottery_config=config)


def test_controls_are_drawn_among_the_weights_of_the_sparse_model(tmp_path):
    config = LotteryConfig(num_rounds=1, pruning_rate=0.3, start_from="zeros")
    trainer = make_trainer(tmp_path, model_init=sparse_net, lottery_config=config, max_steps=2)
    first, ticket = trainer.mask, trainer.find_ticket()
    for control in (random_mask, one_shot):
        Search(trainer).enter_round(1)
        control(trainer, 1, 5)
        for name, kept in trainer.mask.items():
            assert int(kept.sum()) == int(ticket.mask[name].sum())
            assert not (kept & ~first[name]).any()
    Search(trainer).enter_round(1)
    random_mask(trainer, 1, 5)
    assert trainer.mask != ticket.mask
    with pytest.raises(ValueError, match="model_init makes the same"):
        random_reinit(trainer, 1, 5)


# --- buffers


class Cached(Net):
    """A cache that grows with the input, as rotary embeddings keep one."""

    def __init__(self, persistent: bool):
        super().__init__()
        self.register_buffer("cache", torch.zeros(2), persistent=persistent)

    def forward(self, x, labels=None):
        if len(self.cache) < 12:
            self.cache = torch.zeros(12)
        return super().forward(x + self.cache, labels)


def test_a_cache_that_grows_is_left_alone_and_a_persistent_buffer_is_refused_at_the_first_step(tmp_path):
    config = LotteryConfig(num_rounds=2)
    trainer = make_trainer(tmp_path / "cache", Cached(False), lottery_config=config, max_steps=3)
    trainer.find_ticket()
    again = make_trainer(tmp_path / "cache", Cached(False), lottery_config=LotteryConfig(num_rounds=3), max_steps=3)
    again.find_ticket()  # loads the trained weights of a round into a model whose cache is small
    refused = make_trainer(tmp_path / "persistent", Cached(True), lottery_config=config, max_steps=3)
    with pytest.raises(ValueError, match=r"'cache' had the shape \(2,\).*persistent=False"):
        refused.find_ticket()
    assert refused.state.global_step == 1
