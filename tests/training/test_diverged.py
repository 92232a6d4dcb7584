"""A network that becomes nan or infinite in a search: it stops, is recorded, and nothing is built on it."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_lottery import LotteryConfig
from hf_lottery.experiment.controls import random_mask
from hf_lottery.results.diverged import DivergedError
from hf_lottery.training.network_folder import NetworkFolder
from hf_lottery.training.search import Search
from tests.tiny import Net, examples, make_trainer, seeded_net
from tests.training.test_watch import Break, NanLoss


def with_nan() -> list[dict]:
    """Training data of which one number is nan."""
    data = [{"x": row["x"].clone(), "labels": row["labels"]} for row in examples()]
    data[17]["x"][3] = float("nan")
    return data


class InRound(Break):
    """Writes into a weight after a step of one round."""

    def __init__(self, round: int, step: int, value: float = float("inf")):
        super().__init__(step, value)
        self.round, self.trainer = round, None

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.current_round == self.round:
            super().on_step_end(args, state, control, **kwargs)


def search(folder, callback=None, **settings):
    config = LotteryConfig(num_rounds=2, pruning_rate=0.4, rewind_step=settings.pop("rewind_step", 0))
    settings = {"logging_steps": 2, "eval_strategy": "steps", "eval_steps": 5} | settings
    trainer = make_trainer(folder, callbacks=[callback] if callback else [], lottery_config=config, **settings)
    if callback:
        callback.trainer = trainer
    return trainer


def result(folder, number: int) -> dict:
    def no_constant(text):
        raise AssertionError(f"{text} is no JSON")

    line = json.loads((folder / f"round-{number:02d}" / "result.json").read_text(), parse_constant=no_constant)
    return {key: value for key, value in line.items() if key not in ("files", "sha256")}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_round_step_and_tensor_are_recorded_and_said(tmp_path, value):
    trainer = search(tmp_path, InRound(1, 3, value))
    with pytest.raises(DivergedError, match=r"round 1 diverged at step 4 \(weights of '[a-z]+\.[a-z]+'\)"):
        trainer.find_ticket()
    line = result(tmp_path, 1)
    assert line["diverged"]["step"] == line["steps"] == 4
    assert line["diverged"]["tensor"] in dict(trainer.model.named_parameters())
    assert (line["round"], line["control"], line["replicate"], line["kept"]) == (1, "ticket", 0, 216)
    metrics = ("eval_loss", "test_loss", "early_stop_step", "early_stop_test_loss")
    assert all(line[name] is None for name in metrics)
    assert "diverged" not in result(tmp_path, 0) and not (tmp_path / "round-02").exists()


def test_it_is_never_trained_again(tmp_path):
    with pytest.raises(DivergedError):
        search(tmp_path, InRound(1, 3)).find_ticket()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    again = search(tmp_path)
    with pytest.raises(DivergedError, match="round 1 diverged at step 4"):
        again.find_ticket()
    assert again.state.global_step == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == written
    with pytest.raises(DivergedError, match="no ticket stands on it"):
        again.ticket(1)


def test_rounds_before_it_still_are_a_ticket(tmp_path):
    trainer = search(tmp_path, InRound(2, 3))
    with pytest.raises(DivergedError, match="round 2 diverged"):
        trainer.find_ticket()
    assert trainer.ticket(1).mask.density() == pytest.approx(0.6)


def test_a_training_that_was_stopped_records_the_same_divergence(tmp_path):
    """Its first step after the checkpoint is no step at which a whole training is looked at."""

    class Stop(InRound):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == 8 and self.stops:
                raise InterruptedError

    settings = {"save_strategy": "steps", "save_steps": 7, "logging_steps": 9, "eval_steps": 20}
    lines = []
    for name, stops in (("whole", False), ("stopped", True)):
        callback = Stop(0, 7)
        callback.stops = stops
        if stops:
            with pytest.raises(InterruptedError):
                search(tmp_path / name, callback, **settings).find_ticket()
            assert (tmp_path / name / "round-00" / "checkpoint-7").is_dir()
            callback = Stop(0, 7)
            callback.stops = False
        with pytest.raises(DivergedError):
            search(tmp_path / name, callback, **settings).find_ticket()
        lines.append({**result(tmp_path / name, 0), "train_seconds": None})
    assert lines[0]["diverged"]["step"] == 9 and lines[0] == lines[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 1e38, "optim": "sgd"},
        {"train": with_nan()},
        {"train": with_nan(), "gradient_accumulation_steps": 2, "max_grad_norm": 0},
        {"model": NanLoss()},
        {"eval_strategy": "epoch", "num_train_epochs": 2, "max_steps": -1, "logging_strategy": "epoch",
         "save_strategy": "epoch", "train": with_nan()},
        {"train": with_nan(), "rewind_step": 5},
        {"train": with_nan(), "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4,
         "load_best_model_at_end": True,
         "metric_for_best_model": "eval_validation_loss"},
    ],
    ids=["learning rate", "data", "accumulation", "loss", "epochs", "before step k", "best model"],
)  # fmt: skip
def test_real_causes(tmp_path, settings):
    trainer = search(tmp_path, **settings)
    with pytest.raises(DivergedError, match="round 0 diverged at step"):
        trainer.find_ticket()
    line = result(tmp_path, 0)
    assert line["steps"] <= 12 and line["test_loss"] is None
    assert (line["diverged"]["tensor"] is None) == ("model" in settings)


def test_nan_in_the_data_that_are_evaluated_is_a_loss_of_nan(tmp_path):
    trainer = search(tmp_path)
    trainer.eval_dataset = {"validation": with_nan()[16:24], "test": examples()}
    with pytest.raises(DivergedError, match=r"round 0 diverged at step 5 \(its loss\)"):
        trainer.find_ticket()


def test_an_adapter_that_diverges_is_named(tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(Net(), LoraConfig(r=4, target_modules=["first"]))
    trainer = search(tmp_path, model=model, train=with_nan(), remove_unused_columns=False, label_names=["labels"])
    with pytest.raises(DivergedError, match=r"weights of 'base_model\.model\.first\.lora_A\.default\.weight'"):
        trainer.find_ticket()


def test_a_control_that_diverges_is_a_line_as_well(tmp_path):
    trainer = search(tmp_path)
    trainer.find_ticket()
    network = Search(trainer).round_folder(1).path / "random_mask-0"
    breaks = InRound(1, 3)
    other = search(tmp_path, breaks)
    found = Search(other)
    found.enter_round(1)
    random_mask(other, 1, 5)
    line = found.train_network(NetworkFolder(network), round=1, control="random_mask")
    assert line["diverged"]["step"] == 4 and line["control"] == "random_mask"


def test_a_net_that_is_well_is_not_touched(tmp_path):
    trainer = search(tmp_path, model=seeded_net())
    assert trainer.find_ticket().mask.density() == pytest.approx(0.36, abs=0.01)
    assert all("diverged" not in result(tmp_path, number) for number in range(3))
