"""SmallTransformer: the Transformer encoder that classifies IMDb reviews, as a transformers model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_lottery.models.common import classify, init_glorot, require_sizes, with_labels


class SmallTransformerConfig(PretrainedConfig):
    """The shape of a SmallTransformer.

    Args:
        vocab_size: number of tokens of the tokenizer.
        hidden_size: d, the width of embeddings and layers.
        num_hidden_layers: number of encoder layers.
        num_attention_heads: heads of each layer; their number must divide hidden_size.
        intermediate_size: width of the feed-forward layers.
        dropout: share of activations that are dropped in training.
        num_labels: number of classes.

    Raises:
        ValueError: a size is not a whole number above 0, dropout is no share, or num_attention_heads does not divide
            hidden_size.
    """

    model_type = "small-transformer"

    def __init__(
        self,
        vocab_size=30522,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=128,
        dropout=0.1,
        num_labels=2,
        **kwargs,
    ):
        require_sizes(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
            num_labels=num_labels,
        )
        if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout!r}; it must be 0 or more and below 1")
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size is {hidden_size} and num_attention_heads {num_attention_heads}; the heads must divide it"
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.dropout = dropout
        super().__init__(**with_labels(kwargs, num_labels))


class Attention(nn.Module):
    """Multi-head self-attention. Queries, keys and values have a linear layer each, so that each can be pruned."""

    def __init__(self, config: SmallTransformerConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.dropout
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(config.hidden_size, config.hidden_size))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x float [batch, length, d], mask bool [batch, 1, 1, length], True where there is a token."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(y.transpose(1, 2).flatten(-2))


class EncoderLayer(nn.Module):
    """Attention, then a feed-forward network, each with dropout, residual and layer norm: nn.TransformerEncoderLayer.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), §3.1.
    """

    def __init__(self, config: SmallTransformerConfig):
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        y = self.down_proj(self.dropout(F.relu(self.up_proj(x))))
        return self.output_norm(x + self.dropout(y))


class SmallTransformerForSequenceClassification(PreTrainedModel):
    """Embedding × √d, encoder layers, the mean over a text's tokens, a linear layer. Padding has no effect.

    There are no position embeddings: the order of the tokens does not matter. Gaussian Glorot weights and zero biases;
    embeddings with std d^−½, so that times √d their std is 1.
    """

    config_class = SmallTransformerConfig
    accepts_loss_kwargs = False  # the loss is the batch's mean; gradient accumulation is a plain mean of those

    def __init__(self, config: SmallTransformerConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        else:
            init_glorot(module)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Classify a batch of texts.

        Args:
            input_ids: int64 [batch, length], tokens.
            attention_mask: [batch, length], 1 for tokens and 0 for padding. None: there is no padding.
            labels: int64 [batch], the classes; with them the output holds the mean cross entropy as `loss`.
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        x = self.embeddings(input_ids) * math.sqrt(self.config.hidden_size)
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        kept = mask.unsqueeze(-1).to(x.dtype)
        mean = (x * kept).sum(1) / kept.sum(1).clamp(min=1)
        return classify(self.classifier(self.dropout(mean)), labels, return_dict, SequenceClassifierOutput)
