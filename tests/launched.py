"""What every rank of a launched test does.

* `launched.py all|search|order SETUP FOLDER N` starts N ranks itself, as torchrun would, but by forking: the imports,
  which take longest, are done once, and no rank finalises Python, which FSDP2's gloo threads can abort
  (see hf_lottery.distributed.processes.leave).
* `torchrun launched.py die SETUP FOLDER` is a search whose last rank dies.

SETUP says which distributed type to reach. All that tests assert is written to FOLDER/rank-N.json.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from pathlib import Path
from typing import ClassVar

import torch
from torch.multiprocessing import start_processes
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_lottery import LotteryConfig, LotteryTrainer, Mask
from hf_lottery.distributed.deepspeed import is_zero
from hf_lottery.distributed.processes import from_main, full, leave, named_parameters, require_shared_folder, write
from hf_lottery.models.lenet import LeNetConfig, LeNetForImageClassification
from hf_lottery.runner.launch import require_same_data, require_same_recipe
from hf_lottery.tasks import TaskData
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.training.dynamic_sparsity import DynamicSparsity
from hf_lottery.training.search import Search

GLOBAL_BATCH = 16
STEPS = 6


def model(cls=LeNetForImageClassification) -> LeNetForImageClassification:
    """Odd widths, so that shards are uneven and their last one is padded."""
    torch.manual_seed(0)
    return cls(LeNetConfig(hidden_sizes=[17, 11], image_size=6))


class NoisyLeNet(LeNetForImageClassification):
    """Draws random numbers in training, on every rank another count of them: only a rank's own state replays them."""

    def forward(self, pixel_values, **kwargs):
        for _ in range(1 + int(os.environ.get("RANK", 0))):
            noise = torch.randn_like(pixel_values)
        return super().forward(pixel_values + 0.1 * noise if self.training else pixel_values, **kwargs)


class Eye(LeNetForImageClassification):
    """Keeps a number for each image that it is trained on, batch by batch."""

    seen: ClassVar[list[list[float]]] = []

    def forward(self, pixel_values, **kwargs):
        if self.training:
            Eye.seen.append([round(float(image.double().sum()), 6) for image in pixel_values])
        return super().forward(pixel_values, **kwargs)


def examples(n: int = 96) -> TensorDataset:
    g = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(n, 1, 6, 6, generator=g), torch.randint(0, 10, (n,), generator=g))


def collate(rows):
    images, labels = zip(*rows, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}


class EveryStep(TrainerCallback):
    """After every step: whether each pruned weight and its gradient are zero on this rank, and the density seen."""

    def __init__(self):
        self.trainer = None
        self.steps = 0
        self.masked_steps = 0
        self.moved = []  # steps at which a pruned weight was not zero
        self.bools = 0  # most bytes of bools in memory while the mask prunes
        self.stop_at = None  # (round, step) to die at

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
        mask = self.trainer.mask
        if mask.density() < 1:
            self.bools = max(self.bools, bytes_of_bools())
        for name, parameter in named_parameters(self.trainer.model).items():
            if name in mask and not mask[name].all():
                self.masked_steps += 1
                pruned = weights_of(self.trainer, name, parameter)[~mask[name]]
                if pruned.count_nonzero():
                    self.moved.append([state.global_step, name])
        if self.stop_at == (self.trainer.current_round, state.global_step):
            raise InterruptedError


def bytes_of_bools() -> int:
    gc.collect()
    tensors = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.dtype == torch.bool]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def weights_of(trainer, name, parameter):
    return full(parameter).cpu()


def arguments(setup: str, folder: Path, **changes) -> TrainingArguments:
    world = int(os.environ.get("WORLD_SIZE", 1))
    settings = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": GLOBAL_BATCH // world,
        "per_device_eval_batch_size": 32 // world,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "ddp_timeout": 300,  # ranks that wait for each other in vain fail, and say where
        "seed": 3,
        **SETUPS[setup],
        **changes,
    }
    args = TrainingArguments(**settings)
    if setup == "fsdp2":  # accelerate takes FSDP for GPUs only; over gloo the same code runs all the same
        from accelerate import PartialState
        from accelerate.utils import DistributedType

        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return args


