"""--plan of a language model that cannot be trained here: counts, memory, an estimate; nothing is downloaded."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import Qwen2Config

from hf_lottery.cli import main
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.runner import speed as estimate
from hf_lottery.runner.plan import Plan
from hf_lottery.runner.speed import MOST_ROWS, estimate_speed, seconds_of_a_product
from tests import tiny_lm

QWEN_3B = Qwen2Config(
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=11008,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=2,
    max_position_embeddings=32768,
    tie_word_embeddings=True,
    rope_theta=1e6,
)
PRODUCTS_3B = 3_085_938_688 - 36 * (2 * 2048 + 2048 + 256 + 256) - 2048  # all but norms and biases; tied ones once


@pytest.fixture
def slow_machine(monkeypatch):
    """One on which every multiplication of a matrix product takes a nanosecond; the shapes that were timed."""
    timed = Counter()

    def seconds(shape, tokens, dtype, device):
        timed[shape] += 1
        return shape[0] * shape[1] * tokens * 1e-9

    monkeypatch.setattr(estimate, "seconds_of_a_product", seconds)
    return timed


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def plan(monkeypatch, capsys):
    """`hf-lottery run ... --plan`: what it prints, by the first word of each line."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["hf-lottery", "run", *words, "training.use_cpu=true", "--plan"])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code
        out = capsys.readouterr().out
        assert not status, out
        return dict(line.split(maxsplit=1) for line in out.splitlines())

    return run


@pytest.mark.parametrize(
    ("name", "passes", "memory"),
    [
        ("3b-lora-alpaca", 3, "3,686,400 trained, 3,686,400 prunable; 5.8 GiB"),
        ("3b-qlora-alpaca", 3, "3,686,400 trained, 3,686,400 prunable; 2.0 GiB"),
        ("3b-full", 4, "3,085,938,688 trained, 2,774,532,096 prunable; 51.2 GiB"),
        ("3b-lota", 4, "2,774,532,096 trained, 2,774,532,096 prunable; 58.0 GiB"),
    ],
)
def test_the_recipes_for_qwen_are_planned_without_network_or_weights(
    name, passes, memory, slow_machine, offline, plan, tmp_path
):
    if name == "3b-qlora-alpaca":
        pytest.importorskip("bitsandbytes")
    out = f"training.output_dir={tmp_path / 'out'}"
    said = plan(f"qwen2.5/{name}", out)
    assert said["memory"].startswith(f"3,085,938,688 parameters, {memory} before activations")
    # the config that comes with the package; 8 x 128 tokens; activations are computed anew in the backward pass
    step = f"{passes * 8 * 128 * PRODUCTS_3B * 1e-9:,.0f} s"
    assert said["each"].startswith(f"an unknown number of steps of {step}")
    assert "estimated, not measured" in said["time"] and "how many steps an epoch has is not known" in said["time"]
    assert sum(slow_machine.values()) == len(slow_machine) == 5  # each shape once

    said = plan(f"qwen2.5/{name}", out, "training.max_steps=2", "training.eval_strategy=no")
    assert said["each"].startswith(f"2 steps of {step}, 1 evaluations of {1000 * 128 * PRODUCTS_3B * 1e-9:,.0f} s")
    assert "not known" not in said["time"]
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_config_alone_is_enough(slow_machine, offline, plan, tmp_path):
    QWEN_3B.save_pretrained(tmp_path / "qwen")
    said = plan(
        "qwen2.5/3b-lora-alpaca",
        f"model.name_or_path={tmp_path / 'qwen'}",
        f"data.path={tiny_lm.save_table(tmp_path / 'table', rows=40)}",
        "data.validation_size=4",
        "data.test_size=6",
        "training.eval_steps=2",
    )
    assert said["memory"].startswith("3,085,938,688 parameters, 3,686,400 trained")
    assert said["each"].startswith("4 steps of") and "2 evaluations of" in said["each"]  # 30 rows in batches of 8
    assert "its weights are not on this machine" in said["time"]


def test_what_fits_and_is_here_but_is_slow_is_not_calibrated(slow_machine, plan, tmp_path):
    folder = tiny_lm.save_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"not read")
    said = plan(
        "smollm2/135m-lora",
        f"model.name_or_path={folder}",
        "model.gguf_file=null",
        f"data.path={tiny_lm.save_table(tmp_path / 'table')}",
        "data.validation_size=4",
        "data.test_size=4",
        "training.gradient_accumulation_steps=10000",
    )
    assert "a calibration would take" in said["time"]


def test_passes_are_counted_by_what_is_trained_and_computed_anew(slow_machine):
    products = PRODUCTS_3B * 1e-9
    for name, checkpointing, passes in (("3b-lora-alpaca", "false", 2), ("3b-full", "false", 3)):
        recipe = load_recipe(
            f"qwen2.5/{name}",
            [f"training.activation_checkpointing={checkpointing}", "training.use_cpu=true", "training.bf16=true"],
        )
        speed = estimate_speed(recipe, QWEN_3B)
        assert speed.forward == pytest.approx(products)
        assert speed.step == pytest.approx(passes * 1024 * products)
        assert (speed.tokens, speed.dtype) == (1024, "bfloat16")


def test_of_a_large_weight_a_part_is_timed_and_scaled(monkeypatch):
    shapes, clock = [], iter(range(100))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(clock))  # a second a look
    monkeypatch.setattr(estimate.nn.functional, "linear", lambda x, weight: shapes.append((*x.shape, *weight.shape)))
    seconds = seconds_of_a_product((3 * MOST_ROWS, 2), 5, torch.float32, torch.device("cpu"))
    assert set(shapes) == {(5, 2, MOST_ROWS, 2)}
    assert seconds == 3


def test_a_plan_without_steps_has_no_time_in_all():
    plan = Plan(3, 1, None, None, 2.0, 30.0, 1 << 20, 1 << 30)
    assert plan.seconds is None
    assert "0:33:20 for 1,000 steps of one network" in str(plan)
    plan = Plan(3, 1, 10, 2, 2.0, 30.0, 1 << 20, 1 << 30)
    assert plan.seconds == 2 * (20 + 60)
    assert "10 steps of 2 s, 2 evaluations of 30 s" in str(plan)
