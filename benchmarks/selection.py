"""Exact selection compared with torch's and numpy's: time, extra memory, and whether the mask is the same.

    python benchmarks/selection.py cpu             # 3e8 float32 weights, all methods in one run
    python benchmarks/selection.py cpu --size 1e7  # a quick look
    python benchmarks/selection.py qwen            # every linear weight of Qwen2.5-3B, bfloat16, in place
    python benchmarks/selection.py cuda            # the same on a GPU, beside its copy bandwidth

Writes benchmarks/results/selection-NAME.json. Extra memory is the peak less the resident memory before
the method began. Compare times of one file only: they are of one run on one machine. A method that needs more than
the free memory is left out, and the file says so.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import prune as torch_prune

from hf_lottery.mask import Mask
from hf_lottery.pruning.selection.select import select

RATE = 0.2
QWEN = {"q_proj": (2048, 2048), "k_proj": (256, 2048), "v_proj": (256, 2048), "o_proj": (2048, 2048),
        "gate_proj": (11008, 2048), "up_proj": (11008, 2048), "down_proj": (2048, 11008)}  # fmt: skip
QWEN_LAYERS = 36


def ours(weights, count, alive=None):
    return select(weights, alive, count, key=torch.abs)


def global_unstructured(weights, count):
    modules = []
    for weight in weights.values():
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
        modules.append((module, "weight"))
    torch_prune.global_unstructured(modules, pruning_method=torch_prune.L1Unstructured, amount=count)
    return {name: module.weight_mask.bool() for name, (module, _) in zip(weights, modules, strict=True)}


def joined(weights):
    return torch.cat([weight.abs().flatten() for weight in weights.values()])


def parted(weights, keep):
    parts = keep.split([weight.numel() for weight in weights.values()])
    return {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}


def above(scores, threshold, count):
    """Which weights are kept, given the count-th lowest score; of equal scores the first ones are removed."""
    keep = scores > threshold
    missing = count - (len(scores) - int(keep.count_nonzero()))  # <= 0: minus the number of ties that are kept
    if missing < 0:
        ties = (scores == threshold).nonzero().flatten()
        keep[ties[len(ties) + missing :]] = True
    return keep


def by_sort(weights, count):
    scores = joined(weights)
    order = scores.sort(stable=True).indices
    keep = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    keep[order[:count]] = False
    return parted(weights, keep)


def by_topk(weights, count):
    scores = joined(weights)
    keep = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    keep[scores.topk(count, largest=False, sorted=False).indices] = False
    return parted(weights, keep)


def by_kthvalue(weights, count):
    scores = joined(weights)
    return parted(weights, above(scores, scores.kthvalue(count).values, count))


def by_partition(weights, count):
    scores = joined(weights)
    threshold = np.partition(scores.numpy(), count - 1)[count - 1]
    return parted(weights, above(scores, float(threshold), count))


# name -> method, and its measured peak in bytes a weight
METHODS = {
    "hf_lottery": (ours, 2),
    "numpy.partition": (by_partition, 13),
    "torch.kthvalue": (by_kthvalue, 17),
    "torch.topk": (by_topk, 26),
    "torch.sort": (by_sort, 30),
    "global_unstructured": (global_unstructured, 52),
}


def resident(field: str) -> int:
    """VmRSS or VmHWM (the peak) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def available() -> int:
    """Bytes of memory that are free on this machine."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def measure(method, weights, count, repeats, cuda=False):
    """(mask, median seconds, all seconds, median CPU seconds of all threads, peak bytes over those before)."""
    seconds, cpu, extra, mask = [], [], 0, None
    for _ in range(repeats):
        mask = None
        gc.collect()
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            before = resident("VmRSS")
        start, start_cpu = time.perf_counter(), time.process_time()
        mask = method(weights, count)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
        extra = max(extra, (torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")) - before)
    return mask, statistics.median(seconds), seconds, statistics.median(cpu), extra


def compare(mask, other, weights) -> str:
    """ "same", or how many weights differ, and whether all of those are ties at the threshold."""
    differ = {name: mask[name] != other[name] for name in weights}
    count = sum(int(d.count_nonzero()) for d in differ.values())
    if count == 0:
        return "same"
    scores = torch.cat([weights[name][differ[name]].abs() for name in weights])
    sizes = sum(int(m.count_nonzero()) for m in mask.values()), sum(int(m.count_nonzero()) for m in other.values())
    if scores.unique().numel() == 1 and sizes[0] == sizes[1]:
        return f"same but for {count} of the weights that tie at the threshold"
    return f"{count} weights differ"


def side_by_side(size: int, device: str) -> dict:
    generator = torch.Generator(device).manual_seed(0)
    rows = 1000
    shape = (rows, size // 3 // rows)
    weights = {f"layer{i}.weight": torch.randn(shape, generator=generator, device=device) for i in range(3)}
    numel = sum(weight.numel() for weight in weights.values())
    count, cuda = round(RATE * numel), device == "cuda"
    mask, results = None, {}
    read = reading_time(weights)
    for name, (method, bytes_a_weight) in METHODS.items():
        if cuda and method is by_partition:
            continue
        free = torch.cuda.mem_get_info()[0] if cuda else available()
        if free < 1.1 * bytes_a_weight * numel:
            results[name] = {
                "left_out": f"{free / 2**30:.1f} GiB are free; it takes {bytes_a_weight * numel / 2**30:.1f}"
            }
            print(name, results[name], flush=True)
            continue
        repeats = 3 if cuda or method in (ours, by_partition) else 1
        # in a round `alive` exists before the selection, so it is made outside of the measurement
        run = partial(ours, alive=Mask.ones(weights)) if method is ours else method
        found, median, seconds, cpu, extra = measure(run, weights, count, repeats, cuda)
        mask = found if mask is None else mask
        results[name] = {
            "seconds": median,
            "all_seconds": seconds,
            "cpu_seconds": cpu,
            "extra_mib_with_mask": extra / 2**20,
            "extra_mib_beside_mask": (extra - numel) / 2**20,
            "mask": compare(mask, found, weights),
            "times_ours": median / results["hf_lottery"]["seconds"] if results else 1.0,
            "times_our_cpu_seconds": cpu / results["hf_lottery"]["cpu_seconds"] if results else 1.0,
        }
        print(name, json.dumps(results[name]), flush=True)
    result = {"seconds_to_sum_all": read, "weights": numel, "dtype": "float32", "removed": count, "methods": results}
    if cuda:
        result["copy_gb_per_second"] = bandwidth(weights)
        result["seconds_to_read_twice_at_that"] = 2 * 4 * numel / result["copy_gb_per_second"] / 1e9
    return result


def qwen() -> dict:
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"model.layers.{layer}.{name}.weight": torch.empty(shape, dtype=torch.bfloat16).normal_(generator=generator)
        for layer in range(QWEN_LAYERS)
        for name, shape in QWEN.items()
    }
    numel = sum(weight.numel() for weight in weights.values())
    count = round(RATE * numel)
    alive = Mask.ones(weights)
    read = reading_time(weights)
    print(f"{numel:,} weights were made", flush=True)
    mask, median, seconds, cpu, extra = measure(partial(ours, alive=alive), weights, count, repeats=3)
    removed = numel - mask.count()
    start = time.perf_counter()
    packed = mask.pack()
    pack_seconds = time.perf_counter() - start
    del alive
    again, second_seconds, *_ = measure(partial(ours, alive=mask), weights, round(RATE * (numel - count)), repeats=1)
    return {
        "weights": numel,
        "dtype": "bfloat16",
        "removed": removed,
        "exact": removed == count,
        "seconds": median,
        "all_seconds": seconds,
        "cpu_seconds": cpu,
        "seconds_to_sum_all": read,
        "extra_mib_beside_mask": (extra - numel) / 2**20,
        "pack_seconds": pack_seconds,
        "packed_gb": sum(bits.numel() for bits in packed.values()) / 1e9,
        "second_round_seconds": second_seconds,
        "second_round_exact": mask.count() - again.count() == round(RATE * (numel - count)),
    }


def reading_time(weights) -> float:
    """Seconds that torch's sum over all weights takes, the best of three: about the time of reading them once."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        sum(float(weight.sum()) for weight in weights.values())
        times.append(time.perf_counter() - start)
    return min(times)


def bandwidth(weights) -> float:
    """Bytes read and written a second by a copy on the GPU, over 1e9."""
    source = next(iter(weights.values()))
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    torch.cuda.synchronize()
    return 10 * 2 * source.numel() * source.element_size() / (time.perf_counter() - start) / 1e9


def machine() -> dict:
    info = {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load_average_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    if torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
    return info


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cpu", "qwen", "cuda"))
    parser.add_argument("--size", type=float, default=3e8)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if arguments.what == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device: run `cpu` or `qwen`, which need none")
    about = machine()
    result = qwen() if arguments.what == "qwen" else side_by_side(int(arguments.size), arguments.what)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"selection-{arguments.what}.json"
    path.write_text(json.dumps({"machine": about, **result}, indent=2) + "\n")
    print(json.dumps(result, indent=2), path, sep="\n")


if __name__ == "__main__":
    main()
