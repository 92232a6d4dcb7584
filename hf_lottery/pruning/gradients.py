"""SNIP and GraSP: scores from gradients of the loss, before training. Their arguments, under the same names:

    weights    name -> parameter, those that are scored.
    loss       batch -> the batch's mean loss, a scalar that backward can start from.
    batches    what `loss` is called with, one after another: those of this process.
    count      batch -> how many labels its loss is the mean of.

With several processes, which call these functions together, gradients are added up over all of them: the scores are
those of all examples, however these are divided into batches and over processes, up to the order in which floats are
added. A network that normalises over its batch needs the same batches as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_lottery.distributed.processes import gathered, sum_over_ranks
from hf_lottery.pruning.labels import predicts_next_token

Loss = Callable[[Any], Tensor]
Count = Callable[[Any], int]


def snip(
    weights: Mapping[str, Tensor], loss: Loss, batches: Iterable[Any], count: Count = lambda _: 1
) -> dict[str, Tensor]:
    """|∂L/∂m| = |θ ⊙ ∂L/∂θ| at m = 1: how much the loss changes if a weight is removed.

    L is the mean over all labels of all batches, times the number of batches; its authors take about 10 examples of
    every class. A weight that the loss does not depend on scores 0.

    Raises:
        ValueError: there is no batch, or no label in any.

    Source: Lee, Ajanthan & Torr 2019 (arXiv 1810.02340), equation 5, but not normalised: the order is the same.
    """
    gradients = _gradients(weights, loss, _with_shares(batches, count))
    return {name: (weight.detach() * gradients[name]).abs() for name, weight in weights.items()}


def grasp(
    weights: Mapping[str, Tensor], loss: Loss, batches: Iterable[Any], count: Count = lambda _: 1
) -> dict[str, Tensor]:
    """θ ⊙ Hg, with the loss's gradient g and Hessian H: how much a weight adds to the flow of gradients.

    Args:
        loss: of logits that are divided by a temperature, as `tempered_loss` makes it.
        batches: g is that of all of them, H too.

    Raises:
        ValueError: there is no batch, or no label in any.

    Source: Wang, Zhang & Grosse 2020 (arXiv 2002.07376), Algorithm 2: weights with the largest −θ ⊙ Hg are pruned.
    """
    shares = _with_shares(batches, count)
    stopped = _gradients(weights, loss, shares)
    products = {name: _zeros(weight) for name, weight in weights.items()}
    parameters = list(weights.values())
    with sdpa_kernel(SDPBackend.MATH):  # the only attention kernel that can be differentiated twice
        for batch, share in shares:
            gradients = torch.autograd.grad(
                loss(batch), parameters, create_graph=True, allow_unused=True, materialize_grads=True
            )
            flow = sum((g * stopped[name]).sum() for name, g in zip(weights, gradients, strict=True))
            hessian_times_g = torch.autograd.grad(flow, parameters, allow_unused=True, materialize_grads=True)
            for total, h in zip(products.values(), hessian_times_g, strict=True):
                total.add_(h, alpha=share)
    sum_over_ranks(products.values())
    return {name: weight.detach() * products[name] for name, weight in weights.items()}


def tempered_loss(model: nn.Module, temperature: float = 200.0) -> Loss:
    """The mean cross entropy of logits / temperature, as `grasp` uses it; labels of −100 do not count.

    Args:
        model: takes a batch by keywords and returns `logits`.
        temperature: T of Wang, Zhang & Grosse 2020.
    """

    def loss(batch: Mapping[str, Tensor]) -> Tensor:
        logits, labels = model(**batch)["logits"].float() / temperature, batch["labels"]
        if predicts_next_token(model, labels):
            logits, labels = logits[:, :-1], labels[:, 1:]
        if labels.dim() == 2:  # one of each position, which cross_entropy takes as examples
            logits, labels = logits.flatten(0, 1), labels.flatten()
        return nn.functional.cross_entropy(logits, labels)

    return loss


def _gradients(weights: Mapping[str, Tensor], loss: Loss, shares: Iterable[tuple[Any, float]]) -> dict[str, Tensor]:
    """name -> ∂L/∂θ of the sum of share · loss over the batches of all processes; 0 where it does not depend on θ."""
    total = {name: _zeros(weight) for name, weight in weights.items()}
    for batch, share in shares:
        gradients = torch.autograd.grad(loss(batch), list(weights.values()), allow_unused=True, materialize_grads=True)
        for sum_so_far, gradient in zip(total.values(), gradients, strict=True):
            sum_so_far.add_(gradient, alpha=share)
    sum_over_ranks(total.values())
    return total


def _zeros(weight: Tensor) -> Tensor:
    """Zeros in which half-precision gradients can be added up."""
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32), requires_grad=False)


def _with_shares(batches: Iterable[Any], count: Count) -> list[tuple[Any, float]]:
    """(batch, its share of all labels × the number of batches): 1 where all batches have the same number of labels.

    The shares are of the labels of all processes; the number of batches is that of one process.
    """
    batches = list(batches)
    counts = [count(batch) for batch in batches]
    of_ranks = gathered(counts)
    most, total = max(map(len, of_ranks)), sum(map(sum, of_ranks))
    if most == 0:
        raise ValueError("this criterion scores weights by a loss, and there is no batch to compute it on")
    if total == 0:
        raise ValueError(
            "this criterion scores weights by a loss, and no label of its batches counts: all of them are −100. "
            "Raise the length at which texts are cut, or per_device_train_batch_size"
        )
    return [(batch, found * most / total) for batch, found in zip(batches, counts, strict=True) if found]
