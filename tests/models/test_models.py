"""The networks: as large as the papers say, initialised as they say, and loadable by the Auto classes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_lottery.models import (
    CifarResNetConfig,
    ConvNetConfig,
    LeNetConfig,
    SmallTransformerConfig,
    VggConfig,
)

CONV_2, CONV_4, CONV_6 = [[64, 64]], [[64, 64], [128, 128]], [[64, 64], [128, 128], [256, 256]]

# the table of Frankle & Carbin 2019 (arXiv 1803.03635 v5), Figure 2, counted without biases: all weights, and the
# 3 × 3 convolutions'
SIZES = [
    (LeNetConfig(), 266_200, 0),
    (ConvNetConfig(blocks=CONV_2), 4_300_992, 38_592),
    (ConvNetConfig(blocks=CONV_4), 2_425_024, 259_776),
    (ConvNetConfig(blocks=CONV_6), 2_261_184, 1_144_512),
    (CifarResNetConfig(depth=20), 270_896, 267_696),
    (VggConfig(depth=19), 20_024_000, 20_018_880),
]
# the same networks, small enough to train a step of each
SMALL = [
    LeNetConfig(hidden_sizes=[12, 8], image_size=8),
    ConvNetConfig(blocks=[[4, 4], [6]], hidden_sizes=[8], image_size=8),
    CifarResNetConfig(depth=8, hidden_sizes=[4, 6, 8], image_size=8),
    VggConfig(depth=11, image_size=16),
]


def name(value):
    return value.model_type if hasattr(value, "model_type") else None


@pytest.mark.parametrize(("config", "weights", "convolutions"), SIZES, ids=name)
def test_networks_have_exactly_the_papers_weights(config, weights, convolutions):
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    counts = {
        kind: sum(m.weight.numel() for m in model.modules() if isinstance(m, kind)) for kind in (nn.Linear, nn.Conv2d)
    }
    assert counts[nn.Linear] + counts[nn.Conv2d] == weights
    square = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert sum(m.weight.numel() for m in square) == convolutions


def test_resnet_20_has_2560_weights_in_its_shortcuts_and_640_in_its_classifier():
    model = AutoModelForImageClassification.from_config(CifarResNetConfig(depth=20))
    shortcuts = [m for name, m in model.named_modules() if "shortcut" in name and isinstance(m, nn.Conv2d)]
    assert sum(m.weight.numel() for m in shortcuts) == 2_560
    assert model.classifier.weight.numel() == 640


@pytest.mark.parametrize("config", [LeNetConfig(), ConvNetConfig(blocks=CONV_4), CifarResNetConfig()], ids=name)
def test_weights_start_as_gaussian_glorot_and_biases_at_zero(config):
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(config)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            w = module.weight.detach()
            field = w[0, 0].numel() if w.ndim == 4 else 1
            std = math.sqrt(2 / (field * (w.shape[0] + w.shape[1])))
            # the sample std of n Gaussian values lies within 4 standard errors, std/√(2n), of the true one
            assert abs(float(w.std()) - std) < 4 * std / math.sqrt(2 * w.numel())
            # a Gaussian has 31.7% of its values beyond one std; a uniform distribution 42.3%
            if w.numel() > 5000:
                assert abs(float((w.abs() > std).float().mean()) - 0.317) < 0.03
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("config", SMALL, ids=name)
def test_image_networks_give_logits_the_mean_cross_entropy_and_gradients_everywhere(config):
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(config).eval()
    images = torch.randn(5, config.num_channels, config.image_size, config.image_size)
    labels = torch.tensor([0, 1, 9, 3, 3])
    output = model(pixel_values=images, labels=labels)
    assert output.logits.shape == (5, 10)
    expected = -output.logits.log_softmax(-1)[torch.arange(5), labels].mean()
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert model(images).loss is None
    assert torch.equal(model(images, return_dict=False)[0], output.logits)


def test_lenet_is_the_plain_network_of_linear_layers_and_relu():
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(LeNetConfig())
    first, second = model.hidden
    plain = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), model.classifier)
    images = torch.randn(3, 1, 28, 28)
    assert torch.equal(model(images).logits, plain(images))


@pytest.mark.parametrize("config", SMALL, ids=name)
def test_image_networks_say_which_images_they_were_built_for(config):
    model = AutoModelForImageClassification.from_config(config)
    with pytest.raises(ValueError, match=r"images of shape \(3, 9, 9\) are given to a .* built for"):
        model(torch.zeros(1, 3, 9, 9))


@pytest.mark.parametrize("config", [*SMALL, SmallTransformerConfig(vocab_size=20, num_labels=3)], ids=name)
def test_networks_are_saved_and_loaded_by_the_auto_classes(config, tmp_path):
    text = config.model_type == "small-transformer"
    auto = AutoModelForSequenceClassification if text else AutoModelForImageClassification
    torch.manual_seed(0)
    model = auto.from_config(config)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(config)
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("config", "kwargs", "message"),
    [
        (CifarResNetConfig, {"depth": 18}, r"depth is 18; it must be 6n \+ 2"),
        (VggConfig, {"depth": 12}, "depth is 12; it must be one of 11, 13, 16, 19"),
        (SmallTransformerConfig, {"hidden_size": 10, "num_attention_heads": 4}, "the heads must divide it"),
    ],
)
def test_impossible_shapes_are_refused(config, kwargs, message):
    with pytest.raises(ValueError, match=message):
        config(**kwargs)


def small_transformer(**kwargs):
    torch.manual_seed(0)
    config = SmallTransformerConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_attention_heads=4, num_hidden_layers=2, **kwargs
    )
    return AutoModelForSequenceClassification.from_config(config)


def test_a_padded_text_gets_the_same_logits_as_alone():
    model = small_transformer(dropout=0.0)
    text = torch.randint(1, 50, (1, 7))
    padded = F.pad(text, (0, 5), value=0)
    batch = torch.cat([padded, torch.randint(1, 50, (1, 12))])
    mask = torch.tensor([[1] * 7 + [0] * 5, [1] * 12])

    alone = model(text)
    together = model(batch, attention_mask=mask)
    torch.testing.assert_close(together.logits[:1], alone.logits)
    together.logits.sum().backward()
    assert not model.embeddings.weight.grad[0].any()  # token 0 stands in the padding alone
    # and what fills the gap does not matter at all
    refilled = batch.clone()
    refilled[0, 7:] = 13
    assert torch.equal(model(refilled, attention_mask=mask).logits, together.logits)


def test_its_layers_compute_what_torchs_own_encoder_layer_does():
    model = small_transformer(dropout=0.0).train()  # in train mode torch takes no fused shortcut
    x, mask = torch.randn(3, 6, 16), torch.arange(6) < torch.tensor([[6], [4], [1]])
    for layer in model.layers:
        oracle = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
        attention = layer.attention
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        with torch.no_grad():
            oracle.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
            oracle.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
        for ours, theirs in [
            (attention.out_proj, oracle.self_attn.out_proj),
            (layer.attention_norm, oracle.norm1),
            (layer.up_proj, oracle.linear1),
            (layer.down_proj, oracle.linear2),
            (layer.output_norm, oracle.norm2),
        ]:
            theirs.load_state_dict(ours.state_dict())
        expected = oracle(x, src_key_padding_mask=~mask)
        torch.testing.assert_close(layer(x, mask[:, None, None, :])[mask], expected[mask])


def test_dropout_is_drawn_in_training_only():
    model = small_transformer(dropout=0.5)
    tokens = torch.randint(0, 50, (2, 9))
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    model.eval()
    assert torch.equal(model(tokens).logits, model(tokens).logits)
