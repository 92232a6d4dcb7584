"""Coverage: how much of what is trained the mask is over, and the largest groups of weights that it leaves out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_lottery.pruning.reparametrised import module_of, reparametrised
from hf_lottery.pruning.targets import Patterns, inside, usual_weights

MOST_GROUPS = 3  # that a sentence names
WHOLE = 0.95  # from this share on, a sentence says nothing of what is left out
# why a weight is left out
EXCLUDED, NOT_TARGETED = "in exclude_modules", "not in target_modules"
EMBEDDING, TIED, VECTOR = "embedding", "embedding, tied to an output layer", "norms, biases and other vectors"
EXPERTS, SAVED, REPARAMETRISED = "fused experts", "in modules_to_save", "reparametrised"
OTHER = "parameter of no known layer"
REASONS = (EXCLUDED, NOT_TARGETED, EMBEDDING, TIED, VECTOR, EXPERTS, SAVED, REPARAMETRISED, OTHER)


@dataclass(frozen=True)
class LeftOut:
    """Trained weights that the mask is not over.

    Args:
        name: of the module or parameter that holds them; of several layers' alike, with N in the place of the
            layer's number; empty for vectors.
        why: one of REASONS.
        count: how many weights.
    """

    name: str
    why: str
    count: int

    def __str__(self) -> str:
        return f"{self.count:,} of {self.why}" if not self.name else f"{self.count:,} in {self.name} ({self.why})"


@dataclass(frozen=True)
class Coverage:
    """What a mask is over, of what is trained.

    Args:
        prunable: how many weights the mask is over.
        trained: how many weights an optimizer steps, those among them.
        frozen: how many weights are not trained.
        left_out: the groups of trained weights that the mask is not over, the largest first.
    """

    prunable: int
    trained: int
    frozen: int
    left_out: tuple[LeftOut, ...]

    @property
    def share(self) -> float:
        return self.prunable / self.trained

    @property
    def is_whole(self) -> bool:
        """Whether next to nothing is left out."""
        return self.share >= WHOLE

    @property
    def is_usual(self) -> bool:
        """Whether next to nothing but norms and biases is left out."""
        vectors = sum(group.count for group in self.left_out if group.why == VECTOR)
        return self.prunable >= WHOLE * (self.trained - vectors)

    def __str__(self) -> str:
        """One sentence, without a full stop: the share, and if something is left out, the largest groups of it."""
        share = "100%" if self.prunable == self.trained else f"{100 * self.share:.3g}%"
        text = f"the mask is over {self.prunable:,} of {self.trained:,} trained weights ({share})"
        frozen = f"; {self.frozen:,} more are frozen" if self.frozen else ""
        if self.is_whole:
            return text + frozen
        groups = "; ".join(map(str, self.left_out[:MOST_GROUPS]))
        more = sum(group.count for group in self.left_out[MOST_GROUPS:])
        return f"{text}; left out are {groups}" + (f"; and {more:,} more" if more else "") + frozen

    def to_dict(self) -> dict[str, Any]:
        """JSON values, of the largest groups alone."""
        groups = [{"name": g.name, "why": g.why, "count": g.count} for g in self.left_out[: 2 * MOST_GROUPS]]
        return {"prunable": self.prunable, "trained": self.trained, "frozen": self.frozen, "left_out": groups}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Coverage:
        """The inverse of `to_dict`.

        Raises:
            ValueError: `values` are not what `to_dict` returns.
        """
        try:
            groups = tuple(LeftOut(str(g["name"]), str(g["why"]), int(g["count"])) for g in values["left_out"])
            prunable, trained, frozen = (int(values[key]) for key in ("prunable", "trained", "frozen"))
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no record of what a mask is over ({error})") from None
        return cls(prunable, max(trained, 1), frozen, groups)


def coverage(
    model: nn.Module,
    targets: Iterable[str],
    target_modules: Patterns = None,
    exclude_modules: Patterns = None,
) -> Coverage:
    """Count what a mask over `targets` covers.

    Args:
        model: whole, or on the meta device.
        targets: names of the parameters that the mask is over.
        target_modules, exclude_modules: as they were given to `prunable`.
    """
    targets = set(targets)
    reasons = _Reasons(model, target_modules, exclude_modules)
    counts: dict[tuple[str, str], int] = {}
    names: dict[tuple[str, str], set[str]] = {}
    prunable = trained = frozen = 0
    for name, parameter in model.named_parameters():
        if name in targets:
            prunable += parameter.numel()
        if not parameter.requires_grad:
            frozen += parameter.numel()
            continue
        trained += parameter.numel()
        if name not in targets:
            own, why = reasons.group(name, parameter)
            group = _numberless(own), why
            counts[group] = counts.get(group, 0) + parameter.numel()
            names.setdefault(group, set()).add(own)
    left_out = [
        LeftOut(min(names[group]) if len(names[group]) == 1 else group[0], group[1], count)
        for group, count in counts.items()
    ]
    left_out.sort(key=lambda group: (-group.count, group.name))
    return Coverage(prunable, trained, frozen, tuple(left_out))


class _Reasons:
    """Why the parameters of a model are left out."""

    def __init__(self, model: nn.Module, target_modules: Patterns, exclude_modules: Patterns):
        self._model, self._target_modules, self._exclude_modules = model, target_modules, exclude_modules
        self._usual, self._computed = usual_weights(model), reparametrised(model)
        self._tables = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
        self._tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} & self._tables

    def group(self, name: str, parameter: nn.Parameter) -> tuple[str, str]:
        """(name of the module or parameter, why)."""
        module, usual = name.rpartition(".")[0], name in self._usual
        if ".modules_to_save." in name:
            return module, SAVED
        if id(parameter) in self._tied:
            return module, TIED
        if id(parameter) in self._tables:
            return module, EMBEDDING
        if name in self._computed:
            return self._computed[name].name, REPARAMETRISED
        if self._exclude_modules is not None and usual and inside(name, self._exclude_modules):
            return module, EXCLUDED
        if usual:
            return module, NOT_TARGETED
        if parameter.dim() < 2 or max(parameter.shape) == parameter.numel():
            return "", VECTOR
        if "expert" in f"{name} {type(module_of(self._model, name)).__name__}".lower():
            return module, EXPERTS
        return name, OTHER


def _numberless(name: str) -> str:
    """A name without the numbers of layers: "h.3.attn" -> "h.N.attn"."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "N", name)
