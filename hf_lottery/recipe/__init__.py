"""A recipe file becomes a Recipe, or a RecipeError that lists every problem with its line. File by file:

1. recipe.py: `load_recipe(path_or_name, overrides)` does all of the following. `hf_lottery.bundled` finds the file.
2. yaml.py: reads the text: plain values, and the line number of each.
3. source.py: applies the overrides, and keeps where each value is written.
4. check.py: checks every section and collects the problems; a task's `Data` checks the section `data`.
5. sections.py: the sections of our own: `model`, `experiment` with its controls, `hub`.
6. settings.py: the sections that are arguments of another class: `training`, `lottery`, `peft`, `quantization`.
   ranges.py says which numbers and texts settings take, code.py which settings no recipe may have, and yaml_1_1.py
   puts back what a YAML 1.1 reader has changed.
7. errors.py: turns a problem into one sentence with its key, its value and what is allowed.
8. recipe.py: `Recipe` makes the objects: `training_arguments()`, `lottery_config()`, `lora_config()`, …
9. summary.py: what a recipe would do, for `hf-lottery check`.
"""
