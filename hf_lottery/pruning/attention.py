"""Finding attention heads: which weights of a model's attention layers hold which head.

The number of heads is a layer's own, not the config's: an encoder and its decoder may differ. A layer whose heads are
not known for certain is refused by `require_known`, and none is guessed from shapes alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_lottery.pruning.axes import axes_of
from hf_lottery.pruning.heads import Heads
from hf_lottery.pruning.places import Place

# how transformers' models name their query, key, value and output projections, where these are layers of their own:
# each holds its heads one after the other
_SEPARATE = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q_proj", "k_proj", "v_proj", "dense"),
    ("q_proj", "k_proj", "v_proj", "proj"),
    ("q_proj", "k_proj", "v_proj", "projection_layer"),
    ("q_proj", "k_proj", "v_proj", "Wo"),
    ("q", "k", "v", "o"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
    ("query", "key", "value", "dense"),
    ("query", "key", "value", "output"),
    ("query", "key", "value", "out_proj"),
    ("query", "key", "value", "proj"),
    ("query_proj", "key_proj", "value_proj", "out_proj"),
    ("linear_q", "linear_k", "linear_v", "linear_out"),
    ("self.query", "self.key", "self.value", "output.dense"),
    ("self.query_proj", "self.key_proj", "self.value_proj", "output.dense"),
    ("attention.query", "attention.key", "attention.value", "output.dense"),
    ("att.query", "att.key", "att.value", "output.dense"),
)
# norms of queries, keys, values, or of what goes into the output projection
_NORM = re.compile(r"(q|k|v|query|key|value|qk|attn_sub|inner_attn)_?(layer_?)?(norm|ln)")
# how their attention modules name the size and the number of heads
_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
_NUMBERS = ("num_heads", "num_attention_heads", "n_heads", "n_head")

_IN_PARTS = "in parts"  # all queries, then all keys, then all values
_BY_HEAD = "by head"  # the query, key and value of one head, then those of the next; with grouped queries, by group

# classes of transformers that have queries, keys and values in one weight: its name, the output projection, the order
_FUSED = {
    "gpt2.modeling_gpt2.GPT2Attention": ("c_attn", "c_proj", _IN_PARTS),
    "decision_transformer.modeling_decision_transformer.DecisionTransformerGPT2Attention": (
        "c_attn",
        "c_proj",
        _IN_PARTS,
    ),
    "imagegpt.modeling_imagegpt.ImageGPTAttention": ("c_attn", "c_proj", _IN_PARTS),
    "openai.modeling_openai.Attention": ("c_attn", "c_proj", _IN_PARTS),
    "phi3.modeling_phi3.Phi3Attention": ("qkv_proj", "o_proj", _IN_PARTS),
    "mpt.modeling_mpt.MptAttention": ("Wqkv", "out_proj", _IN_PARTS),
    "dbrx.modeling_dbrx.DbrxAttention": ("Wqkv", "out_proj", _IN_PARTS),
    "modernbert.modeling_modernbert.ModernBertAttention": ("Wqkv", "Wo", _IN_PARTS),
    "bark.modeling_bark.BarkSelfAttention": ("att_proj", "out_proj", _IN_PARTS),
    "blip.modeling_blip.BlipAttention": ("qkv", "projection", _IN_PARTS),
    "blip_2.modeling_blip_2.Blip2Attention": ("qkv", "projection", _IN_PARTS),
    "sam.modeling_sam.SamVisionAttention": ("qkv", "proj", _IN_PARTS),
    "sam.modeling_sam.SamVisionSdpaAttention": ("qkv", "proj", _IN_PARTS),
    "deberta.modeling_deberta.DebertaAttention": ("self.in_proj", "output.dense", _BY_HEAD),
    "gpt_neox.modeling_gpt_neox.GPTNeoXAttention": ("query_key_value", "dense", _BY_HEAD),
    "gpt_neox_japanese.modeling_gpt_neox_japanese.GPTNeoXJapaneseAttention": ("query_key_value", "dense", _BY_HEAD),
    "bloom.modeling_bloom.BloomAttention": ("query_key_value", "dense", _BY_HEAD),
    "persimmon.modeling_persimmon.PersimmonAttention": ("query_key_value", "dense", _BY_HEAD),
    "falcon.modeling_falcon.FalconAttention": ("query_key_value", "dense", _BY_HEAD),
    "gpt_bigcode.modeling_gpt_bigcode.GPTBigCodeAttention": ("c_attn", "c_proj", _BY_HEAD),
}


def attention_heads(model: nn.Module) -> dict[str, Heads]:
    """The attention layers of a model whose heads are known.

    Query heads that share a key-value head are neighbours, in the outputs of the query projection and in the inputs of
    the output projection.

    Returns:
        name of the layer -> its heads.

    Raises:
        ValueError: there is none.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    result, taken = {}, set()
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        heads = _of_torch(start, module) or _fused(start, module, linear) or _separate(start, module, linear)
        if heads is not None and taken.isdisjoint(heads.names):
            result[prefix] = heads
            taken.update(heads.names)
    if not result:
        raise ValueError(_no_heads(model))
    return result


