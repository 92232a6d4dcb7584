"""The recipes in the package, their names and descriptions, and the configs of the large models that they name."""

from __future__ import annotations

from pathlib import Path

from hf_lottery.sealed import FIRST
from hf_lottery.suggest import did_you_mean

LAUNCHER_CONFIGS = "accelerate"  # recipes/accelerate/ holds configs for `accelerate launch`, not recipes
MODEL_CONFIGS = "configs"  # recipes/configs/ holds the config.json of large models that recipes name


def bundled_folder() -> Path:
    """The folder of the bundled recipes: inside the installed package, or `recipes/` at the top of a checkout.

    Raises:
        FileNotFoundError: there is neither.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / "quickstart.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"there are no recipes in {package}; reinstall hf_lottery, or give the path of a recipe file"
    )


def bundled_recipes() -> dict[str, Path]:
    """Name (such as `mnist/lenet-300-100`) -> file, in alphabetical order."""
    folder = bundled_folder()
    names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    return {name: names[name] for name in sorted(names) if not name.startswith(f"{LAUNCHER_CONFIGS}/")}


def bundled_config(name: str) -> Path | None:
    """The folder with the config.json of a Hub model that a bundled recipe names. None for any other model.

    With a config alone the size of a model can be counted, without the Hub.
    """
    folder = bundled_folder() / MODEL_CONFIGS / name
    return folder if name and (folder / "config.json").is_file() else None


def find_recipe(path_or_name: str) -> Path:
    """The file of a recipe: the file at this path, or else the bundled recipe of this name, with or without `.yaml`.

    Raises:
        FileNotFoundError: there is neither; the message proposes the nearest name.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    names = bundled_recipes()
    name = path_or_name.removeprefix("recipes/").removesuffix(".yaml")
    if name in names:
        return names[name]
    hint = did_you_mean(name, names)
    raise FileNotFoundError(
        f"no recipe '{path_or_name}': it is neither a file nor the name of a bundled recipe; "
        f"{hint}{hint and ' '}`hf-lottery ls` lists the names"
    )


def recipe_name(path: Path) -> str:
    """A bundled recipe's own name; for any other recipe, the file name without `.yaml`."""
    if path.resolve().is_relative_to(bundled_folder().resolve()):
        for name, bundled in bundled_recipes().items():
            if path.resolve() == bundled.resolve():
                return name
    return path.stem


def description(path: Path) -> str:
    """The first line of a recipe file, if it is a comment: what the recipe is for. Otherwise ''."""
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if line.strip("# ") and not line.startswith(FIRST):  # a run's recipe.yaml begins with its checksum
            return line.strip("# ") if line.startswith("#") else ""
    return ""
