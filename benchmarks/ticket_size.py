"""How large a ticket's mask is, and how fast it is written and read: LeNet, BERT-base and Qwen2.5-3B.

    python benchmarks/ticket_size.py                # all three, about 4 GB of memory
    python benchmarks/ticket_size.py lenet bert     # a quick look

Shapes are counted on the meta device from the models' own configs; the masks are random bits at 50, 20, 10 and 5%
density, the hardest to compress. Writes benchmarks/results/ticket-size.json. Times are seconds of processor time on
one core of one machine: compare times of one file only.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import BertConfig, BertModel, Qwen2Config, Qwen2ForCausalLM

from hf_lottery.bundled import bundled_folder
from hf_lottery.mask import Mask
from hf_lottery.models.lenet import LeNetConfig, LeNetForImageClassification
from hf_lottery.pruning.targets import prunable
from hf_lottery.ticket.mask_codec import decode
from hf_lottery.ticket.tensors import StoredMask, write_mask

MODELS = {
    "lenet": ("LeNet-300-100", LeNetForImageClassification, LeNetConfig()),
    "bert": ("BERT-base", BertModel, BertConfig()),
    "qwen": (
        "Qwen2.5-3B",
        Qwen2ForCausalLM,
        Qwen2Config.from_pretrained(bundled_folder() / "configs" / "Qwen" / "Qwen2.5-3B"),
    ),
}
DENSITIES = (0.5, 0.2, 0.1, 0.05)
RESULTS = Path(__file__).parent / "results" / "ticket-size.json"


def main() -> None:
    """Measure the models that are named, and replace their older lines in the file."""
    names = sys.argv[1:] or list(MODELS)
    if unknown := [name for name in names if name not in MODELS]:
        sys.exit(f"no such model: {', '.join(unknown)}; there are {', '.join(MODELS)}")
    cases = json.loads(RESULTS.read_text())["cases"] if RESULTS.exists() else []
    for name in names:
        cases = [case for case in cases if case["model"] != MODELS[name][0]]
        for density in DENSITIES:
            cases += measure(name, density)
    machine = {
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    order = [name for name, _, _ in MODELS.values()]
    cases.sort(key=lambda case: order.index(case["model"]))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "cases": cases}, indent=1) + "\n")


def measure(key: str, density: float) -> list[dict[str, float]]:
    """One model at one density, packed and compressed."""
    name, model_class, config = MODELS[key]
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in prunable(model_class(config)).items()}
    lines = []
    for compress in (False, True):
        mask = random_mask(shapes, density)
        numel, kept = mask.numel(), {tensor: k for tensor, (k, _) in mask.counts().items()}
        fingerprint = mask.fingerprint()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mask.safetensors"
            with _Peak() as writing:
                encoding, write_s = _timed(write_mask, path, mask, compress)
            del mask
            with _Peak() as reading:
                stored, read_s = _timed(StoredMask, path, shapes, kept, encoding, fingerprint)
                _, unpack_s = _timed(stored.unpack)  # this also checks the counts and the fingerprint
            size = path.stat().st_size
            rate = {"decode_mb_of_bits_per_s": round(_decode_rate(path, shapes), 1)} if compress else {}
        d = sum(kept.values()) / numel
        entropy = -d * math.log2(d) - (1 - d) * math.log2(1 - d)
        lines.append(
            {
                "model": name,
                "weights": numel,
                "density": density,
                "compress": compress,
                "bytes": size,
                "bits_per_weight": round(8 * size / numel, 4),
                "entropy": round(entropy, 4),
                "over_entropy": round(8 * size / numel / entropy - 1, 4),
                "pack_and_write_s": round(write_s, 3),
                "read_and_unpack_s": round(read_s + unpack_s, 3),
                "peak_extra_mb_write": round(writing.extra, 1),
                "peak_extra_mb_read": round(reading.extra, 1),
                **rate,
            }
        )
        print(json.dumps(lines[-1]), flush=True)
    return lines


def random_mask(shapes: dict[str, torch.Size], density: float) -> Mask:
    """Independent random bits; their density is exact to 1 / 65,536."""
    generator = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        bits = generator.integers(0, 1 << 16, shape.numel(), dtype=np.uint16) < density * (1 << 16)
        tensors[name] = torch.from_numpy(bits).view(shape)
    return Mask(tensors)


def _decode_rate(path: Path, shapes: dict[str, torch.Size]) -> float:
    """MB of packed bits that the codec decodes a second, over the first tensors that have 4 MB of bits together."""
    coded, total = [], 0
    with safe_open(path, framework="np") as file:
        for name, shape in shapes.items():
            coded.append((file.get_tensor(name).tobytes(), shape.numel()))
            total += shape.numel() // 8
            if total >= 4 << 20:
                break
    best = min(_timed(lambda: [decode(data, numel) for data, numel in coded])[1] for _ in range(5))
    return total / 1e6 / best


class _Peak:
    """The peak memory of this process in the block less its memory before, in MB."""

    def __enter__(self):
        ctypes.CDLL(None).malloc_trim(0)
        self.before = self._memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        return self

    def __exit__(self, *exc):
        self.extra = self._memory("VmHWM") - self.before

    def _memory(self, field: str) -> float:
        return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def _timed(function: Callable, *args: Any) -> tuple[Any, float]:
    """(result, seconds of processor time), which depends little on other processes."""
    start = time.process_time()
    value = function(*args)
    return value, time.process_time() - start


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
