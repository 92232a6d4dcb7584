"""data_order: replay and fresh. Which examples a model sees is recorded in the model itself, batch by batch."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler
from transformers import TrainerCallback

from hf_lottery import LotteryConfig, LotteryTrainer, Ticket
from hf_lottery.experiment.controls import CONTROLS
from hf_lottery.experiment.experiment import Experiment
from hf_lottery.sealed import read_sealed, write_sealed
from hf_lottery.training.search import Search
from tests.tiny import Net, examples, make_trainer, same, weights

SIZE = 64  # 4 batches of 16 to a pass
DATA = examples(SIZE)
NUMBER = {tuple(example["x"].tolist()): i for i, example in enumerate(DATA)}


class Eye(Net):
    """Keeps the numbers of the examples of each batch that it is trained on, and the state of the random numbers."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], int]] = []

    def forward(self, x, labels=None):
        if self.training:
            drawn = hash(torch.get_rng_state().numpy().tobytes())
            self.seen.append((tuple(NUMBER[tuple(row)] for row in x.tolist()), drawn))
        return super().forward(x, labels)


def make(folder, seed=42, config=None, **settings):
    torch.manual_seed(seed)
    config = LotteryConfig(**{"num_rounds": 2, "pruning_rate": 0.4, **(config or {})})
    return make_trainer(folder, Eye(), train=DATA, lottery_config=config, seed=seed, **settings)


def rounds_seen(folder, **settings) -> list[list[tuple[tuple[int, ...], int]]]:
    """Round -> what the model of a search saw, batch by batch."""
    trainer = make(folder, **settings)
    search, found = Search(trainer), []
    for number in range(trainer.lottery_config.num_rounds + 1):
        trainer.model.seen.clear()
        search.run_round(number)
        found.append(list(trainer.model.seen))
    return found


def batches(seen) -> list[tuple[int, ...]]:
    return [batch for batch, _ in seen]


SETTINGS = {
    "plain": {},
    "accumulated": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
    "loader's workers": {"dataloader_num_workers": 2},
    "data_seed": {"data_seed": 5},
    "epochs": {"max_steps": -1, "num_train_epochs": 3},
    "evaluated": {"eval_strategy": "steps", "eval_steps": 3},
}


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_rounds_have_the_order_of_round_0_or_each_its_own(tmp_path, settings, k):
    replayed = rounds_seen(tmp_path / "a", config={"rewind_step": k}, **settings)
    fresh = rounds_seen(tmp_path / "b", config={"rewind_step": k, "data_order": "fresh"}, **settings)
    per_step = settings.get("gradient_accumulation_steps", 1)
    assert fresh[0] == replayed[0]  # the dense network does not change
    assert replayed[1] == replayed[2] == replayed[0][k * per_step :]
    orders = [batches(seen) for seen in (fresh[0][k * per_step :], *fresh[1:])]
    for one, other in itertools.combinations(orders, 2):
        assert len(one) == len(other) and all(a != b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("k", [0, 3])
def test_every_pass_after_step_k_holds_each_example_once_in_an_order_of_its_own(tmp_path, k):
    found = rounds_seen(tmp_path, config={"rewind_step": k, "data_order": "fresh"}, max_steps=-1, num_train_epochs=3)
    passes = []
    for seen in found[1:]:
        whole = batches(seen)[-k % 4 :]
        passes += [sum(whole[i : i + 4], ()) for i in range(0, len(whole), 4)]
    assert len(passes) == (6 if k == 0 else 4) and len(set(passes)) == len(passes)
    assert all(sorted(one) == list(range(SIZE)) for one in passes)


def test_replicates_have_orders_of_their_own_unless_data_seed_fixes_them(tmp_path):
    def found(name, seed, **settings):
        seen = rounds_seen(tmp_path / name, seed=seed, config={"data_order": "fresh"}, **settings)
        return [batches(one) for one in seen]

    one, two = found("a", 1), found("b", 2)
    assert all(a != b for a, b in zip(one, two, strict=True))
    one, two = found("c", 1, data_seed=7), found("d", 2, data_seed=7)
    assert one == two and one[1] != one[0] != one[2]


def test_another_process_has_the_same_orders(tmp_path):
    config = {"data_order": "fresh"}
    assert rounds_seen(tmp_path / "a", config=config) == rounds_seen(tmp_path / "b", config=config)


# --- controls


@pytest.mark.parametrize("k", [0, 3])
def test_controls_have_the_order_of_their_round(tmp_path, k):
    seen = {}

    def make_one(seed, folder):
        config = {"rewind_step": k, "data_order": "fresh"}
        trainer = make(folder, seed, config, lr_scheduler_type="constant", model_init=Eye)
        made.append(trainer.model)
        return trainer

    made = []
    controls = [SimpleNamespace(name=name, rounds=None, per_ticket=1) for name in CONTROLS]
    experiment = Experiment(tmp_path, 2, 2, controls, 42, make_one)
    names = []
    experiment.run(on_start=names.append)
    for network, model in zip(names, made, strict=True):
        seen[network] = model.seen
    assert len(seen) == 2 * (3 + 2 * len(CONTROLS))
    for network, mine in seen.items():
        if network.round == 0:
            continue
        ticket = next(seen[n] for n in seen if (n.replicate, n.round, n.control) == (*key(network), "ticket"))
        at = len(mine) - len(ticket)  # a control that starts at step 0 has k steps more
        assert at in (0, k) and batches(mine[at:]) == batches(ticket), network
        if k == 0:
            assert mine == ticket  # dropout too
    orders = [batches(model_seen) for n, model_seen in seen.items() if n.control == "ticket" and n.round > 0]
    assert len(set(map(tuple, orders))) == 4


def key(network) -> tuple[int, int]:
    return network.replicate, network.round


# --- interrupted


class BreakOff(TrainerCallback):
    def __init__(self, folder: str, step: int):
        self.folder, self.step = folder, step

    def on_step_end(self, args, state, control, **kwargs):
        if self.folder in args.output_dir and state.global_step == self.step:
            raise KeyboardInterrupt


SAVED = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3}


