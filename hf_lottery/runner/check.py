"""`hf-lottery check`: what a recipe would train, or why it cannot. No data are read, and nothing is allocated."""

from __future__ import annotations

from hf_lottery.printable import some_lines
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.recipe.summary import summary
from hf_lottery.runner.memory import require_memory


def check(recipe: Recipe) -> str:
    """The recipe's summary. Pretrained models are not looked at: they may have to be downloaded.

    Raises:
        ValueError: TrainingArguments refuses its section, or a model with random weights does not fit into memory.
        FileNotFoundError: `data.path` or `data.other_text.path` is not there.
    """
    said = some_lines(summary(recipe))
    if recipe.model.architecture is not None:
        require_memory(recipe)
    return said
