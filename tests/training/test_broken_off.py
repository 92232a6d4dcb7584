"""Searches that break off, are killed between two files, or run again: the same ticket, or a sentence saying why."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from hf_lottery import LotteryConfig, LotteryMixin, Mask
from hf_lottery.sealed import read_sealed, write_sealed
from hf_lottery.training.checkpoints import last_checkpoint
from hf_lottery.training.search import Search
from tests.tiny import curve, make_trainer, same, seeded_net, weights

EVALUATED = {"eval_strategy": "steps", "eval_steps": 5}


class BreakOff(TrainerCallback):
    """Raises at a step of a round, once."""

    def __init__(self, number: int, step: int):
        self.number, self.step, self.done = number, step, False

    def on_step_end(self, args, state, control, **kwargs):
        if not self.done and f"round-{self.number:02d}" in args.output_dir and state.global_step == self.step:
            self.done = True
            raise KeyboardInterrupt


def raise_interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def searcher(folder, config=None, **settings):
    return make_trainer(folder, lottery_config=LotteryConfig(**{"num_rounds": 2, **(config or {})}), **settings)


def results(trainer) -> list[dict]:
    lines = [Search(trainer).round_folder(r).result() for r in range(trainer.lottery_config.num_rounds + 1)]
    return [{key: value for key, value in line.items() if key != "train_seconds"} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.set_num_threads(1)  # a fixture of a module is made before one_thread
    trainer = searcher(tmp_path_factory.mktemp("whole"), **EVALUATED)
    trainer.find_ticket()
    return trainer


@pytest.mark.parametrize("number", [0, 1, 2])
def test_broken_off_and_called_again_in_the_same_process(tmp_path, whole, number):
    trainer = searcher(tmp_path, callbacks=[BreakOff(number, 5)], **EVALUATED)
    with pytest.raises(KeyboardInterrupt):
        trainer.find_ticket()
    trainer.find_ticket()
    assert results(trainer) == results(whole)
    assert same(weights(trainer.model), weights(whole.model))


@pytest.mark.parametrize("retraining", ["learning_rate_rewinding", "fine_tuning"])
@pytest.mark.parametrize("where", ["a step", "the last evaluation", "an earlier train()"])
def test_round_0_starts_from_the_initial_weights_whatever_was_trained_before(tmp_path, retraining, where):
    config = {"num_rounds": 1, "retraining": retraining}
    settings = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 4, "save_only_model": True}
    expected = searcher(tmp_path / "a", config, **settings)
    expected.find_ticket()
    trainer = searcher(tmp_path / "b", config, callbacks=[BreakOff(0, 5)] if where == "a step" else [], **settings)
    if where == "an earlier train()":
        trainer.train()
    else:
        if where == "the last evaluation":
            trainer.evaluate = raise_interrupt
        with pytest.raises(KeyboardInterrupt):
            trainer.find_ticket()
        vars(trainer).pop("evaluate", None)
    trainer.find_ticket()
    assert results(trainer) == results(expected)


def test_a_first_training_whose_start_is_gone_is_not_taken_for_one(tmp_path):
    trainer = searcher(tmp_path, {"rewind_step": 2}, callbacks=[BreakOff(0, 5)])
    with pytest.raises(KeyboardInterrupt):
        trainer.find_ticket()
    with pytest.raises(RuntimeError, match="make a new model and trainer"):
        trainer.find_ticket()


def test_run_again_the_model_is_the_last_rounds(tmp_path, whole):
    again = searcher(whole.args.output_dir, **EVALUATED)
    again.find_ticket()
    assert same(weights(again.model), weights(whole.model))
    assert again.mask == whole.mask and again.mask.density() < 1


@pytest.mark.parametrize("changed", [{"pruning_rate": 0.5}, {"rewind_step": 3}, {"criterion": "random"}])
def test_rounds_of_another_search_are_not_taken(tmp_path, whole, changed):
    shutil.copytree(whole.args.output_dir, tmp_path / "out")
    with pytest.raises(ValueError, match=f"a search with {next(iter(changed))} .* set another output_dir"):
        searcher(tmp_path / "out", changed, **EVALUATED).find_ticket()
    with pytest.raises(ValueError, match="a search with learning_rate 0.01, and it is 0.5 now"):
        searcher(tmp_path / "out", learning_rate=0.5, **EVALUATED).find_ticket()
    assert searcher(tmp_path / "out", {"num_rounds": 3}, **EVALUATED).find_ticket().mask.density() < 0.52  # longer


@pytest.mark.parametrize("lost", ["trainer_state.json", "all after the weights"])
def test_a_half_written_checkpoint_is_not_continued_from(tmp_path, lost):
    settings = {**EVALUATED, "save_strategy": "steps", "save_steps": 3}
    first = searcher(tmp_path / "a", {"num_rounds": 0}, **settings)
    first.find_ticket()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    folder = tmp_path / "b" / "round-00"
    (folder / "result.json").unlink()
    for step in (9, 10):
        shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)
    for path in (folder / "checkpoint-6").iterdir():
        if path.name == lost or (lost.startswith("all") and path.name != "model.safetensors"):
            path.unlink()
    assert last_checkpoint(folder)[0] == str(folder / "checkpoint-3")
    second = searcher(tmp_path / "b", {"num_rounds": 0}, **settings)
    second.find_ticket()
    assert results(second) == results(first)


def test_checkpoints_of_weights_alone_are_not_continued_from(tmp_path):
    settings = {**EVALUATED, "save_strategy": "steps", "save_steps": 3, "save_only_model": True}
    first = searcher(tmp_path, {"num_rounds": 0}, **settings)
    first.find_ticket()
    expected = results(first)
    (tmp_path / "round-00" / "result.json").unlink()
    second = searcher(tmp_path, {"num_rounds": 0}, **settings)
    second.find_ticket()
    assert results(second) == expected


def test_killed_while_the_rewind_point_is_written(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 5}
    config = {"num_rounds": 1, "rewind_step": 7}
    expected = searcher(tmp_path / "a", config, **settings)
    expected.find_ticket()

    trainer = searcher(tmp_path / "b", config, **settings)
    save = trainer._save_optimizer_and_scheduler

    def killed(folder):
        if folder.endswith("rewind"):
            raise KeyboardInterrupt
        save(folder)

    trainer._save_optimizer_and_scheduler = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.find_ticket()
    again = searcher(tmp_path / "b", config, **settings)
    again.find_ticket()
    assert results(again) == results(expected)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd"])
def test_resuming_under_a_mask_keeps_the_moments(tmp_path, optim):
    settings = {"optim": optim, "save_strategy": "steps", "save_steps": 5}
    trainer = searcher(tmp_path, **settings)
    generator = torch.Generator().manual_seed(1)
    trainer.mask = Mask(
        {name: torch.rand(kept.shape, generator=generator) < 0.5 for name, kept in trainer.mask.items()}
    )
    trainer.train()
    resumed = searcher(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert curve(resumed) == curve(trainer) and same(weights(resumed.model), weights(trainer.model))


def test_a_checkpoint_may_be_named_by_a_path(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 5}
    trainer = searcher(tmp_path, **settings)
    trainer.prune()
    trainer.train()
    resumed = searcher(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-5")
    assert resumed.mask == trainer.mask and same(weights(resumed.model), weights(trainer.model))


@pytest.mark.parametrize("criterion", ["snip", "grasp", "wanda"])
def test_batches_and_dropout_of_a_criterion_are_the_same_in_another_process(tmp_path, criterion):
    found = []
    for name in ("one", "two"):
        trainer = searcher(tmp_path / name, {"criterion": criterion})
        Search(trainer).run_round(0)
        if name == "two":
            trainer = searcher(tmp_path / name, {"criterion": criterion})
            torch.manual_seed(99)
        Search(trainer).run_round(1)
        found.append((Search(trainer).round_folder(1).result()["fingerprint"], weights(trainer.model)))
    assert found[0][0] == found[1][0]
    assert same(found[0][1], found[1][1])


def test_seconds_of_all_processes_are_added_up(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 5}
    trainer = searcher(tmp_path, {"num_rounds": 0}, callbacks=[BreakOff(0, 7)], **settings)
    with pytest.raises(KeyboardInterrupt):
        trainer.find_ticket()
    path = tmp_path / "round-00" / "checkpoint-5" / "manifest.json"
    manifest = read_sealed(path)
    assert 0 < manifest["seconds"] < 300
    write_sealed(path, {**manifest, "seconds": 1000.0})
    searcher(tmp_path, {"num_rounds": 0}, **settings).find_ticket()
    assert 1000 < json.loads((tmp_path / "round-00" / "result.json").read_text())["train_seconds"] < 1300


# --- late rewinding beside what Trainer does at the end


class Overfits(Trainer):
    """Its validation loss grows with every evaluation."""

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if metric_key_prefix == "eval_validation":
            output.metrics["eval_validation_loss"] = float(self.state.global_step)
        return output


class SearchOverfits(LotteryMixin, Overfits):
    pass


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "validation_loss",
    "greater_is_better": False,
}


def test_the_best_of_a_sparse_round_is_its_own(tmp_path):
    trainer = searcher(tmp_path, {"num_rounds": 1, "rewind_step": 4}, cls=SearchOverfits, **BEST)
    ticket = trainer.find_ticket()
    trained = Search(trainer).round_folder(1).trained().tensors
    for name, kept in ticket.mask.items():
        assert not trained[name][~kept].any() and trained[name][kept].all()
    assert trainer.state.best_global_step == 6  # 4 is the dense network's


def test_the_line_is_of_the_weights_that_were_kept(tmp_path):
    trainer = searcher(tmp_path, {"num_rounds": 0}, cls=SearchOverfits, **BEST)
    trainer.find_ticket()
    line = Search(trainer).round_folder(0).result()
    assert line["test_loss"] == pytest.approx(trainer.evaluate()["eval_test_loss"], rel=1e-6)
    assert trainer.state.best_global_step == 2


def test_the_early_stop_step_is_never_the_dense_networks(tmp_path):
    trainer = searcher(
        tmp_path, {"num_rounds": 1, "rewind_step": 4}, cls=SearchOverfits, **{**EVALUATED, "eval_steps": 2}
    )
    trainer.find_ticket()
    assert Search(trainer).round_folder(0).result()["early_stop_step"] == 2
    assert Search(trainer).round_folder(1).result()["early_stop_step"] == 6


def test_stopping_early_begins_anew_in_every_round(tmp_path):
    settings = {**BEST, "max_steps": 20}
    stop = EarlyStoppingCallback(early_stopping_patience=2)
    trainer = searcher(tmp_path, {"num_rounds": 1}, cls=SearchOverfits, callbacks=[stop], **settings)
    trainer.find_ticket()
    assert [line["steps"] for line in results(trainer)] == [6, 6]


def test_training_that_ends_before_step_k(tmp_path):
    stop = EarlyStoppingCallback(early_stopping_patience=1)
    trainer = searcher(tmp_path, {"rewind_step": 8}, cls=SearchOverfits, callbacks=[stop], **BEST)
    with pytest.raises(ValueError, match="ended at step 4, before rewind_step 8"):
        trainer.find_ticket()
    assert not Search(trainer).round_folder(0).finished


def test_fine_tuning_from_step_k_has_the_last_rate_from_its_first_step(tmp_path):
    config = {"num_rounds": 1, "rewind_step": 4, "retraining": "fine_tuning"}
    trainer = searcher(tmp_path, config, lr_scheduler_type="constant_with_warmup", warmup_steps=8)
    trainer.find_ticket()
    rates = [r["learning_rate"] for r in trainer.state.log_history if "learning_rate" in r and r["step"] > 4]
    assert len(rates) == 6 and set(rates) == {0.01}


class Passes(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_a_rewind_step_that_cannot_be_replayed_is_refused(tmp_path):
    from tests.tiny import examples

    with pytest.raises(ValueError, match="ignore_data_skip"):
        searcher(tmp_path, {"rewind_step": 2}, ignore_data_skip=True)
    trainer = searcher(tmp_path, {"rewind_step": 8}, train=Passes(examples()), max_steps=15)  # six batches a pass
    with pytest.raises(ValueError, match="pass 2 over a train_dataset without a length"):
        trainer.train()


# --- tickets and masks


def test_a_ticket_held_at_its_initial_values_trains(tmp_path):
    config = {"num_rounds": 1, "pruned_value": "init"}
    ticket = searcher(tmp_path / "a", config).find_ticket()
    trainer = make_trainer(tmp_path / "b", ticket=ticket)
    start = weights(trainer.model)
    trainer.train()
    for name, kept in ticket.mask.items():
        now = trainer.model.get_parameter(name)
        assert torch.equal(now[~kept], start[name][~kept]) and now[~kept].any() and not torch.equal(now, start[name])
    with pytest.raises(ValueError, match="pruned_value 'zero', and the ticket's pruned weights are 'init'"):
        make_trainer(tmp_path / "c", ticket=ticket, lottery_config=LotteryConfig())


def test_a_ticket_held_at_its_initial_values_can_be_rewound_before_it_is_trained(tmp_path):
    ticket = searcher(tmp_path / "a", {"num_rounds": 1, "pruned_value": "init"}).find_ticket()
    expected = make_trainer(tmp_path / "b", ticket=ticket)
    expected.train()
    trainer = make_trainer(tmp_path / "c", ticket=ticket)
    for _ in range(2):  # the second one replays
        trainer.rewind()
        trainer.train()
        assert curve(trainer) == curve(expected) and same(weights(trainer.model), weights(expected.model))


@pytest.mark.parametrize("retraining", ["weight_rewinding", "learning_rate_rewinding"])
def test_a_rewind_before_step_k_is_refused_and_changes_nothing(tmp_path, retraining):
    trainer = searcher(tmp_path, {"retraining": retraining})
    with pytest.raises(RuntimeError, match="train to the rewind step first"):
        trainer.rewind()
    trainer.train()
    trainer.rewind()


def test_masks_over_weights_that_are_frozen_later(tmp_path):
    trainer = searcher(tmp_path, {"num_rounds": 1})
    trainer.train()
    trainer.prune()
    trainer.model.first.weight.requires_grad_(False)
    trainer.rewind()
    trainer.train()
    assert not trainer.model.first.weight[~trainer.mask["first.weight"]].any()


def test_weights_that_were_frozen_at_step_k_cannot_be_rewound(tmp_path):
    net = seeded_net()
    net.first.weight.requires_grad_(False)
    trainer = searcher(tmp_path, model=net)
    trainer.train()
    net.first.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"'first.weight' was frozen at the rewind step"):
        trainer.rewind()


def test_a_mask_that_does_not_fit_leaves_the_old_one(tmp_path):
    trainer = searcher(tmp_path)
    with pytest.raises(ValueError, match="has shape"):
        trainer.mask = Mask({"first.weight": torch.ones(3, 3, dtype=torch.bool)})
    assert trainer.mask.density() == 1 and trainer.mask["first.weight"].shape == (24, 12)


def test_a_compiled_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="compiled already"):
        searcher(tmp_path, model=torch.compile(seeded_net()))


def test_n_of_m_leaves_alone_what_has_rate_0_and_knows_no_other(tmp_path):
    trainer = searcher(tmp_path, {"pattern": "2:4", "pruning_rates": {"classifier": 0}})
    mask = trainer.prune()
    assert mask["classifier.weight"].all() and mask["first.weight"].float().mean() == 0.5
    searcher(tmp_path, {"pattern": "4:8", "pruning_rates": {"first": 0}})  # 8 does not divide its 12 inputs
    with pytest.raises(ValueError, match="pattern 2:4 has no rate"):
        searcher(tmp_path, {"pattern": "2:4", "pruning_rates": {"classifier": 0.1}})


class Weighted(LotteryMixin, Trainer):
    """Classes 1 and 2 do not count; the model's own loss is not asked for."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(inputs["x"])
        loss = nn.functional.cross_entropy(outputs["logits"], inputs["labels"], weight=torch.tensor([1.0, 0.0, 0.0]))
        return (loss, outputs) if return_outputs else loss


def test_snip_judges_by_the_trainers_own_loss(tmp_path):
    masks = [
        searcher(tmp_path, {"criterion": "snip"}, cls=cls).prune() for cls in (Weighted, type(searcher(tmp_path)))
    ]
    assert masks[0] != masks[1]


def test_criteria_that_look_at_data_see_no_dropout(tmp_path):
    from hf_lottery.pruning.step import score

    trainer = searcher(tmp_path, {"criterion": "wanda"})
    seen = []
    trainer.model.dropout.register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    score(trainer.pruning_context())
    assert seen and not any(seen)
    assert trainer.model.training and trainer.model.dropout.training