def zero(stage: int) -> dict:
    """A DeepSpeed config, as TrainingArguments takes it."""
    return {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_allow_untested_optimizer": True,
    }


SETUPS: dict[str, dict] = {
    "single": {},
    "ddp": {},
    "fsdp2": {},
    "zero2": {"deepspeed": zero(2)},
    "zero3": {"deepspeed": zero(3)},
}
ENVIRONMENT = {
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "Linear",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    },
    "zero2": {"DS_ACCELERATOR": "cpu"},
    "zero3": {"DS_ACCELERATOR": "cpu"},
}


def make(
    setup: str, folder: Path, config: dict | None = None, network=LeNetForImageClassification, **changes
) -> tuple[LotteryTrainer, EveryStep]:
    watch = EveryStep()
    trainer = LotteryTrainer(
        model(network),
        arguments(setup, folder, **changes),
        data_collator=collate,
        train_dataset=examples(),
        eval_dataset={"validation": examples(32), "test": examples(32)},
        callbacks=[watch],
        lottery_config=LotteryConfig(
            **{"num_rounds": 2, "pruning_rate": 0.4, "scope": "global", "rewind_step": 2, **(config or {})}
        ),
    )
    watch.trainer = trainer
    return trainer, watch


def losses(trainer) -> list[float]:
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def weights(trainer) -> dict[str, list[float]]:
    tensors = RewindPoint.capture(trainer.model).tensors
    return {name: tensors[name].double().flatten().tolist() for name in sorted(tensors)}


def search(setup: str, folder: Path) -> dict:
    """A whole search; then the same one, interrupted in round 1 and continued by a new trainer."""
    trainer, watch = make(setup, folder / "whole")
    ticket = trainer.find_ticket()
    report = {
        "distributed_type": str(trainer.accelerator.distributed_type.value),
        "world_size": trainer.args.world_size,
        "sharded": any(hasattr(p, "placements") or hasattr(p, "ds_id") for p in trainer.model.parameters()),
        "masked_steps": watch.masked_steps,
        "moved": watch.moved,
        "bools": watch.bools,
        "weights_masked": trainer.mask.numel(),
        "fingerprints": [Search(trainer).round_folder(r).result()["fingerprint"] for r in range(3)],
        "kept": [Search(trainer).round_folder(r).result()["kept"] for r in range(3)],
        "ticket": ticket.mask.fingerprint(),
        "rewind": {name: value.double().flatten().tolist() for name, value in ticket.rewind.tensors.items()},
        "weights": weights(trainer),
        "losses": losses(trainer),
        "eval_loss": [Search(trainer).round_folder(r).result()["eval_loss"] for r in range(3)],
    }
    if setup != "ddp":  # there a rank has died already, see die(); looking on the disk, ranks could disagree
        interrupted(setup, folder)
    continued, watch = make(setup, folder / "broken")
    again = continued.find_ticket()
    report["continued"] = {
        "steps": watch.steps,  # not those that were done before
        "ticket": again.mask.fingerprint(),
        "weights": weights(continued),
        "moved": watch.moved,
        "eval_loss": [Search(continued).round_folder(r).result()["eval_loss"] for r in range(3)],
    }
    return report


def interrupted(setup: str, folder: Path) -> None:
    """A search that stops after step 5 of round 1, of which a checkpoint at step 4 is left."""
    trainer, watch = make(setup, folder / "broken")
    watch.stop_at = (1, 5)
    try:
        trainer.find_ticket()
    except InterruptedError:
        return
    raise AssertionError("it was not interrupted")