@pytest.mark.parametrize(
    "settings", [{}, SETTINGS["accumulated"], {"data_seed": 5}], ids=["plain", "acc", "data_seed"]
)
@pytest.mark.parametrize("k, step", [(0, 1), (0, 5), (0, 10), (3, 4), (3, 7)])
def test_a_round_that_was_broken_off_goes_on_in_its_order(tmp_path, k, step, settings):
    config = {"rewind_step": k, "data_order": "fresh", "rewind_optimizer": "fresh"}
    expected = make(tmp_path / "a", config=config, **SAVED, **settings)
    expected.find_ticket()
    broken = make(tmp_path / "b", config=config, **SAVED, **settings)
    broken.add_callback(BreakOff("round-01", step))
    with pytest.raises(KeyboardInterrupt):
        broken.find_ticket()
    again = make(tmp_path / "b", config=config, **SAVED, **settings)
    torch.manual_seed(step)  # a new process has other random numbers
    again.find_ticket()
    assert again.model.seen == expected.model.seen[-len(again.model.seen) :]
    assert same(weights(again.model), weights(expected.model))
    assert broken.find_ticket().mask == again.mask  # the trainer that broke off goes on, too


@pytest.mark.parametrize("data_seed", [None, 5])
def test_a_loop_of_ones_own_goes_on_from_a_checkpoint_without_being_told_the_round(tmp_path, data_seed):
    settings = {"config": {"data_order": "fresh"}, "data_seed": data_seed, **SAVED}

    def at_round_1(name):
        trainer = make(tmp_path / name, **settings)
        trainer.train()
        trainer.prune()
        trainer.rewind()
        return trainer

    expected = at_round_1("a")
    expected.train()
    trainer = at_round_1("b")
    trainer.add_callback(BreakOff("second", 7))
    trainer.args.output_dir = str(tmp_path / "b" / "second")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    again = make(tmp_path / "b", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "second" / "checkpoint-6"))
    assert batches(again.model.seen) == batches(expected.model.seen[-4:])
    assert same(weights(again.model), weights(expected.model))


# --- a loop of one's own


def test_the_steps_have_the_orders_of_the_search(tmp_path):
    config = {"data_order": "fresh"}
    expected = rounds_seen(tmp_path / "a", config=config)
    trainer = make(tmp_path / "b", config=config)
    trainer.train()
    assert trainer.model.seen == expected[0]
    trainer.model.seen.clear()
    trainer.rewind()  # not pruned: round 0 again
    trainer.train()
    assert trainer.model.seen == expected[0]
    for number in (1, 2):
        trainer.prune()
        for _ in range(2):
            trainer.model.seen.clear()
            trainer.rewind()
            trainer.train()
            assert trainer.model.seen == expected[number]
    trainer.model.seen.clear()
    trainer.rewind()
    trainer.restart(seed=9)  # a seed that was asked for counts
    trainer.train()
    assert batches(trainer.model.seen) not in [batches(seen) for seen in expected]


