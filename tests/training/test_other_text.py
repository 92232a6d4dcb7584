"""Forgetting: the loss on other text is what a plain loop finds, before and after training, however it is trained."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from hf_lottery import LotteryConfig, LotteryTrainer
from hf_lottery.results.forgetting import AFTER, BEFORE, FORGETTING
from hf_lottery.results.values import value_of
from hf_lottery.runner.adapters import add_adapter
from hf_lottery.tasks.token_batches import PaddingCollator, TokenDataset
from hf_lottery.text_blocks import Blocks
from hf_lottery.training.other_text import loss_on
from hf_lottery.training.search import Search
from tests import tiny_lm

IDS = torch.randint(0, 256, (5, 24), generator=torch.Generator().manual_seed(0)).tolist()
TEXT = Blocks("a text", IDS)


def examples(seed: int = 1, low: int = 0, high: int = 256) -> TokenDataset:
    g = torch.Generator().manual_seed(seed)
    rows = torch.randint(low, high, (24, 16), generator=g).tolist()
    return TokenDataset([{"input_ids": row, "labels": row} for row in rows])


def oracle(model, blocks=IDS) -> float:
    """A plain loop over tokens, in float64."""
    model.eval()
    losses = []
    with torch.no_grad():
        for block in blocks:
            logits = model(torch.tensor([block])).logits[0].double()
            for place in range(1, len(block)):
                losses.append(nn.functional.cross_entropy(logits[place - 1], torch.tensor(block[place])).item())
    return sum(losses) / len(losses)


def make(folder, model=None, callbacks=(), lottery=None, **settings) -> LotteryTrainer:
    values = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 2,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "seed": 3,
        **settings,
    }
    model = model or tiny_lm.model()
    trainer = LotteryTrainer(
        model,
        TrainingArguments(**values),
        data_collator=PaddingCollator(0),
        train_dataset=examples(low=0, high=40),
        eval_dataset=examples(2),
        callbacks=list(callbacks),
        lottery_config=LotteryConfig(**{"num_rounds": 2, "pruning_rate": 0.3, "rewind_step": 0, **(lottery or {})}),
    )
    trainer.other_text = TEXT
    return trainer


def lines(trainer) -> list[dict]:
    trainer.find_ticket()
    return [Search(trainer).round_folder(number).result() for number in range(3)]


def measured(found: list[dict]) -> list[tuple]:
    return [(line[BEFORE], line[AFTER]) for line in found]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_what_a_plain_loop_finds(dtype):
    model = tiny_lm.model().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # far from uniform
    assert loss_on(model, TEXT) == pytest.approx(oracle(model), abs=1e-6)


def test_it_draws_nothing_and_leaves_the_model_as_it_was():
    model = tiny_lm.model(attention_dropout=0.5).train()
    state = torch.get_rng_state()
    first = loss_on(model, TEXT)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert loss_on(model.eval(), TEXT) == first and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_not_finite_is_none():
    model = tiny_lm.model()
    with torch.no_grad():
        model.lm_head.weight[3, 0] = math.nan
    assert loss_on(model, TEXT) is None


def test_before_is_the_pretrained_model_and_after_each_rounds_own_network(tmp_path):
    pretrained = oracle(tiny_lm.model())
    trainer = make(tmp_path)
    found = lines(trainer)
    assert [before for before, _ in measured(found)] == pytest.approx([pretrained] * 3, abs=1e-6)
    assert {(line["other_text"], line["other_text_tokens"]) for line in found} == {("a text", 120)}
    for number, line in enumerate(found):
        Search(trainer).load_trained(number)
        assert line[AFTER] == pytest.approx(oracle(trainer.model), abs=1e-6)


def test_trained_on_other_tokens_it_forgets(tmp_path):
    trained = lines(make(tmp_path / "trained", learning_rate=5e-2, max_steps=20))
    assert all(value_of(line, FORGETTING) > 0.1 for line in trained)


@pytest.mark.parametrize("computed_in", [{}, {"bf16": True}, {"activation_checkpointing": True}], ids=str)
def test_untrained_it_forgets_exactly_nothing(computed_in, tmp_path):
    untrained = lines(make(tmp_path / "untrained", learning_rate=0.0, **computed_in))
    assert value_of(untrained[0], FORGETTING) == 0.0
    assert value_of(untrained[2], FORGETTING) != 0.0  # of the pruned weights


@pytest.mark.parametrize(
    "lora", [{}, {"init_lora_weights": False}, {"use_dora": True}, {"modules_to_save": ["norm"]}], ids=str
)
def test_under_lora_before_is_the_base_model_and_after_has_the_adapter(lora, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **lora)
    trainer = make(tmp_path, add_adapter(tiny_lm.model(), config, 0))
    found = lines(trainer)
    assert found[0][BEFORE] == pytest.approx(oracle(tiny_lm.model()), abs=1e-6)
    assert found[2][AFTER] == pytest.approx(oracle(trainer.model), abs=1e-6) != found[2][BEFORE]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_untrained_adapter_forgets_exactly_nothing_at_any_density(dtype, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    made = make(
        tmp_path, add_adapter(tiny_lm.model().to(dtype), config, 0), learning_rate=0.0, lottery={"criterion": "random"}
    )
    assert [value_of(line, FORGETTING) for line in lines(made)] == [0.0, 0.0, 0.0]


class Break(TrainerCallback):
    """Ends the process's work on a training at a step of a round."""

    def __init__(self, round: int, step: int):
        self.at, self.trainer = (round, step), None

    def on_step_end(self, args, state, control, **kwargs):
        if (self.trainer.current_round, state.global_step) == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("at", "rewind_step"), [((0, 1), 0), ((0, 5), 0), ((0, 5), 3), ((1, 3), 0), ((1, 5), 3)])