def die(setup: str, folder: Path) -> None:
    """The same, by the sudden death of the last rank, which says nothing to the others."""
    trainer, watch = make(setup, folder / "broken")
    watch.stop_at = (1, 5) if trainer.args.process_index == trainer.args.world_size - 1 else None
    try:
        trainer.find_ticket()
    except InterruptedError:
        os._exit(7)


def replay(setup: str, folder: Path, rewind_step: int) -> dict:
    """Rewinding under an all-ones mask, twice over: the same losses each time."""
    settings = {"save_strategy": "no", "eval_strategy": "no"}
    trainer, _ = make(setup, folder, {"rewind_step": rewind_step}, network=NoisyLeNet, **settings)
    trainer.train()
    runs = [losses(trainer)]
    for _ in range(2):
        trainer.rewind()
        trainer.train()
        runs.append(losses(trainer))
    return {"losses": runs, "weights": weights(trainer)}


def disagree(setup: str, folder: Path) -> str:
    """Another mask on the last rank is an error on every rank."""
    trainer, _ = make(setup, folder)
    tensors = {name: kept.clone() for name, kept in trainer.mask.items()}
    if trainer.args.process_index == trainer.args.world_size - 1:
        next(iter(tensors.values())).view(-1)[0] = False
    try:
        trainer.mask = Mask(tensors)
    except ValueError as error:
        return str(error)
    return "no error"


def order(setup: str, folder: Path) -> dict:
    """What each round is trained on under `fresh`; or what is said if its settings are refused."""
    config = {"data_order": "fresh", "rewind_optimizer": "fresh"}
    try:
        trainer, _ = make(setup, folder / "order", config, network=Eye, save_strategy="no", max_steps=8)
    except ValueError as error:
        return {"refused": str(error)}
    search, seen = Search(trainer), []
    for number in range(3):
        Eye.seen.clear()
        search.run_round(number)
        seen.append(list(Eye.seen))
    return {"seen": seen, "losses": losses(trainer), "weights": weights(trainer)}


class Meddle(TrainerCallback):
    """On the last rank alone: writes into a pruned weight, or a nan into a weight, at the end of step 3 of round 1."""

    def __init__(self, value: float, pruned: bool):
        self.value, self.pruned, self.trainer = value, pruned, None

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        name = "classifier.weight"
        if (self.trainer.current_round, state.global_step) != (1, 3):
            return
        parameter = named_parameters(self.trainer.model)[name]
        value, mask = full(parameter).clone(), self.trainer.mask[name]
        value.view(-1)[int((mask.flatten() != self.pruned).nonzero()[-1])] = self.value
        if is_zero(parameter) or args.process_index == args.world_size - 1:  # DeepSpeed writes on all ranks together
            write(parameter, value)


def meddled(setup: str, folder: Path, value: float, pruned: bool) -> str:
    """What a search says after a weight was written into, on this rank."""
    trainer, _ = make(setup, folder, {"rewind_step": 0, "num_rounds": 1})
    trainer.add_callback(callback := Meddle(value, pruned))
    callback.trainer = trainer
    # the watch must come after it
    trainer.remove_callback(trainer.watch)
    trainer.add_callback(trainer.watch)
    try:
        trainer.find_ticket()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def held(setup: str, folder: Path) -> list[str]:
    """The tensors that have a pruned weight which is not at θ_k after a search under pruned_value init."""
    config = {"rewind_step": 0, "num_rounds": 1, "pruned_value": "init"}
    trainer, _ = make(setup, folder, config, weight_decay=0.0)
    trainer.find_ticket()
    tensors, theta = RewindPoint.capture(trainer.model).tensors, trainer.rewind_point.tensors
    return [name for name, kept in trainer.mask.items() if not torch.equal(tensors[name][~kept], theta[name][~kept])]