def test_a_mask_of_ones_own_needs_the_number_of_its_round(tmp_path):
    config = {"data_order": "fresh"}
    expected = rounds_seen(tmp_path / "a", config=config)
    trainer = make(tmp_path / "b", config=config)
    trainer.train()
    mask = trainer.prune()
    trainer = make(tmp_path / "c", config=config)
    trainer.train()
    trainer.mask = mask
    trainer.rewind()
    with pytest.raises(ValueError, match=r"current_round is 0, .* set trainer\.current_round"):
        trainer.train()
    trainer.current_round = 1
    trainer.model.seen.clear()
    trainer.train()
    assert trainer.model.seen == expected[1]


def test_a_ticket_is_trained_as_trainer_trains_and_searched_further(tmp_path):
    ticket = make(tmp_path / "a").find_ticket()
    ticket.save_pretrained(tmp_path / "ticket")
    ticket = Ticket.from_pretrained(tmp_path / "ticket")
    plain, fresh = (make_trained(tmp_path / name, ticket, name) for name in ("replay", "fresh"))
    assert plain.model.seen == fresh.model.seen
    fresh.model.seen.clear()
    fresh.rewind()
    fresh.train()
    assert batches(fresh.model.seen) == batches(plain.model.seen)
    fresh.model.seen.clear()
    fresh.prune()
    fresh.rewind()
    fresh.train()
    assert batches(fresh.model.seen) != batches(plain.model.seen)


def make_trained(folder, ticket, order):
    torch.manual_seed(42)
    config = LotteryConfig(data_order=order)
    trainer = make_trainer(folder, Eye(), train=DATA, ticket=ticket, lottery_config=config)
    trainer.train()
    return trainer


# --- what is recorded, and old folders


def test_a_folder_of_the_other_setting_is_refused_and_an_old_one_goes_on(tmp_path):
    make(tmp_path).find_ticket()
    with pytest.raises(ValueError, match="search with data_order 'replay', and it is 'fresh' now"):
        make(tmp_path, config={"data_order": "fresh"}).find_ticket()
    old = {
        k: v for k, v in read_sealed(tmp_path / "search.json").items() if k not in ("data_order", "rewind_optimizer")
    }
    write_sealed(tmp_path / "search.json", {k: v for k, v in old.items() if k != "sha256"})
    for name in ("data_order", "rewind_optimizer"):
        with pytest.raises(ValueError, match=f"holds rounds of a search with {name}"):
            make(tmp_path, config={name: "fresh"}).find_ticket()
    trainer = make(tmp_path)
    trainer.find_ticket()
    assert trainer.model.seen == []


def test_the_ticket_says_how_it_was_found(tmp_path):
    config = {"num_rounds": 1, "data_order": "fresh", "rewind_optimizer": "fresh"}
    make(tmp_path / "a", config=config).find_ticket().save_pretrained(tmp_path / "ticket")
    info = Ticket.from_pretrained(tmp_path / "ticket").info
    assert (info["data_order"], info["rewind_optimizer"]) == ("fresh", "fresh")
    assert "data_order `fresh`" in (tmp_path / "ticket" / "README.md").read_text()


# --- what is refused


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


class OwnLoader(LotteryTrainer):
    def get_train_dataloader(self):
        return DataLoader(DATA, batch_size=16, sampler=RandomSampler(DATA), collate_fn=self.data_collator)


REFUSED = {
    "sequential": ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy sequential"),
    "by length": ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy group_by_length"),
    "not seedable": ({"accelerator_config": {"use_seedable_sampler": False}}, "without use_seedable_sampler"),
    "stream": ({"train": Stream()}, "train_dataset is iterated in its own order"),
}


@pytest.mark.parametrize("settings, words", REFUSED.values(), ids=REFUSED.keys())
def test_an_order_that_no_seed_decides_is_refused_when_the_trainer_is_made(tmp_path, settings, words):
    with pytest.raises(ValueError, match=f"data_order is fresh, and .*{words}.* data_order replay"):
        make_trainer(tmp_path, lottery_config=LotteryConfig(data_order="fresh"), **settings)
    make_trainer(tmp_path, lottery_config=LotteryConfig(), **settings)


def test_a_data_loader_of_ones_own_is_refused_before_the_first_step(tmp_path):
    trainer = make_trainer(tmp_path, cls=OwnLoader, lottery_config=LotteryConfig(data_order="fresh"))
    with pytest.raises(ValueError, match="takes its order from RandomSampler, .* data_order replay"):
        trainer.train()
    assert trainer.state.global_step == 0
