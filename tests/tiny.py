"""Small real networks, data and trainers that the tests of the core share."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PretrainedConfig, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hf_lottery import LotteryTrainer


class Net(nn.Module):
    """Two linear layers around batch norm and dropout: weights, buffers and randomness."""

    def __init__(self):
        super().__init__()
        self.config = PretrainedConfig()  # label smoothing asks the model for one
        self.first = nn.Linear(12, 24)
        self.norm = nn.BatchNorm1d(24)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(24, 3)

    def forward(self, x, labels=None):
        logits = self.classifier(self.dropout(torch.relu(self.norm(self.first(x)))))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def examples(count: int = 96) -> list[dict[str, torch.Tensor]]:
    """Points in 12 dimensions; the class is how many of the first two coordinates are positive."""
    x = torch.randn(count, 12, generator=torch.Generator().manual_seed(0))
    labels = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return [{"x": a, "labels": b} for a, b in zip(x, labels, strict=True)]


class Recorder(TrainerCallback):
    """Keeps the weights after every optimizer step."""

    def __init__(self):
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})


def seeded_net() -> Net:
    torch.manual_seed(7)
    return Net()


def make_trainer(
    folder, model=None, cls=LotteryTrainer, callbacks=(), train=None, optimizers=(None, None), **settings
):
    """A trainer of a tiny network; TrainingArguments and the trainer's own extras both by name."""
    extras = {name: settings.pop(name) for name in ("lottery_config", "ticket", "model_init") if name in settings}
    data = examples()
    defaults = {
        "output_dir": str(folder),
        "max_steps": 10,
        "per_device_train_batch_size": 16,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": True,
    }
    if "model_init" not in extras:
        extras["model"] = seeded_net() if model is None else model
    trainer = cls(
        args=TrainingArguments(**{**defaults, **settings}),
        train_dataset=data if train is None else train,
        eval_dataset={"validation": data[:32], "test": data[32:64]},
        callbacks=list(callbacks),
        optimizers=optimizers,
        **extras,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def curve(trainer: Trainer) -> list[tuple[int, float, float | None]]:
    """(step, loss, grad_norm) of every training record."""
    return [(r["step"], r["loss"], r.get("grad_norm")) for r in trainer.state.log_history if "loss" in r]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
