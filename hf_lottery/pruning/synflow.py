"""SynFlow: scores that need no labels, computed and pruned in many small steps so that no layer loses all weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from hf_lottery.distributed.processes import gathered
from hf_lottery.mask import Mask
from hf_lottery.pruning.selection.select import prune


def synaptic_flow(
    model: nn.Module, inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor], alive: Mask
) -> dict[str, Tensor]:
    """|∂R/∂θ ⊙ θ| with all parameters replaced by their absolute values; R is the sum of the outputs.

    Args:
        model: in evaluation mode while this runs; its weights are not touched.
        inputs: keyword arguments of its forward, one example of ones: {"pixel_values": torch.ones(1, 3, 32, 32)}, or
            {"inputs_embeds": torch.ones(1, length, width)} where inputs are tokens.
        weights: name -> parameter of `model`, those that are scored.
        alive: the mask that the network is run under; pruned weights score 0.

    Returns:
        name -> float64: products over many layers leave float32's range.

    Source: Tanaka et al. 2020 (arXiv 2006.05467), equation 2.
    """
    state = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    state = {name: t.double().abs() if t.is_floating_point() else t for name, t in state.items()}
    scored = {name: (state[name] * alive[name].to(state[name].device)).requires_grad_() for name in weights}
    was_training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            doubles = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
            output = functional_call(model, {**state, **scored}, kwargs=doubles)
            flow = (output if isinstance(output, Tensor) else output["logits"]).sum()
        gradients = torch.autograd.grad(flow, list(scored.values()), allow_unused=True, materialize_grads=True)
    finally:
        model.train(was_training)
    return {name: (g * weight).abs().detach() for (name, weight), g in zip(scored.items(), gradients, strict=True)}


def synflow(
    weights: Mapping[str, Tensor],
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    alive: Mask,
    rate: float,
    rates: Mapping[str, float] | None = None,
    scope: str = "global",
    iterations: int = 100,
) -> dict[str, Tensor]:
    """Scores with which `prune(scores, alive, rate, rates, scope)` gives SynFlow's final mask.

    Prunes in `iterations` steps, each to the density (1 − rate)^(step / iterations), and computes the flow again under
    the mask after each. A weight that step s prunes scores s − iterations − 1, below every weight that is kept; those
    score the synaptic flow of the last step.

    Args:
        weights, model, inputs: as of `synaptic_flow`.
        alive, rate, rates, scope: of the pruning that these scores are for.
        iterations: 100 in the paper.

    Source: Tanaka et al. 2020 (arXiv 2006.05467), Algorithm 1, with its exponential schedule.
    """
    scores = {name: torch.zeros(w.shape, dtype=torch.float64, device=w.device) for name, w in weights.items()}
    mask = alive
    for step in range(1, iterations + 1):
        flow = synaptic_flow(model, inputs, weights, mask)
        for name, kept in mask.items():
            kept = kept.to(scores[name].device)
            scores[name] = torch.where(kept, flow[name], scores[name].clamp(max=-1))
        share = step / iterations
        so_far = rate if step == iterations else 1 - (1 - rate) ** share
        rates_so_far = {
            name: value if step == iterations else 1 - (1 - value) ** share for name, value in (rates or {}).items()
        }
        # always from the first mask, so that the last step prunes exactly as many as one pruning does
        after = prune(scores, alive, so_far, rates_so_far, scope)
        for name in mask:
            gone = (mask[name] & ~after[name]).to(scores[name].device)
            scores[name].masked_fill_(gone, step - iterations - 1)
        mask = after
    return scores


def one_example_of_ones(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SynFlow's input: ones, shaped as one example of `batch`; for tokens, ones in place of their embeddings.

    It is as long as the first example of the first process without its padding, so that every process scores alike.
    """
    length, inputs = None, {name: value for name, value in batch.items() if name != "labels"}
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        length = int((mask[0] != 0).sum()) or mask.shape[1]
    if "input_ids" in batch:
        tokens = batch["input_ids"]
        width = model.get_input_embeddings().weight.shape[1]
        shapes, device = {"inputs_embeds": (1, length or tokens.shape[1], width)}, tokens.device
    else:
        floats = {
            name: value for name, value in inputs.items() if torch.is_tensor(value) and value.is_floating_point()
        }
        shapes = {name: _one_example(value.shape, mask, length) for name, value in floats.items()}
        device = next(iter(floats.values())).device
    return {name: torch.ones(shape, device=device) for name, shape in gathered(shapes)[0].items()}


def _one_example(shape: torch.Size, mask: Tensor | None, length: int | None) -> tuple[int, ...]:
    """The shape of one example, `length` long if it has the mask's positions."""
    if length is not None and shape[:2] == mask.shape:
        return 1, length, *shape[2:]
    return 1, *shape[1:]


def require_inputs_embeds(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if `model` takes tokens and cannot take embeddings in their place."""
    if not isinstance(model, PreTrainedModel) or model.main_input_name != "input_ids":
        return
    forward = (model.get_base_model() if isinstance(model, PeftModel) else model).forward
    if "inputs_embeds" not in inspect.signature(forward).parameters:
        raise ValueError(
            f"criterion synflow gives a {type(model).__name__} ones in place of embeddings, and its forward takes "
            "no inputs_embeds: use another criterion"
        )