def require_known(model: nn.Module, heads: Mapping[str, Heads], names: Iterable[str]) -> None:
    """Raise a ValueError if the weights among `names` are of an attention layer that cannot be pruned by heads.

    That is one that `heads` does not have, or one in which a norm is over all heads together: without one of them, it
    changes the others.
    """
    names = set(names)
    for prefix, module in _attentions(model):
        inside = sorted(name for name in names if _within(name, prefix))
        if inside and not any(_within(prefix, layer) or _within(layer, prefix) for layer in heads):
            raise ValueError(
                f"pattern is head, and how the weights of '{prefix}', a {type(module).__name__}, divide into heads is "
                f"not known, such as '{inside[0]}': name it in exclude_modules, or use pattern neuron or weight"
            )
    for layer, those in heads.items():
        norm = None if names.isdisjoint(those.names) else _norm_over_heads(model.get_submodule(layer), those)
        if norm is not None:
            raise ValueError(
                f"pattern is head, and '{norm}' of '{layer}' is over all heads together, so that pruning one changes "
                "the others: name the layer in exclude_modules, or use pattern neuron or weight"
            )


def _norm_over_heads(attention: nn.Module, heads: Heads) -> str | None:
    """The norm between the projections of an attention that is over more than one head; None if there is none."""
    *_, output = heads.places.values()
    size = sum(output.sections) // heads.count  # of a head; with grouped queries, of all that share a key
    for name, module in attention.named_modules():
        if _NORM.fullmatch(name.rpartition(".")[2]):
            weights = list(module.parameters(recurse=False))
            if weights and weights[0].dim() == 1 and len(weights[0]) > size:
                return name
    return None


def _attentions(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if "Attention" in type(module).__name__]


def _within(path: str, module: str) -> bool:
    """Whether `path` is the module or something in it."""
    return not module or path == module or path.startswith(f"{module}.")


def _no_heads(model: nn.Module) -> str:
    attentions = _attentions(model)
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        return "pattern is head, and an adapter's weights do not divide into heads; use pattern rank or weight"
    if not attentions:
        return f"pattern is head, and a {type(model).__name__} has no attention heads; use pattern neuron"
    prefix, module = attentions[0]
    return (
        f"pattern is head, and how the weights of '{prefix}', a {type(module).__name__}, divide into heads is not "
        "known; use pattern neuron or weight"
    )


def _of_torch(start: str, module: nn.Module) -> Heads | None:
    if not isinstance(module, nn.MultiheadAttention):
        return None
    width, names = module.embed_dim, ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    if module.in_proj_weight is not None:
        places = {f"{start}in_proj_weight": Place(0, (width,) * 3)}
    else:
        places = {start + name: Place(0, (width,)) for name in names}
    return Heads({**places, f"{start}out_proj.weight": Place(1, (width,))}, module.num_heads)


