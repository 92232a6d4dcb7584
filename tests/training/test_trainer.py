"""LotteryTrainer: the Trainer itself without our arguments; a replay under an all-ones mask; the search."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, Trainer

from hf_lottery import LotteryConfig, LotteryMixin, LotteryTrainer, Mask
from hf_lottery.training.network_folder import NetworkFolder
from hf_lottery.training.search import Search
from tests.tiny import Net, Recorder, curve, examples, make_trainer, same, seeded_net, weights

EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}
MATRIX = {
    "defaults": {},
    "accumulation": {"gradient_accumulation_steps": 3},
    "cosine with warmup": {"lr_scheduler_type": "cosine", "warmup_steps": 3},
    "constant": {"lr_scheduler_type": "constant"},
    "sgd": {"optim": "sgd", "weight_decay": 0.1},
    "adafactor": {"optim": "adafactor"},
    "bf16": {"bf16": True},
    "label smoothing": {"label_smoothing_factor": 0.2},
    "no clipping": {"max_grad_norm": 0},
    "tight clipping": {"max_grad_norm": 0.1},
    "evaluation": EVALUATED,
    "epochs": {"max_steps": -1, "num_train_epochs": 2},
    "best model": {
        **EVALUATED, "save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True,
        "metric_for_best_model": "eval_validation_loss",
    },
}  # fmt: skip


def run(trainer: Trainer):
    trainer.train()
    return curve(trainer), weights(trainer.model)


@pytest.mark.parametrize("settings", MATRIX.values(), ids=MATRIX.keys())
def test_without_our_arguments_it_is_the_trainer_and_round_0_too(tmp_path, settings):
    plain, plain_weights = run(make_trainer(tmp_path / "plain", cls=Trainer, **settings))
    for extras in ({}, {"lottery_config": LotteryConfig(rewind_step=2)}):
        losses, final = run(make_trainer(tmp_path / f"ours{len(extras)}", **settings, **extras))
        assert losses == plain
        assert same(final, plain_weights)


def test_resume_early_stopping_iterable_data_and_model_init_as_the_trainer(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from examples()

    def early_stopping():
        return [EarlyStoppingCallback(early_stopping_patience=1)]

    best = {**MATRIX["best model"], "learning_rate": 0.5, "max_steps": 20}
    for cls, extras in ((LotteryTrainer, {}), (LotteryTrainer, {"lottery_config": LotteryConfig()})):
        folder = tmp_path / f"{len(extras)}"
        pairs = {
            "early": dict(best, callbacks=early_stopping),
            "stream": {"train": Stream()},
            "init": {"model_init": seeded_net},
        }
        for name, settings in pairs.items():
            callbacks = settings.pop("callbacks", list)
            plain = run(make_trainer(folder / f"{name}-plain", cls=Trainer, callbacks=callbacks(), **settings))
            ours = run(make_trainer(folder / name, cls=cls, callbacks=callbacks(), **settings, **extras))
            assert ours[0] == plain[0] and same(ours[1], plain[1]), name
        saving = {"save_strategy": "steps", "save_steps": 5}
        whole = run(make_trainer(folder / "whole", cls=cls, **saving, **extras))
        again = make_trainer(folder / "whole", cls=cls, **saving, **extras)
        again.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-5"))
        assert curve(again) == whole[0] and same(weights(again.model), whole[1])


@pytest.mark.parametrize("settings", [{}, {"optim": "sgd", "optim_args": "momentum=0.9", **EVALUATED}, {"bf16": True}])
@pytest.mark.parametrize("k", [0, 4, 6, 0.5])
def test_an_all_ones_mask_replays_round_0_bit_for_bit_twice_over(tmp_path, k, settings):
    trainer = make_trainer(tmp_path, lottery_config=LotteryConfig(rewind_step=k), **settings)
    first = run(trainer)
    for _ in range(2):
        trainer.rewind()
        again = run(trainer)
        assert again[0] == first[0]
        assert same(again[1], first[1])


def test_a_replay_with_the_users_own_optimizer_and_scheduler(tmp_path):
    model = seeded_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    trainer = make_trainer(tmp_path, model, optimizers=(optimizer, scheduler), lottery_config=LotteryConfig())
    first = run(trainer)
    trainer.rewind()
    again = run(trainer)
    assert again[0] == first[0] and same(again[1], first[1])


def test_rewinding_at_k_keeps_the_survivors_moments_and_step_count(tmp_path):
    trainer = make_trainer(tmp_path, lottery_config=LotteryConfig(rewind_step=4, pruning_rate=0.5))
    trainer.train()
    theta_4 = {name: value.clone() for name, value in trainer.rewind_point.tensors.items()}
    mask = trainer.prune()
    trainer.rewind()
    for name, kept in mask.items():
        now = trainer.model.get_parameter(name)
        assert torch.equal(now[kept], theta_4[name][kept]) and not now[~kept].any()
    trainer.train()
    assert [step for step, *_ in curve(trainer)][-6:] == [5, 6, 7, 8, 9, 10]


def test_learning_rate_rewinding_keeps_trained_weights_and_fine_tuning_the_last_rate(tmp_path):
    for retraining, rates in (("learning_rate_rewinding", None), ("fine_tuning", {0.0025})):
        trainer = make_trainer(
            tmp_path / retraining,
            lottery_config=LotteryConfig(retraining=retraining),
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.25},
        )
        trainer.train()
        trained, first = weights(trainer.model), [r["learning_rate"] for r in trainer.state.log_history if "loss" in r]
        mask = trainer.prune()
        trainer.rewind()
        now = weights(trainer.model)
        assert all(torch.equal(now[n], trained[n] * mask[n] if n in mask else trained[n]) for n in now)
        trainer.train()
        second = [r["learning_rate"] for r in trainer.state.log_history if "loss" in r]
        assert second == first if rates is None else set(second) == rates


def test_fine_tuning_at_a_rate_of_zero_is_refused(tmp_path):
    config = LotteryConfig(retraining="fine_tuning")
    with pytest.raises(ValueError, match="which is 0 under lr_scheduler_type linear"):
        make_trainer(tmp_path, lottery_config=config)
    trainer = make_trainer(tmp_path, lottery_config=config, lr_scheduler_type="cosine_with_restarts")
    trainer.train()
    trainer.prune()
    trainer.rewind()
    with pytest.raises(ValueError, match="which is 0 under lr_scheduler_type cosine_with_restarts"):
        trainer.train()


def search(folder, rounds=3, **settings):
    return make_trainer(folder, lottery_config=LotteryConfig(num_rounds=rounds, pruning_rate=0.3), **settings)


def lines(folder, rounds=3):
    results = [NetworkFolder(folder / f"round-{r:02d}").result() for r in range(rounds + 1)]
    return [{k: v for k, v in line.items() if k != "train_seconds"} for line in results]


def test_find_ticket_counts_what_it_prunes_and_puts_it_on_disk(tmp_path):
    recorder = Recorder()
    trainer = search(tmp_path, callbacks=[recorder], **EVALUATED)
    theta_0 = weights(trainer.model)
    ticket = trainer.find_ticket()
    results = lines(tmp_path)
    sizes = {"first.weight": 288, "classifier.weight": 72}
    left = dict(sizes)
    for number, line in enumerate(results):
        mask = NetworkFolder(tmp_path / f"round-{number:02d}").mask()
        assert {name: kept for name, (kept, _) in line["densities"].items()} == left
        assert line["kept"] == sum(left.values()) == mask.count() and line["prunable"] == 360
        assert line["density"] == line["kept"] / 360 and line["fingerprint"] == mask.fingerprint()
        assert (line["round"], line["control"], line["steps"]) == (number, "ticket", 10)
        # the network that was trained in this round was as sparse as its line says
        for recorded in recorder.weights[number * 10 : number * 10 + 10]:
            assert {name: int(recorded[name].count_nonzero()) for name in sizes} == left
        left = {name: count - round(0.3 * count) for name, count in left.items()}
    assert ticket.mask == trainer.mask
    assert all(torch.equal(ticket.rewind.tensors[name], theta_0[name]) for name in sizes)


def test_every_record_says_round_and_density(tmp_path):
    trainer = search(tmp_path)
    trainer.find_ticket()
    for number, line in enumerate(lines(tmp_path)):
        state = json.loads((tmp_path / f"round-{number:02d}" / "trainer_state.json").read_text())
        assert {(r["round"], r["density"]) for r in state["log_history"]} == {(number, line["density"])}


def test_a_search_that_was_stopped_continues_to_the_same_ticket(tmp_path):
    whole = search(tmp_path / "whole", **EVALUATED).find_ticket()
    first = Search(search(tmp_path / "parts", **EVALUATED))
    first.run_round(0)
    first.run_round(1)
    second = search(tmp_path / "parts", **EVALUATED)  # another process: a fresh model and trainer
    before = (tmp_path / "parts" / "round-01" / "result.json").stat().st_mtime_ns
    ticket = second.find_ticket()
    assert (tmp_path / "parts" / "round-01" / "result.json").stat().st_mtime_ns == before
    assert ticket.mask == whole.mask
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def test_a_round_that_was_stopped_continues_from_its_checkpoint(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 4, **EVALUATED}
    search(tmp_path / "whole", **saving).find_ticket()

    class Stop(Recorder):
        def on_save(self, args, state, control, **kwargs):
            if "round-02" in args.output_dir:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "parts", callbacks=[Stop()], **saving).find_ticket()
    search(tmp_path / "parts", **saving).find_ticket()
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def test_checkpoints_carry_the_mask(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 5}
    trainer = make_trainer(tmp_path, lottery_config=LotteryConfig(pruning_rate=0.5), **saving)
    trainer.train()
    mask = trainer.prune()
    trainer.rewind()
    trainer.args.output_dir = str(tmp_path / "second")
    whole = run(trainer)
    fresh = make_trainer(tmp_path / "second", lottery_config=LotteryConfig(pruning_rate=0.5), **saving)
    fresh.train(resume_from_checkpoint=str(tmp_path / "second" / "checkpoint-5"))
    assert fresh.mask == mask
    assert same(weights(fresh.model), whole[1])


def test_a_ticket_is_trained_sparse(tmp_path):
    ticket = search(tmp_path / "search").find_ticket()
    expected = [(s, loss) for s, loss, _ in curve_of(tmp_path / "search" / "round-03")]
    torch.manual_seed(99)
    recorder = Recorder()
    trainer = make_trainer(tmp_path / "again", model=Net(), ticket=ticket, callbacks=[recorder])
    trainer.train()
    assert [(s, loss) for s, loss, _ in curve(trainer)] == expected
    for recorded in recorder.weights:
        assert all(not recorded[name][~kept].any() for name, kept in ticket.mask.items())


def curve_of(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [(r["step"], r["loss"], r.get("grad_norm")) for r in history if "loss" in r]


def test_any_trainer_subclass(tmp_path):
    class MyTrainer(Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return 2 * super().compute_loss(model, inputs, *args, **kwargs)

    class MyLotteryTrainer(LotteryMixin, MyTrainer):
        pass

    plain = run(make_trainer(tmp_path / "plain", cls=MyTrainer))
    ours = run(make_trainer(tmp_path / "ours", cls=MyLotteryTrainer, lottery_config=LotteryConfig()))
    assert ours[0] == plain[0] and same(ours[1], plain[1])


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"auto_find_batch_size": True}, "auto_find_batch_size starts training again"),
        ({"optim": "lomo"}, "steps inside backward"),
        ({"optim": "galore_adamw_layerwise"}, "steps inside backward"),
        ({"lottery_config": LotteryConfig(target_modules=["frist"])}, "the nearest name is 'first'"),
        ({"lottery_config": LotteryConfig(pruning_rates={"head": 0.1})}, "'head' matches no module"),
        (
            {"optim": "schedule_free_sgd", "lottery_config": LotteryConfig(pruned_value="init")},
            "use pruned_value zero",
        ),
    ],
)
def test_what_cannot_be_kept_right_is_refused_at_construction(tmp_path, settings, says):
    with pytest.raises(ValueError, match=says):
        make_trainer(tmp_path, **{"lottery_config": LotteryConfig(), **settings})


def test_asking_for_a_mask_or_a_rewind_too_early(tmp_path):
    with pytest.raises(RuntimeError, match="pass lottery_config or ticket"):
        _ = make_trainer(tmp_path).mask
    with pytest.raises(RuntimeError, match="train to the rewind step first"):
        make_trainer(tmp_path, lottery_config=LotteryConfig()).rewind()
    with pytest.raises(ValueError, match="rewind_step is 10, but training ends at step 10"):
        make_trainer(tmp_path, lottery_config=LotteryConfig(rewind_step=10)).train()


def test_the_mask_can_be_set(tmp_path):
    trainer = make_trainer(tmp_path, lottery_config=LotteryConfig())
    mask = Mask({name: torch.zeros_like(kept) for name, kept in trainer.mask.items()})
    trainer.mask = mask
    assert not trainer.model.first.weight.any() and trainer.mask.density() == 0
