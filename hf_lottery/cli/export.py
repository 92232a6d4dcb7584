"""`hf-lottery export`: a ticket or a trained network -> files that load without hf_lottery."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hf_lottery.export.adapter import save_adapter, without_pruned_ranks
from hf_lottery.export.delta import Delta
from hf_lottery.export.merged import save_merged
from hf_lottery.export.shira import save_shira
from hf_lottery.export.source import Source, open_source
from hf_lottery.files import filling
from hf_lottery.pruning.lora import lora_pairs
from hf_lottery.runner.memory import base_on_meta

FORMS = ("adapter", "rank-adapter", "delta", "shira", "merged")


def export(source: str, to: str, output: str | None = None, keep_zeros: bool = False) -> str:
    """Export a network or a ticket; returns a sentence that says what was written.

    Args:
        source: a trained network's folder (`replicate-0/round-03`), a ticket's, or a run's (its ticket).
        to: one of FORMS.
        output: the folder to write; None: `exported/FORM` in the source's folder.
        keep_zeros: for `merged`: weights that are zero in the base model stay zero.

    Raises:
        ValueError: an unknown form, or one that this network cannot be written in.
        FileNotFoundError: there is no such network.
    """
    if to not in FORMS:
        raise ValueError(f"--to is {to!r}; it must be one of {', '.join(FORMS)}")
    found = open_source(source)
    folder = Path(output) if output is not None else found.path / "exported" / to
    with filling(folder) as new:
        said = _EXPORTS[to](found, new, keep_zeros)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{folder} ({size:,} bytes): {said}"


def _adapter(found: Source, folder: Path, keep_zeros: bool) -> str:
    save_adapter(folder, found.tensors, _lora(found), _base(found))
    kept, total = found.mask.count(), found.mask.numel()
    return f"a PEFT adapter, {kept:,} of {total:,} weights kept, pruned ones are zeros in it{_untrained(found)}"


def _rank_adapter(found: Source, folder: Path, keep_zeros: bool) -> str:
    tensors, config = without_pruned_ranks(found.tensors, found.mask, _lora(found))
    save_adapter(folder, tensors, config, _base(found))
    before, after = (sum(t[a].shape[0] for a, _ in lora_pairs(t).values()) for t in (found.tensors, tensors))
    return f"a PEFT adapter of {after} ranks, of {before}{_untrained(found)}"


def _delta(found: Source, folder: Path, keep_zeros: bool) -> str:
    delta = _update(found)
    delta.save(folder)
    return f"indices and values of {delta.count():,} weights in {len(delta.entries)} tensors"


def _shira(found: Source, folder: Path, keep_zeros: bool) -> str:
    delta = _update(found)
    _require_linear(found, delta)
    shapes = {name: found.tensors[name].shape for name in delta.entries}
    save_shira(folder, delta, shapes, _base(found))
    return f"a PEFT SHiRA adapter of {delta.count():,} changed weights in {len(delta.entries)} tensors"


def _require_linear(found: Source, delta: Delta) -> None:
    """Raise a ValueError if a changed weight is of a layer for which PEFT has no SHiRA, such as GPT-2's Conv1D."""
    model = base_on_meta(found.recipe)
    for name in delta.entries:
        layer = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                f"SHiRA holds updates of linear layers' weights, and '{name}' changed, which is of a "
                f"{type(layer).__name__}: use --to delta"
            )


def _merged(found: Source, folder: Path, keep_zeros: bool) -> str:
    _, zeros = save_merged(found, folder, keep_zeros)
    return f"a plain model{f'; {zeros}' if zeros else ''}{_untrained(found)}"


_EXPORTS = {"adapter": _adapter, "rank-adapter": _rank_adapter, "delta": _delta, "shira": _shira, "merged": _merged}


def _base(found: Source) -> str | None:
    """The name by which PEFT can load the base model; None for a package's folder or a GGUF file."""
    model = found.recipe.model
    if model.name_or_path is None or model.gguf_file is not None or model.name_or_path.startswith("package:"):
        return None
    return model.name_or_path


def _lora(found: Source):
    lora = found.recipe.lora_config()
    if lora is None:
        raise ValueError(f"{found.path} holds no LoRA: its recipe has no section peft; use --to delta or --to merged")
    return lora


def _update(found: Source) -> Delta:
    if found.recipe.peft is not None:
        raise ValueError(f"{found.path} holds a LoRA: use --to adapter, rank-adapter or merged")
    if found.recipe.lottery_config().pruned_value != "init":
        raise ValueError(
            f"pruned weights are zero in {found.path}, so its update is not sparse: a run with "
            "lottery.pruned_value=init has a sparse one; use --to merged"
        )
    if not found.trained:
        raise ValueError(
            f"{found.path} is a ticket, at its rewind point: export a trained network, replicate-R/round-NN"
        )
    if found.rewind.step != 0:
        raise ValueError(
            f"pruned weights stay at step {found.rewind.step} of the dense training, not at the base model's values: "
            "a sparse delta needs lottery.rewind_step=0"
        )
    return Delta.between(found.rewind.tensors, found.tensors)


def _untrained(found: Source) -> str:
    return "" if found.trained else "; it is at its rewind point, ready to train"
