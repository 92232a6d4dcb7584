"""What a model or an optimizer can be wrapped in: each keeps pruned weights at zero and the losses as they are."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from transformers import LlamaConfig, LlamaForCausalLM

from hf_lottery import LotteryConfig, LotteryTrainer, Mask
from hf_lottery.training.unsupported import refuse_empty_shards
from tests.tiny import Recorder, curve, make_trainer


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=16, **sizes))


PARTS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
DEVICE_MAP = dict.fromkeys(PARTS, "cpu")


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


class ScalingOnCpu(LotteryTrainer):
    """What fp16=True makes of a trainer on a GPU; on a CPU accelerate leaves autocast and scaler away."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.native_amp = True
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)


NEEDS_CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])  # fused ones skip a step inside, unseen
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def test_fp16_with_its_gradient_scaler(tmp_path, device, optim):
    cls = ScalingOnCpu if device == "cpu" else LotteryTrainer
    trainer = trained(tmp_path, cls=cls, fp16=True, use_cpu=device == "cpu", optim=optim, weight_decay=0.1)
    scaler, first = trainer.accelerator.scaler, repr(curve(trainer))  # a nan norm equals itself as text
    if device == "cpu":
        assert scaler.get_scale() < 2.0**24  # the first step overflowed, was skipped, and counted as a step
    trainer.rewind()
    trainer.train()
    assert repr(curve(trainer)) == first  # the scale has started over too


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_over_two_devices(tmp_path):
    llama().save_pretrained(tmp_path / "saved")
    mapped = LlamaForCausalLM.from_pretrained(tmp_path / "saved", device_map="balanced", dtype="float32")
    trained(tmp_path / "mapped", mapped, use_cpu=False)


def test_a_device_map_changes_nothing(tmp_path):
    """On a CPU `device_map="auto"` leaves a plain model; this one has the hooks of a model on many devices."""
    mapped = dispatch_model(llama(), DEVICE_MAP, main_device="cpu", force_hooks=True)
    assert mapped.hf_device_map and mapped.model.layers[1]._hf_hook
    assert curve(trained(tmp_path / "mapped", mapped)) == curve(trained(tmp_path / "plain"))


@pytest.mark.parametrize("how", ["a layer", "all"])
def test_offloaded_weights_are_refused(tmp_path, how):
    """Their hooks fetch them anew for every forward, so that neither a mask nor an optimizer reaches them."""
    if how == "all":
        model = cpu_offload(llama(), torch.device("cpu"))
    else:
        device_map = {**DEVICE_MAP, "model.layers.1": "disk"}
        model = dispatch_model(llama(), device_map, main_device="cpu", offload_dir=tmp_path / "offloaded")
    with pytest.raises(ValueError, match="device_map has offloaded 'model.*weight'.*keep all on devices"):
        make_trainer(tmp_path, model, train=sentences(), lottery_config=LotteryConfig())


def test_fsdp_that_accelerate_leaves_away_is_refused(tmp_path, monkeypatch):
    """On a CPU, or with one process, its FSDP configs run without FSDP and say nothing."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match="FSDP was asked for.*launch with ddp"):
        make_trainer(tmp_path, lottery_config=LotteryConfig())


def test_shards_that_would_be_empty_are_refused():
    """Of nine rows four processes have 3, 3, 3 and 0."""
    refuse_empty_shards(dict(torch.nn.Linear(4, 10).named_parameters()), 4)
    refuse_empty_shards(dict(torch.nn.Linear(4, 9, bias=False).named_parameters()), 4)
    with pytest.raises(ValueError, match="'bias' has 9 rows.*one of 4 processes.*fewer processes, or with ddp"):
        refuse_empty_shards(dict(torch.nn.Linear(4, 9).named_parameters()), 4)
