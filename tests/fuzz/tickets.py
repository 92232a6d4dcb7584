"""A mutator over the folders of small tickets: load, and where that is accepted save again, show and apply.

Every folder must be accepted or refused with a TicketError, in at most MOST_SECONDS and MOST_BYTES. What is accepted
can be saved, and is then the same ticket. A changed file whose hash was not made right again must be refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import resource
import shutil
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import torch
from rich.console import Console

from hf_lottery.cli.ticket import show
from hf_lottery.mask import Mask
from hf_lottery.ticket.document import dump
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.save import publishable
from hf_lottery.ticket.ticket import Ticket, TicketError
from tests.fuzz.counts import Counts
from tests.fuzz.mutations import mutated_bytes, mutated_json, mutated_safetensors
from tests.ticket_cases import Tiny, tiny_ticket

MOST_SECONDS, MOST_BYTES = 10, 1 << 30
OLD = Path(__file__).parents[1] / "ticket" / "data"
Folder = dict[str, bytes]  # name -> content of each file


def fuzz(count: int, seed: int) -> Counts:
    """Try `count` changed ticket folders; the same seed tries the same ones."""
    counts = Counts()
    with tempfile.TemporaryDirectory() as scratch:
        seeds = ticket_folders(Path(scratch))
        before = _peak()
        for number in range(count):
            rng = random.Random(f"{seed}:{number}")
            folder, must_be_refused = mutated(rng.choice(seeds), rng)
            started = time.perf_counter()
            try:
                accepted = answer(folder, Path(scratch) / "case", rng)
            except Exception:  # whatever is not ours is what is looked for
                counts.failures.append(f"ticket {seed}:{number}: {traceback.format_exc(limit=-4)}")
                accepted = None
            seconds = time.perf_counter() - started
            counts.tried += 1
            counts.ok += accepted is True
            counts.refused += accepted is False
            counts.slowest = max(counts.slowest, seconds)
            if accepted and must_be_refused:
                counts.failures.append(f"ticket {seed}:{number}: a changed file was not noticed")
            if seconds > MOST_SECONDS:
                counts.failures.append(f"ticket {seed}:{number}: took {seconds:.1f} s")
            if _peak() - before > MOST_BYTES:
                counts.failures.append(f"ticket {seed}:{number}: took {(_peak() - before) >> 20} MiB")
                before = _peak()
    return counts


def answer(files: Folder, folder: Path, rng: random.Random) -> bool:
    """Whether a folder with these files is read as a ticket; then it is saved, read again, shown and applied too."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a newer minor version
        try:
            ticket = Ticket.from_pretrained(folder)
            ticket.mask, ticket.rewind  # noqa: B018
        except TicketError:
            return False
        copy = folder / "copy"
        ticket.save_pretrained(copy, compress=rng.random() < 0.5)
        again = Ticket.from_pretrained(copy)
        assert again.mask == ticket.mask and again.info == publishable(ticket.info)
        assert again.rewind.tensors.keys() == ticket.rewind.tensors.keys()
        show(str(folder), console=Console(file=io.StringIO(), width=120))
        with contextlib.suppress(TicketError):  # into the same folder: its README.md may be one that cannot be kept
            ticket.save_pretrained(folder)
        with contextlib.suppress(TicketError):
            Ticket.from_pretrained(folder).apply_to(Tiny())
    return True


def mutated(files: Folder, rng: random.Random) -> tuple[Folder, bool]:
    """A changed copy, and whether it must be refused because its hashes were not made right again."""
    files = dict(files)
    document = json.loads(files["ticket.json"])
    kind = rng.randrange(10)
    if kind == 0:
        name = rng.choice([name for name in files if name != "README.md"])
        original, files[name] = files[name], mutated_bytes(files[name], rng)
        return files, files[name] != original
    if kind == 1:
        files["README.md"] = mutated_bytes(files["README.md"], rng)
        return files, False
    if kind in (2, 3, 4):
        name = rng.choice([name for name in files if name.endswith(".safetensors")])
        files[name] = mutated_safetensors(files[name], rng)
        if kind == 4:
            document = mutated_json(document, rng)
    else:
        document = mutated_json(document, rng)
    files["ticket.json"] = sealed(files, document)
    return files, False