def _separate(start: str, module: nn.Module, linear: Mapping[str, nn.Module]) -> Heads | None:
    """The heads of a module with four projections of its own; None if one is missing, or their sizes do not agree."""
    names = next((names for names in _SEPARATE if all(start + name in linear for name in names)), None)
    if names is None:
        return None
    query, key, value, output = (linear[start + name] for name in names)
    owner = module.get_submodule(names[0].rpartition(".")[0])
    size = _size_of_heads(owner, _outputs(query))
    if not size or _outputs(key) % size:
        return None
    count = _outputs(key) // size  # of key-value heads
    if _outputs(value) % count or _inputs(output) % (_outputs(value) // count):
        return None
    queries = _inputs(output) // (_outputs(value) // count)  # of each, the output takes as many inputs as a value has
    if queries % count or _outputs(query) % queries or _own(owner, _NUMBERS) not in (None, queries):
        return None
    if count == 1 < queries:  # key and value are of all heads
        names, count = (names[0], names[3]), queries
    *inner, last = names
    places = {f"{start}{name}.weight": _in_outputs(linear[start + name]) for name in inner}
    return Heads({**places, f"{start}{last}.weight": _in_inputs(output)}, count)


def _fused(start: str, module: nn.Module, linear: Mapping[str, nn.Module]) -> Heads | None:
    """The heads of a class of `_FUSED`; None for others, and if the sizes do not agree."""
    path = f"{type(module).__module__}.{type(module).__qualname__}".removeprefix("transformers.models.")
    if path not in _FUSED:
        return None
    fused_name, output_name, order = _FUSED[path]
    fused, output = linear.get(start + fused_name), linear.get(start + output_name)
    apart = linear.get(f"{start}q_attn")  # queries of GPT-2's cross-attention
    if fused is None or output is None or (apart is not None and order == _BY_HEAD):
        return None
    width, owner = _inputs(output), module.get_submodule(fused_name.rpartition(".")[0])
    size = _size_of_heads(owner, width)
    others = _outputs(fused) - (0 if apart is not None else width)  # keys and values
    if not size or width % size or not others or others % (2 * size) or width // size % (others // (2 * size)):
        return None
    count, dim = others // (2 * size), _output_dim(fused)
    if count == 1 < width // size and apart is None:  # key and value, which come last in both orders, are of all heads
        place, count = Place(dim, (width,), shared=others), width // size
    elif order == _BY_HEAD:
        place = Place(dim, (width + others,))
    else:
        place = Place(dim, (() if apart is not None else (width,)) + (others // 2, others // 2))
    places = {} if apart is None else {f"{start}q_attn.weight": _in_outputs(apart)}
    places[f"{start}{fused_name}.weight"] = place
    return Heads({**places, f"{start}{output_name}.weight": _in_inputs(output)}, count)


def _in_outputs(layer: nn.Module) -> Place:
    return Place(_output_dim(layer), (_outputs(layer),))


def _in_inputs(layer: nn.Module) -> Place:
    return Place(1 - _output_dim(layer), (_inputs(layer),))


def _output_dim(layer: nn.Module) -> int:
    return axes_of(layer, "weight").output


def _outputs(layer: nn.Module) -> int:
    return layer.weight.shape[_output_dim(layer)]


def _inputs(layer: nn.Module) -> int:
    return layer.weight.shape[1 - _output_dim(layer)]


def _own(module: nn.Module, attributes: tuple[str, ...]) -> int | None:
    """The first of the attributes that the module has; None if it has none of them."""
    return next((vars(module)[name] for name in attributes if name in vars(module)), None)


def _size_of_heads(module: nn.Module, width: int) -> int | None:
    """The size of a head, as the attention module says it, or `width` over its number of heads; None if unknown."""
    size, number = _own(module, _SIZES), _own(module, _NUMBERS)
    if size is None and number and width % number == 0:
        size = width // number
    return size
