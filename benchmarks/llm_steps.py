"""Steps of a language model under a mask beside plain Trainer steps: tokens a second and peak memory.

    python benchmarks/llm_steps.py --model 3b --device cuda          # writes benchmarks/results/llm-steps-3b-cuda.json
    python benchmarks/llm_steps.py --model tiny --device cpu --to /tmp/steps.json

Qwen2.5's exact architectures with random weights, random tokens in all rows: LoRA (r=16, q_proj and v_proj) over bf16,
the same over nf4 (with bitsandbytes, on CUDA), and all weights, each once with Trainer and once with LotteryTrainer
under a mask that keeps half of what can be pruned. Both run the same batches in this process,
one after the other; ratios are LotteryTrainer's over Trainer's. Compare figures of one file only.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from peft import LoraConfig
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    Qwen2Config,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_lottery import LotteryConfig, LotteryTrainer
from hf_lottery.runner.adapters import add_adapter

WARM_UP, SEED, PRUNED = 3, 0, 0.5
MODELS = {
    "tiny": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2,
             "num_attention_heads": 4},
    "0.5b": {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
             "num_attention_heads": 14},
    "3b": {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
           "num_attention_heads": 16},
}  # fmt: skip
LORA = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
) if find_spec("bitsandbytes") else None  # fmt: skip


class RandomTokens(Dataset):
    """`rows` rows of `length` random tokens, all of them learned."""

    def __init__(self, rows: int, length: int, vocab_size: int):
        self.tokens = torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(SEED))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


class Clock(TrainerCallback):
    """Seconds from the end of one step to the end of the next, after WARM_UP steps; waits for the device."""

    def __init__(self, device: str):
        self.device, self.seconds, self.last = device, [], 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if self.device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if state.global_step > WARM_UP:
            self.seconds.append(now - self.last)
        self.last = now


def main() -> None:
    """Measure, print and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="3b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--length", type=int, default=128, help="tokens a row")
    parser.add_argument("--steps", type=int, default=20, help=f"steps that are timed, after {WARM_UP} that are not")
    parser.add_argument("--to", type=Path, help="file to write; benchmarks/results/llm-steps-MODEL-DEVICE.json")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device is cuda, and there is no CUDA device: use --device cpu")
    config = Qwen2Config(
        **MODELS[arguments.model],
        num_key_value_heads=2,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        rope_theta=1e6,
    )
    cases = {case: measure(case, config, arguments) for case in cases_here(arguments.device)}
    result = {
        "machine": machine(arguments.device),
        "model": {"architecture": "qwen2", **MODELS[arguments.model], "weights": "random, bfloat16"},
        "step": {"rows": arguments.batch, "tokens a row": arguments.length, "timed": arguments.steps,
                 "optimizer": "adamw_torch", "activation_checkpointing": True},
        "cases": cases,
    }  # fmt: skip
    here = Path(__file__).resolve().parent / "results"
    path = arguments.to or here / f"llm-steps-{arguments.model}-{arguments.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


def cases_here(device: str) -> list[str]:
    """The cases that can be measured here: QLoRA needs bitsandbytes and a GPU."""
    return ["lora", *(["qlora"] if device == "cuda" and NF4 is not None else []), "full"]


def measure(case: str, config: Qwen2Config, arguments: argparse.Namespace) -> dict:
    """Plain and masked steps of one case, and the ratios masked / plain."""
    plain = run(case, config, arguments, masked=False)
    masked = run(case, config, arguments, masked=True)
    ratios = {"tokens_per_second": masked["tokens_per_second"] / plain["tokens_per_second"]}
    if arguments.device == "cuda":
        ratios["peak_bytes"] = masked["peak_bytes"] / plain["peak_bytes"]
    print(case, json.dumps({"plain": plain, "masked": masked, "masked_over_plain": ratios}), flush=True)
    return {"plain": plain, "masked": masked, "masked_over_plain": ratios}


def run(case: str, config: Qwen2Config, arguments: argparse.Namespace, masked: bool) -> dict:
    """Train for a few steps, in a temporary folder. The peak memory is the device's, during training."""
    device, clock = arguments.device, Clock(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        model = build(case, config, device, Path(folder))
        result = {"trained": sum(p.numel() for p in model.parameters() if p.requires_grad)}
        steps = WARM_UP + arguments.steps
        training = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=arguments.batch,
            optim="adamw_torch",
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            activation_checkpointing=True,
            save_strategy="no",
            logging_steps=steps,
            report_to="none",
            disable_tqdm=True,
            seed=SEED,
            use_cpu=device == "cpu",
        )
        data = RandomTokens(steps * arguments.batch, arguments.length, config.vocab_size)
        options = {"train_dataset": data, "callbacks": [clock]}
        if masked:
            trainer = LotteryTrainer(model, training, **options, lottery_config=LotteryConfig(pruning_rate=PRUNED))
            started = time.perf_counter()
            mask = trainer.prune()
            result["prune_seconds"] = time.perf_counter() - started
            result["prunable"], result["kept"] = mask.numel(), mask.count()
        else:
            trainer = Trainer(model, training, **options)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        loss = trainer.train().training_loss
        if device == "cuda":
            result["peak_bytes"] = torch.cuda.max_memory_allocated()
        if masked:
            parameters = dict(model.named_parameters())
            moved = sum(int(parameters[name][~kept.to(device)].count_nonzero()) for name, kept in mask.items())
            assert moved == 0, f"{moved} pruned weights are not zero"
        del model, trainer
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    seconds = statistics.median(clock.seconds)
    rate = arguments.batch * arguments.length / seconds
    return {"tokens_per_second": rate, "seconds_a_step": seconds, **result, "training_loss": loss}


def build(case: str, config: Qwen2Config, device: str, folder: Path) -> PreTrainedModel:
    """The model of a case with weights drawn under SEED; for QLoRA they go through `folder` to be quantised."""
    set_seed(SEED)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if case == "full":
        return model
    if case == "qlora":
        model.save_pretrained(folder / "base")
        del model
        gc.collect()
        torch.cuda.empty_cache()
        model = AutoModelForCausalLM.from_pretrained(
            folder / "base", quantization_config=NF4, dtype=torch.bfloat16, device_map={"": 0}
        )
    return add_adapter(model, LORA, SEED)


def machine(device: str) -> dict:
    """The machine and the packages that the figures were measured with."""
    packages = ["torch", "transformers", "accelerate", "peft", *(["bitsandbytes"] if NF4 is not None else [])]
    gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if device == "cuda" else {}
    return {
        **gpu,
        "cpu": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
