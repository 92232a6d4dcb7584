"""The README's support table, from the tests that were run.

    python -m pytest tests/runner/test_{launchers,four_processes}.py tests/training/test_{wrappers,masked_step}.py \\
        --junitxml=support.xml
    python tests/support_table.py support.xml

Several reports may be given. A cell says what a test said: yes (passed), no (failed), not run (skipped, or in no
report).
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- made by tests/support_table.py -->\n", "<!-- to here -->\n"
FILES = (
    "runner/test_launchers.py",
    "runner/test_four_processes.py",
    "training/test_wrappers.py",
    "training/test_masked_step.py",
)

LAUNCHERS = {"ddp": "DDP", "fsdp2": "FSDP2", "zero2": "DeepSpeed ZeRO-2", "zero3": "DeepSpeed ZeRO-3"}
INVARIANTS = {
    "the ticket of one process": "test_the_ticket_is_that_of_one_process[{}]",
    "its losses and weights": "test_losses_and_weights_are_those_of_one_process_to_rounding[{}]",
    "pruned weights zero after every step": "test_pruned_weights_are_zero_on_every_rank_after_every_step[{}]",
    "ranks agree": "test_ranks_agree_and_disagreement_stops_them[{}]",
    "resumes bit for bit": "test_an_interrupted_search_continues_bit_for_bit[{}]",
    "rewinds bit for bit, k = 0": "test_rewinding_replays_with_each_ranks_own_random_numbers[{}-0]",
    "k > 0": "test_rewinding_replays_with_each_ranks_own_random_numbers[{}-2]",
    "all of these on four processes, except the rewinds": "test_four_processes_find_the_ticket_of_one[{}]",
}
WRAPPERS = {
    "torch.compile": "test_torch_compile",
    "gradient checkpointing": "test_gradient_checkpointing_changes_nothing",
    "device_map": "test_a_device_map_changes_nothing",
    "bf16 autocast": "test_a_masked_run_is_the_run_of_the_smaller_network[bf16 autocast]",
    "fp16 with GradScaler": "test_fp16_with_its_gradient_scaler[cpu-adamw_torch_fused]",
    "the same on CUDA": "test_fp16_with_its_gradient_scaler[cuda-adamw_torch_fused]",
    "8-bit AdamW": "test_8_bit_adamw",
    "schedule-free AdamW": "test_a_masked_run_is_the_run_of_the_smaller_network[schedule-free adamw]",
}
REFUSED = {
    "FSDP1": "flattens weights; set `fsdp_version` to 2",
    "FSDP on CPUs, which accelerate would ignore without a message": "launch with `ddp`",
    "FSDP2 over so many processes that two parameters have fewer rows": "launch with fewer, or with `ddp`",
    "DeepSpeed with an optimizer that mixes coordinates (8-bit, Adafactor, Muon, 1-bit)": "use AdamW, SGD, or FSDP2",
    "DeepSpeed with the optimizer on NVMe": "offload it to the CPU",
    "DeepSpeed with `zero3_init_flag`": "set it to false",
    "DeepSpeed with `pruned_value: init` and weight decay": "set `weight_decay` to 0",
    "DeepSpeed with `rewind_optimizer: fresh` at k > 0": "use `state`, or launch with DDP or FSDP2",
    "schedule-free optimizers with `pruned_value: init`": "use `pruned_value: zero`",
    "LOMO, AdaLOMO, layerwise GaLore and Apollo": "use `adamw_torch`",
    "`device_map` with offloaded weights": "keep all on devices",
    "`auto_find_batch_size`": "set the batch size",
}


def outcomes(*reports: Path) -> dict[str, str]:
    """Test name -> yes, no or not run; a later report goes before an earlier one."""
    said = {}
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            failed = case.find("failure") is not None or case.find("error") is not None
            said[case.get("name")] = "no" if failed else "not run" if case.find("skipped") is not None else "yes"
    return said


def table(said: dict[str, str]) -> str:
    """The three tables, as Markdown."""
    lines = ["| launcher | " + " | ".join(INVARIANTS) + " |", "| --- |" + " --- |" * len(INVARIANTS)]
    for key, name in LAUNCHERS.items():
        cells = [said.get(test.format(key), "not run") for test in INVARIANTS.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| in one process | pruned weights zero, losses as they should be |", "| --- | --- |"]
    lines += [f"| {name} | {said.get(test, 'not run')} |" for name, test in WRAPPERS.items()]
    lines += ["", "| refused when the trainer is made | instead |", "| --- | --- |"]
    lines += [f"| {what} | {instead} |" for what, instead in REFUSED.items()]
    return "\n".join(lines) + "\n"


def main(*reports: str) -> None:
    """Write the tables between the README's two marks."""
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{table(outcomes(*map(Path, reports)))}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
