"""`hf-lottery check`: what a recipe would train, or why it cannot. No data are read, and nothing is allocated."""

from __future__ import annotations

from hf_lottery.printable import some_lines
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.recipe.summary import summary
from hf_lottery.runner.memory import network_size, require_fits
from hf_lottery.tasks.language_models import known_config


def check(recipe: Recipe) -> str:
    """The recipe's summary, and what its mask would be over where the model's config is on this machine.

    Weights are not read. A pretrained model whose config would have to be downloaded is not looked at.

    Raises:
        ValueError: TrainingArguments refuses its section, the section lottery does not fit the model, or a model with
            random weights does not fit into memory.
        FileNotFoundError: `data.path` or `data.other_text.path` is not there.
    """
    said = some_lines(summary(recipe))
    config = known_config(recipe.model)
    if config is None:
        return said
    size = network_size(recipe, config)
    if recipe.model.architecture is not None:
        require_fits(recipe, size)
    return f"{said}\n{'mask':<10} {str(size.coverage).removeprefix('the mask is ')}"
