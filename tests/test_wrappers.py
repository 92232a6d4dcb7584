"""What a model or an optimizer can be wrapped in: each keeps pruned weights at zero and the losses as they are."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_lottery import LotteryConfig, Mask
from tests.tiny import Recorder, curve, make_trainer


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=16, **sizes))


def sentences() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(0, 32, (48, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in ids]


def half(trainer) -> Mask:
    g = torch.Generator().manual_seed(1)
    return Mask({name: torch.rand(kept.shape, generator=g) < 0.5 for name, kept in trainer.mask.items()})


def trained(folder, model=None, **settings):
    """A training under a random half mask; asserts that after every step all pruned weights were zero."""
    recorder = Recorder()
    settings = {"max_steps": 6, "lottery_config": LotteryConfig(), **settings}
    trainer = make_trainer(folder, model or llama(), train=sentences(), callbacks=[recorder], **settings)
    trainer.train()  # dense, so that there are moments to forget
    trainer.mask = mask = half(trainer)
    trainer.rewind()
    recorder.weights.clear()
    trainer.train()
    assert len(recorder.weights) == 6
    for recorded in recorder.weights:
        assert not any(recorded[name][~kept.to(recorded[name].device)].any() for name, kept in mask.items())
        assert all(recorded[name][kept.to(recorded[name].device)].all() for name, kept in mask.items())
    return trainer


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain = trained(tmp_path / "plain")
    recomputed = trained(tmp_path / "recomputed", activation_checkpointing=True)
    assert recomputed.model.is_gradient_checkpointing
    assert curve(recomputed) == curve(plain)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs hf_lottery[quantization]")
def test_8_bit_adamw(tmp_path):
    """Its moments are codes with a scale for each block of weights; tensors of 4096 weights and more have them."""
    trainer = trained(tmp_path, optim="adamw_8bit", weight_decay=0.1)
    state = trainer.optimizer.optimizer.state
    assert any(entry["state1"].dtype == torch.uint8 for entry in state.values())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp16_with_its_gradient_scaler(tmp_path):
    trained(tmp_path, fp16=True, use_cpu=False)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_over_two_devices(tmp_path):
    llama().save_pretrained(tmp_path / "saved")
    mapped = LlamaForCausalLM.from_pretrained(tmp_path / "saved", device_map="balanced", dtype="float32")
    trained(tmp_path / "mapped", mapped, use_cpu=False)
