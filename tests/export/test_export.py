"""What tickets turn into loads without hf_lottery, in a fresh process, and gives the same logits."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig
from rich.console import Console
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from hf_lottery import Mask
from hf_lottery.cli.export import export
from hf_lottery.export.adapter import save_adapter, without_pruned_ranks
from hf_lottery.export.delta import Delta
from hf_lottery.export.merged import merge
from hf_lottery.export.shira import save_shira
from hf_lottery.export.source import open_source
from hf_lottery.pruning.lora import lora_pairs
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.runner.adapters import add_adapter
from hf_lottery.runner.run import run
from tests import tiny_lm

INPUT = torch.tensor([[1, 5, 9, 200, 30, 7]])

# Runs where hf_lottery cannot be imported. argv[1]: a JSON list of {base, kind, folder, logits}.
STRANGER = """
import json, sys
class Blocker:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "hf_lottery":
            raise ImportError("hf_lottery is blocked")
sys.meta_path.insert(0, Blocker())
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
for job in json.load(open(sys.argv[1])):
    model = AutoModelForCausalLM.from_pretrained(job["base"])
    if job["kind"] == "adapter":
        model = PeftModel.from_pretrained(model, job["folder"])
    elif job["kind"] == "delta":
        tensors = load_file(job["folder"] + "/delta.safetensors")
        for key in tensors:
            name, _, part = key.rpartition(".")
            if part == "values":
                model.get_parameter(name).data.view(-1)[tensors[name + ".indices"].long()] = tensors[key]
    with torch.no_grad():
        logits = model.eval()(torch.tensor([[1, 5, 9, 200, 30, 7]])).logits
    wanted = load_file(job["logits"])["logits"]
    print(job["folder"], float((logits - wanted).abs().max()), float(wanted.abs().max()))
    assert torch.allclose(logits, wanted, atol=1e-5), job
