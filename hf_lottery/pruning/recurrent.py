"""Recurrent layers: which rows of an RNN's, LSTM's or GRU's weights are one neuron.

Neuron i is the unit that computes entry i of the state: row i of every gate, from the input (weight_ih) and from the
state (weight_hh). Without them its state depends on its biases alone. (With proj_size, the rows of weight_hr are
neurons of a linear layer.)
"""

from __future__ import annotations

from torch import Tensor, nn

from hf_lottery.mask import Mask
from hf_lottery.pruning.places import Groups, Place

CELLS = (nn.RNNBase, nn.RNNCellBase)


class RecurrentLayer(Groups):
    """The neurons of one direction of one recurrent layer."""

    what = "a recurrent layer"

    def living(self, alive: Mask) -> Tensor:
        """(neurons,): which neurons have any kept weight."""
        return self.living_parts(alive).any(0)


def recurrent_layers(model: nn.Module) -> dict[str, RecurrentLayer]:
    """The recurrent layers of a model, one for each direction.

    Returns:
        name of the weight of the inputs -> the layer.
    """
    result = {}
    for prefix, module in model.named_modules():
        if not isinstance(module, CELLS):
            continue
        start = f"{prefix}." if prefix else ""
        for leaf, weight in module.named_parameters(recurse=False):
            if leaf.startswith("weight_ih"):
                names = (start + leaf, start + leaf.replace("weight_ih", "weight_hh"))
                gates = weight.shape[0] // module.hidden_size
                place = Place(0, (module.hidden_size,) * gates)
                result[names[0]] = RecurrentLayer(dict.fromkeys(names, place), module.hidden_size)
    return result