def test_a_search_that_broke_off_finds_the_same(at, rewind_step, tmp_path):
    whole = lines(make(tmp_path / "whole", lottery={"rewind_step": rewind_step}))
    callback = Break(*at)
    trainer = callback.trainer = make(tmp_path / "broken", callbacks=[callback], lottery={"rewind_step": rewind_step})
    with pytest.raises(KeyboardInterrupt):
        trainer.find_ticket()
    again = lines(make(tmp_path / "broken", lottery={"rewind_step": rewind_step}))
    assert measured(again) == measured(whole)


def test_it_changes_nothing_else(tmp_path):
    with_text = lines(make(tmp_path / "with"))
    trainer = make(tmp_path / "without")
    trainer.other_text = None
    without = lines(trainer)
    own = ("train_seconds", "eval_runtime", "other_text", "other_text_tokens", BEFORE, AFTER)
    assert all(key in line for line in with_text for key in own[2:])
    assert not any(key in line for line in without for key in own[2:])
    plain = [[{k: v for k, v in line.items() if k not in own} for line in found] for found in (with_text, without)]
    assert plain[0] == plain[1]


def test_the_best_models_loss_is_measured_where_it_is_kept(tmp_path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 0.3}
    trainer = make(tmp_path, lottery={"num_rounds": 0}, **best)
    trainer.find_ticket()
    assert trainer.state.best_global_step < 6
    assert Search(trainer).round_folder(0).result()[AFTER] == pytest.approx(oracle(trainer.model), abs=1e-6)


def test_a_network_that_diverged_has_null(tmp_path):
    class Nan(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                with torch.no_grad():
                    next(model.parameters()).view(-1)[0] = math.nan

    trainer = make(tmp_path, callbacks=[Nan()], logging_steps=1)
    with pytest.raises(ValueError, match="diverged"):
        trainer.find_ticket()
    line = json.loads((tmp_path / "round-00" / "result.json").read_text())
    assert line[AFTER] is None and line[BEFORE] > 0 and line["diverged"]["step"] == 3
    assert value_of(line, FORGETTING) is None