def sealed(files: Folder, document: object) -> bytes:
    """ticket.json with the right hashes of the other files and of itself, as somebody who forges one would write."""
    if not isinstance(document, dict):
        return json.dumps(document).encode()
    listed = document.get("files")
    for name in listed if isinstance(listed, dict) else ():
        if name in files and isinstance(listed[name], dict):
            listed[name] = listed[name] | record(files[name])
    document.pop("sha256", None)
    try:
        return dump(document)
    except (UnicodeEncodeError, OverflowError):
        return json.dumps(document).encode()


def record(content: bytes) -> dict[str, object]:
    """The size and SHA-256 of a file, as ticket.json lists them."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def ticket_folders(scratch: Path) -> list[Folder]:
    """The tickets that are changed: packed and compressed, zero and init, with everything that a ticket may hold."""
    kinds = [
        (tiny_ticket(), False),
        (tiny_ticket(density=0.02), True),
        (tiny_ticket(density=0.5, **everything()), True),
        (tiny_ticket("init", step=3, **everything()), False),
        (_large_sparse(), True),
    ]
    folders = [OLD / "schema-1.0-packed", OLD / "schema-1.0-compressed"]
    for number, (ticket, compress) in enumerate(kinds):
        folders.append(scratch / f"seed-{number}")
        ticket.save_pretrained(folders[-1], compress=compress)
    found = [{path.name: path.read_bytes() for path in sorted(folder.iterdir())} for folder in folders]
    return [{"README.md": b"mine", **files} for files in found]


def everything() -> dict[str, object]:
    """A value for every field of a ticket's `info`."""
    density = {"low.weight": [10, 35], "embed.weight": [9, 30]}
    lines = [
        {"replicate": r, "seed": r, "round": n, "control": control, "density": 0.8**n, "sample": 0, "steps": 40}
        | {"test_accuracy": 0.9 + r / 100, "early_stop_test_accuracy": 0.9, "eval_loss": 0.3, "early_stop_step": 30}
        | {"metric": "accuracy", "greater_is_better": True, "fingerprint": "0" * 64, "densities": density}
        for r in range(3)
        for n in range(3)
        for control in ("ticket", "random_reinit", "random_mask")
        if n or control == "ticket"
    ]
    return {
        "base_model": "you/bert",
        "base_revision": "0" * 40,
        "task": "text_classification",
        "config": {"model_type": "bert", "num_labels": 3, "hidden_size": 8, "id2label": {"0": "a"}},
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q"], "bias": "none", "rank_pattern": {"q": 2}},
        "criterion": "magnitude",
        "scope": "layer",
        "pattern": "2:4",
        "retraining": "weight_rewinding",
        "num_rounds": 2,
        "pruning_rate": 0.2,
        "seeds": [0, 1, 2],
        "versions": {"python": "3.11", "torch": "2.9"},
        "densities": [density, density],
        "results": lines,
        "recipe": "# A recipe\n\nmodel:\n  architecture: lenet\ntraining:\n  output_dir: out\n",
        "datasets": ["mnist"],
        "license": "apache-2.0",
    }


def _large_sparse() -> Ticket:
    """A matrix large enough for every coding of a mask, and rows that are equal."""
    generator = torch.Generator().manual_seed(0)
    masks = {
        "rare": torch.rand(64, 640, generator=generator) < 0.002,
        "often": torch.rand(64, 64, generator=generator) < 0.97,
        "rows": (torch.arange(64) % 3 == 0)[:, None].expand(64, 64).contiguous(),
    }
    values = {name: torch.randn(mask.shape, generator=generator).to(torch.float16) for name, mask in masks.items()}
    return Ticket(Mask(masks), RewindPoint(0, values), {})


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
