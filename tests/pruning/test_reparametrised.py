"""Weights that their module computes from other tensors: refused with the call that helps, left out, or right."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from hf_lottery import LotteryConfig
from hf_lottery.pruning.coverage import REPARAMETRISED, coverage
from hf_lottery.pruning.targets import prunable
from tests.tiny import make_trainer, seeded_net


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


def _raw(layer: nn.Linear) -> None:
    """As fastai's WeightDropout does: a parameter under another name, and a plain tensor that a hook would compute."""
    weight = layer._parameters.pop("weight")
    layer.register_parameter("weight_raw", weight)
    layer.weight = weight.detach()


REFUSED = {
    "weight_norm": (weight_norm, r"torch.nn.utils.remove_weight_norm\(model.get_submodule\('0'\), 'weight'\)"),
    "weight_norm by parametrization": (
        parametrizations.weight_norm,
        r"parametrize.remove_parametrizations\(model.get_submodule\('0'\), 'weight'\)",
    ),
    "orthogonal": (parametrizations.orthogonal, "remove_parametrizations"),
    "custom": (
        lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric()),
        "remove_parametrizations",
    ),
    "prune": (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        r"torch.nn.utils.prune.remove\(model.get_submodule\('0'\), 'weight'\)",
    ),
    "structured prune": (lambda layer: prune.ln_structured(layer, "weight", 0.5, n=2, dim=0), "prune.remove"),
    "spectral_norm and prune": (
        lambda layer: prune.l1_unstructured(spectral_norm(layer), "weight_orig", 0.5),
        r"prune.remove\(.*'weight_orig'\)",
    ),
    "unknown": (_raw, "make it a plain parameter"),
}


@pytest.mark.parametrize(("make", "advice"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_what_to_do_unless_the_mask_is_not_over_it(make, advice):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    make(model[0])
    with pytest.raises(ValueError, match=advice) as error:
        prunable(model)
    assert "\n" not in str(error.value) and "exclude_modules" in str(error.value)
    assert list(prunable(model, exclude_modules=["0"])) == list(prunable(model, target_modules=["1"])) == ["1.weight"]


def test_a_recurrent_layers_weight_norm_and_the_model_itself():
    lstm = weight_norm(nn.LSTM(4, 8), "weight_hh_l0")
    with pytest.raises(ValueError, match=r"'weight_hh_l0' .*remove_weight_norm\(model, 'weight_hh_l0'\)"):
        prunable(lstm)


@pytest.mark.parametrize("make", [spectral_norm, parametrizations.spectral_norm])
def test_under_spectral_norm_pruned_weights_are_zero_where_the_layer_computes(tmp_path, make):
    model = seeded_net()
    make(model.first)
    trainer = make_trainer(tmp_path, model, lottery_config=LotteryConfig(pruning_rate=0.5), max_steps=4)
    trainer.train()
    mask = trainer.prune()
    trainer.rewind()
    trainer.train()
    (name,) = (name for name in mask if name.startswith("first"))
    model.eval()
    model(**{"x": torch.ones(1, 12)})
    assert torch.equal(model.first.weight != 0, mask[name])
    norm = torch.linalg.matrix_norm(model.first.weight.detach(), 2)
    assert 0.9 < norm < 1.5  # one power iteration a step is near the largest singular value


def wav2vec2() -> Wav2Vec2ForCTC:
    torch.manual_seed(0)
    return Wav2Vec2ForCTC(
        Wav2Vec2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
            conv_stride=(2, 2), conv_kernel=(3, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2, vocab_size=8,
        )
    )  # fmt: skip


def test_what_the_models_own_class_reparametrises_is_left_out_and_said():
    model = wav2vec2()
    names = prunable(model)
    assert len(names) == 10 and not any("pos_conv_embed" in name for name in names)
    (group,) = (group for group in coverage(model, names).left_out if group.why == REPARAMETRISED)
    assert (group.name, group.count) == ("wav2vec2.encoder.pos_conv_embed.conv.weight", 8 + 16 * 8 * 8)
    assert prunable(model, ["encoder"]).keys() < names.keys()


@pytest.mark.parametrize("target", [["pos_conv_embed"], ["conv"], ["pos_conv_embed.conv"], r".*pos_conv.*"])
def test_it_is_refused_when_it_is_asked_for(target):
    with pytest.raises(ValueError, match=r"pos_conv_embed.conv.weight' is computed by .*remove_parametrizations"):
        prunable(wav2vec2(), target)


def test_what_the_user_reparametrises_in_such_a_model_is_refused():
    model = wav2vec2()
    parametrizations.weight_norm(model.lm_head)
    with pytest.raises(ValueError, match="'lm_head.weight' is computed by weight_norm"):
        prunable(model)