assert "hf_lottery" not in sys.modules
"""


@torch.no_grad()
def _logits(model):
    return model.eval()(INPUT).logits


def _lora(**changes):
    return LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **changes)


def _trained_adapter(base, config, seed=0):
    """A LoRA whose B (and magnitudes) are as after training: anything but 0."""
    model = add_adapter(base, config, seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=draw))
            elif p.requires_grad and "lora_A" not in name:
                p.add_(0.1 * torch.randn(p.shape, generator=draw))
    return model


@torch.no_grad()
def _masked(model, mask):
    parameters = dict(model.named_parameters())
    for name, kept in mask.items():
        parameters[name].masked_fill_(~kept, 0)
    return parameters


def _rank_mask(model):
    """Another number of ranks in every module, none in one; half of the pairs by A alone, half by B alone."""
    parameters = dict(model.named_parameters())
    mask = dict(Mask.ones({n: p for n, p in parameters.items() if ".lora_A." in n or ".lora_B." in n}))
    for number, (a, b) in enumerate(lora_pairs(mask).values()):
        gone = torch.arange(4)[number % 5 :]
        if number % 2:
            mask[a] = mask[a].index_fill(0, gone, False)
        else:
            mask[b] = mask[b].index_fill(1, gone, False)
    return Mask(mask)


VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},  # a module without ranks keeps its magnitudes
    "alphas": {"alpha_pattern": {"layers.1.self_attn.v_proj": 3}},
    "saved": {"modules_to_save": ["lm_head"]},
}


def test_every_export_loads_in_a_process_without_us_and_gives_the_same_logits(tmp_path):
    jobs = []

    def job(kind, folder, logits, base):
        path = tmp_path / f"logits-{len(jobs)}.safetensors"
        save_file({"logits": logits.contiguous()}, path)
        jobs.append({"kind": kind, "folder": str(folder), "logits": str(path), "base": str(base)})

    base = tmp_path / "base"
    tiny_lm.model(tie_word_embeddings=False).save_pretrained(base)
    for name, changes in VARIANTS.items():
        model = _trained_adapter(tiny_lm.model(tie_word_embeddings=False), _lora(**changes))
        # entries at random: the adapter with its zeros
        entries = Mask.ones({n: p for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n})
        draw = torch.Generator().manual_seed(1)
        mask = Mask({n: torch.rand(m.shape, generator=draw) < 0.5 for n, m in entries.items()})
        whole = save_adapter(tmp_path / name, _masked(model, mask), _lora(**changes), str(base))
        job("adapter", whole, _logits(model), base)
        # ranks: the smaller adapter
        model = _trained_adapter(tiny_lm.model(tie_word_embeddings=False), _lora(**changes))
        mask = _rank_mask(model)
        dense = save_adapter(tmp_path / f"{name}-dense", _masked(model, mask), _lora(**changes), str(base))
        tensors, config = without_pruned_ranks(dict(model.named_parameters()), mask, _lora(**changes))
        small = save_adapter(tmp_path / f"{name}-ranks", tensors, config, str(base))
        job("adapter", small, _logits(model), base)
        sizes = [(f / "adapter_model.safetensors").stat().st_size for f in (small, dense)]
        assert sizes[0] < sizes[1]

    # an update of few weights, as a delta and as SHiRA
    model, draw = tiny_lm.model(tie_word_embeddings=False), torch.Generator().manual_seed(3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "mlp" in name:
                p.add_(torch.randn(p.shape, generator=draw) * (torch.rand(p.shape, generator=draw) < 0.1))
    delta = Delta.between(before, dict(model.named_parameters()))
    delta.save(tmp_path / "delta")
    job("delta", tmp_path / "delta", _logits(model), base)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    save_shira(tmp_path / "shira", delta, shapes, str(base))
    job("adapter", tmp_path / "shira", _logits(model), base)

    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(tmp_path / "jobs.json")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_adapter_without_a_rank_left_is_refused():
    model = _trained_adapter(tiny_lm.model(), _lora())
    mask = ~Mask.ones({n: p for n, p in model.named_parameters() if "lora_A" in n})
    with pytest.raises(ValueError, match="no rank of the adapter is left"):
        without_pruned_ranks(dict(model.named_parameters()), mask, _lora())


def test_a_delta_goes_on_and_comes_off_bit_for_bit(tmp_path):
    base, trained = tiny_lm.model(0).bfloat16(), tiny_lm.model(0).bfloat16()
    with torch.no_grad():
        trained.model.layers[0].mlp.up_proj.weight[3, :5] += 0.37
        trained.model.layers[1].mlp.up_proj.weight[0, 0] = -0.0
    before = {n: p.detach().clone() for n, p in base.named_parameters()}
    delta = Delta.between(before, dict(trained.named_parameters()))
    assert delta.count() == 6
    path = delta.save(tmp_path)
    read = Delta.load(tmp_path)
    read.apply_to(base)
    for name, p in trained.named_parameters():
        assert torch.equal(dict(base.named_parameters())[name].view(torch.int16), p.view(torch.int16)), name
    with pytest.raises(ValueError, match="not the base that this delta belongs to.*first tensor that differs"):
        read.apply_to(base)  # twice
    read.take_off(base)
    for name, p in before.items():
        assert torch.equal(dict(base.named_parameters())[name].view(torch.int16), p.view(torch.int16)), name
    with pytest.raises(ValueError, match="not a model that this delta is on"):
        read.take_off(base)
    with pytest.raises(ValueError, match="load the base model in bfloat16"):
        read.apply_to(tiny_lm.model(0))
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not a sparse delta"):
        Delta.load(path)


def test_a_delta_holds_buffers_and_a_damaged_one_is_said(tmp_path):
    from tests.tiny import seeded_net

    base = seeded_net()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    after = {**before, "norm.running_mean": before["norm.running_mean"] + 1}
    path = Delta.between(before, after).save(tmp_path)
    Delta.load(path).apply_to(base)
    assert all(torch.equal(tensor, after[name]) for name, tensor in base.state_dict().items())
    Delta.load(path).take_off(base)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="is damaged"):
        Delta.load(path)
    one = torch.ones(1)
    for indices, values in ((torch.tensor([]).long(), one[:0]), (torch.tensor([0, 1]), one), (one, one + 1)):
        Delta({"a": (indices, values, values.clone())}).save(tmp_path)
        with pytest.raises(ValueError, match="do not fit together"):
            Delta.load(tmp_path)


def test_shira_refuses_what_its_form_cannot_hold(tmp_path):
    one = torch.zeros(1)
    norm = Delta({"model.norm.weight": (torch.tensor([0], dtype=torch.int32), one + 1, one)})
    with pytest.raises(ValueError, match="'model.norm.weight' changed too: use --to delta"):
        save_shira(tmp_path, norm, {"model.norm.weight": torch.Size([16])}, None)
    every = torch.arange(256, dtype=torch.int32)
    dense = Delta({"a.weight": (every, torch.ones(256), torch.zeros(256))})
    save_shira(tmp_path, dense, {"a.weight": torch.Size([16, 16])}, None)
    with pytest.raises(ValueError, match="here 8: more entries than 'b.weight' has"):
        both = Delta({**dense.entries, "b.weight": (every[:1], one, one)})
        save_shira(tmp_path, both, {"a.weight": torch.Size([16, 16]), "b.weight": torch.Size([4, 4])}, None)


@pytest.mark.parametrize("keep", [False, True])
def test_merging_into_a_sparse_base_keeps_its_zeros_or_says_that_it_does_not(keep):
    base = tiny_lm.model()
    weights = [layer.self_attn.q_proj.weight for layer in base.model.layers]
    with torch.no_grad():
        for weight in weights:
            weight.masked_fill_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(5)) < 0.5, 0)
    zero = [weight == 0 for weight in weights]
    model = _trained_adapter(base, _lora())
    wanted = _logits(model)
    merged, zeros = merge(model, keep_zeros=keep)
    assert zeros.before == sum(int(z.sum()) for z in zero)
    for layer, was_zero in zip(merged.model.layers, zero, strict=True):
        now = layer.self_attn.q_proj.weight
        assert bool((now[was_zero] == 0).all()) == keep
    if keep:
        assert zeros.kept == zeros.before and str(zeros).endswith("and still are")
    else:
        assert torch.allclose(_logits(merged), wanted, atol=1e-4)
        assert "the merge fills" in str(zeros)


def _recipe(tmp_path, lottery, peft):
    values = {
        "model": {"name_or_path": str(tiny_lm.save_model(tmp_path / "model"))},
        "data": {
            "task": "causal_lm",
            "path": str(tiny_lm.save_table(tmp_path / "table", rows=12)),
            "max_length": 300,
            "validation_size": 2,
            "test_size": 2,
            "max_new_tokens": 2,
        },
        "training": {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 0.01,
            "use_cpu": True,
        },
        "lottery": {"num_rounds": 1, "pruning_rate": 0.5, **lottery},
        **({"peft": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}} if peft else {}),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_recipe(str(path))


def test_a_lora_runs_from_its_recipe_and_network_and_ticket_are_exported(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    root = run(_recipe(tmp_path, {}, peft=True), Console(file=(screen := io.StringIO()), width=500))
    places = dict(line.split(maxsplit=1) for line in screen.getvalue().strip().splitlines()[-4:])
    assert places["plot"].endswith("perplexity.png")
    assert all(Path(place).exists() for place in places.values())
    network = root / "replicate-0" / "round-01"
    line = json.loads((root / "results.jsonl").read_text().splitlines()[-1])
    assert line["test_perplexity"] == pytest.approx(torch.tensor(line["test_loss"]).exp().item(), rel=1e-5)
    assert 0 < line["density"] < 1 and line["density"] < line["delta_density"] <= 1
    assert (network / "generations.json").is_file()
    page = Path(places["report"]).read_text()
    assert "The data" in page and "train: 8 rows (300 tokens)" in page
    assert "weights kept, pruned ones are zeros" in export(str(network), "adapter")
    assert "8 ranks, of 16" not in export(str(network), "rank-adapter", str(tmp_path / "r"))
    assert "it is at its rewind point, ready to train" in export(str(root), "adapter", str(tmp_path / "t"))
    assert "the base is dense" in export(str(network), "merged", str(tmp_path / "m"))
    with pytest.raises(ValueError, match="holds a LoRA: use --to adapter, rank-adapter or merged"):
        export(str(network), "delta")
    with pytest.raises(ValueError, match="--to is 'onnx'; it must be one of adapter"):
        export(str(network), "onnx")
    with pytest.raises(FileNotFoundError, match=r"holds neither result.json .* nor ticket.json"):
        export(str(tmp_path), "adapter")

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "model"), network / "exported" / "adapter"
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.allclose(_logits(model), _logits(merged), atol=1e-5)


def test_an_update_ticket_runs_from_its_recipe_and_its_network_is_exported(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    root = run(_recipe(tmp_path, {"pruned_value": "init", "pruning_rate": 0.9, "scope": "global"}, peft=False))
    network = root / "replicate-0" / "round-01"
    line = json.loads((network / "result.json").read_text())
    said = export(str(network), "delta")
    delta = Delta.load(network / "exported" / "delta")
    assert 0 < delta.count() <= line["kept"]
    assert f"{delta.count():,} weights" in said
    export(str(network), "shira")
    export(str(network), "merged")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    merged = AutoModelForCausalLM.from_pretrained(network / "exported" / "merged")
    delta.apply_to(base)
    assert torch.equal(_logits(base), _logits(merged))
    with pytest.raises(ValueError, match="is a ticket, at its rewind point"):
        export(str(root), "delta")
    with pytest.raises(ValueError, match="its recipe has no section peft"):
        export(str(network), "adapter")


def test_a_network_outside_of_its_output_folder_is_refused(tmp_path):
    (tmp_path / "round-01").mkdir()
    (tmp_path / "round-01" / "result.json").write_text('{"replicate": 0, "round": 1, "control": "ticket"}')
    with pytest.raises(ValueError, match=r"no folder above .*round-01 holds recipe\.yaml"):
        open_source(tmp_path / "round-01")
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(ValueError, match=r"no folder above .*round-01 holds rewind/rewind\.safetensors"):
        open_source(tmp_path / "round-01")


def test_an_update_of_gpt2_is_no_shira(tmp_path, monkeypatch):
    """PEFT has none for its Conv1D, whose weights are (inputs, outputs)."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    recipe = _recipe(tmp_path, {"pruned_value": "init"}, peft=False)
    gpt2 = GPT2Config(vocab_size=260, n_embd=16, n_layer=1, n_head=2, n_positions=300, eos_token_id=None)
    GPT2LMHeadModel(gpt2).save_pretrained(tmp_path / "model")
    network = run(recipe) / "replicate-0" / "round-01"
    with pytest.raises(ValueError, match=r"'transformer\.h\.0\..*' changed, which is of a Conv1D: use --to delta"):
        export(str(network), "shira")
    assert "weights in 4 tensors" in export(str(network), "delta")
