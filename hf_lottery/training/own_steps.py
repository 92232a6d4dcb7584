"""Adam's bias correction for weights that come in during training: each by the number of its own steps.

Adam's moments are averages that start at zero, and are divided by 1 − β^t, with t the steps so far. A weight that was
regrown at step s has had t − s steps, but torch counts t for the whole tensor: divided by 1 − β^t instead, its first
step would be up to (1 − β₁) / √(1 − β₂) = 3.2 learning rates large and the tenth up to 6.5, where a new Adam moves it
by at most one. Here every such weight moves as in a new Adam.

Source: Ansell et al. 2024 (arXiv 2401.16405), sparse fine-tuning that drops and regrows weights: the AdamW of its code
corrects the bias of each weight by its own age. Kingma & Ba 2015 (arXiv 1412.6980), section 2.1, has the bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_lottery.files import write_tensors
from hf_lottery.mask import Mask
from hf_lottery.sealed import readable

FIRST_STEPS_FILE = "regrown.safetensors"  # in a checkpoint: name -> after which step of the optimizer a weight came in


class OwnSteps:
    """Corrects, after each step of an Adam or AdamW, the weights that came in late.

    Args:
        parameters: name -> whole live parameter, for the names of the masks.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self._parameters = parameters
        self._since: dict[str, Tensor] = {}  # name -> steps that the optimizer had made; 0: kept from the start
        self._late: dict[nn.Parameter, tuple[tuple[Tensor, ...], Tensor]] = {}  # their places, and `_since` there
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Correct every step of `optimizer`, an Adam or AdamW, until `detach`."""
        self.detach()
        self._handle = optimizer.register_step_post_hook(lambda optimizer, *_: self._correct(optimizer))

    def detach(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def change(self, optimizer: torch.optim.Optimizer, before: Mask, after: Mask) -> None:
        """The mask has changed: the weights that only `after` keeps, whose moments are zero, start to count now."""
        for name, kept in after.items():
            parameter = self._parameters[name]
            kept = kept.to(parameter.device)
            since = self._since.get(name)
            if since is None:
                since = torch.zeros(parameter.shape, dtype=torch.int32, device=parameter.device)
            made = int(optimizer.state.get(parameter, {}).get("step", 0))
            self._set(name, torch.where(before[name].to(kept.device), since, made) * kept)

    def save(self, folder: Path) -> None:
        """Write what a checkpoint needs of it."""
        tensors = {name: since.cpu() for name, since in self._since.items()}
        if tensors:
            write_tensors(folder / FIRST_STEPS_FILE, tensors, {"format": "pt"})

    def load(self, folder: Path) -> None:
        """Read what `save` wrote into a checkpoint.

        Raises:
            DamagedFile: it is not such a file, or not all of it.
        """
        path = folder / FIRST_STEPS_FILE
        if path.is_file():  # no weight had come in otherwise
            with readable(path):
                for name, since in load_file(path).items():
                    self._set(name, since.to(self._parameters[name].device))

    def _set(self, name: str, since: Tensor) -> None:
        places = since.nonzero(as_tuple=True)
        self._since[name], self._late[self._parameters[name]] = since, (places, since[places])

    @torch.no_grad()
    def _correct(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter not in self._late or parameter.grad is None:
                    continue  # without a gradient the optimizer has made no step
                places, since = self._late[parameter]
                state = optimizer.state[parameter]
                moments = [state["exp_avg"], state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]]
                first, second = (moment[places].double() for moment in moments)
                steps = state["step"].to(parameter.device)
                moved = _direction(first, second, steps.double(), group)
                right = _direction(first, second, (steps - since).double(), group)
                parameter.data[places] += ((moved - right) * group["lr"]).to(parameter.dtype)


def _direction(first: Tensor, second: Tensor, steps: Tensor, group: dict) -> Tensor:
    """Adam's step at learning rate 1, as a function of the two moments and of how many steps they have."""
    beta1, beta2 = group["betas"]
    corrected = first / (1 - beta1**steps) / ((second / (1 - beta2**steps)).sqrt() + group["eps"])
    return -corrected if group["maximize"] else corrected