def refusals(folder: Path) -> dict[str, str]:
    """What is said on this rank when ranks do not fit together."""
    rank = torch.distributed.get_rank()
    (folder / f"only-on-{rank}").mkdir()
    attempts = {
        "recipe": lambda: require_same_recipe(f"seed: {rank}"),
        "data": lambda: require_same_data(task_data(copies=1 + rank)),
        "folder": lambda: require_shared_folder(folder / f"only-on-{rank}"),
        "decision": lambda: from_main(lambda: [][rank]),
    }
    said = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except (ValueError, IndexError) as error:
            said[name] = str(error)
    require_same_recipe("seed: 1")
    require_shared_folder(folder)
    require_same_data(task_data())
    return said


def task_data(copies: int = 1) -> TaskData:
    rows = [{"pixel_values": image, "labels": label} for image, label in examples(8)]
    return TaskData(rows * copies, rows, rows, collate, compute_metrics=None)


def dynamic(setup: str, folder: Path, rule: str) -> dict | str:
    """A training in which RigL or SET changes the mask after every second step; or why it is refused."""
    # Adam's first step of a regrown weight is one learning rate, so that magnitudes are equal to rounding
    settings = {"optim": "sgd", "learning_rate": 0.1}
    trainer, watch = make(setup, folder, {"rewind_step": 0}, save_strategy="no", max_steps=12, **settings)
    tensors = {name: torch.ones(kept.shape, dtype=torch.bool) for name, kept in trainer.mask.items()}
    for kept in tensors.values():
        kept.view(-1)[::2] = False
    trainer.mask = Mask(tensors)
    try:
        DynamicSparsity(trainer, rule, 5)
    except ValueError as error:
        return str(error)
    before = trainer.mask.fingerprint()
    trainer.train()
    return {
        "changed": trainer.mask.fingerprint() != before,
        "mask": trainer.mask.fingerprint(),
        "counts stay": trainer.mask.counts() == Mask(tensors).counts(),
        "moved": watch.moved,
        "weights": weights(trainer),
    }


def plain(setup: str, folder: Path) -> list[float]:
    """transformers' own Trainer: what the others are compared with."""
    trainer = Trainer(model(), arguments(setup, folder, eval_strategy="no", save_strategy="no"), collate, examples())
    trainer.train()
    return losses(trainer)


def main(setup: str, folder: Path, what: str = "all") -> None:
    torch.set_num_threads(1)
    if setup.startswith("zero"):
        import deepspeed

        # compiled at its first use, which takes minutes, for sums between processes that gloo makes as well
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    report = {"order": order(setup, folder)} if what == "order" else {"search": search(setup, folder)}
    if what == "all":
        report["replay_0"] = replay(setup, folder / "replay-0", 0)
        report["replay_2"] = replay(setup, folder / "replay-2", 2)
        for rule in ("rigl", "set"):
            report[rule] = dynamic(setup, folder / rule, rule)
        report["plain"] = plain(setup, folder / "plain")
        report["held"] = held(setup, folder / "held")
        report["moved"] = meddled(setup, folder / "moved", 0.25, pruned=True)
        report["diverged"] = meddled(setup, folder / "diverged", float("nan"), pruned=False)
        if setup != "single":
            report["disagree"] = disagree(setup, folder / "disagree")
        if setup == "ddp":
            report["refusals"] = refusals(folder)
            report["snip"] = make(setup, folder / "snip", {"criterion": "snip"})[0].prune().fingerprint()
    leave()
    rank = os.environ.get("RANK", "0")
    (folder / f"rank-{rank}.json").write_text(json.dumps(report))


def one_of(rank: int, count: int, port: int, setup: str, folder: Path, what: str) -> None:
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in here.items()}})
    main(setup, folder, what)


def ranks(what: str, setup: str, folder: Path, count: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(one_of, (count, port, setup, folder, what), nprocs=count, start_method="fork")


if __name__ == "__main__":
    what, setup, folder, *count = sys.argv[1:]
    if what == "die":
        die(setup, Path(folder))
    else:
        ranks(what, setup, Path(folder), int(*count))
