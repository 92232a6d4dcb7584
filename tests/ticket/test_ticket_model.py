"""The trained network beside a ticket loads where hf_lottery cannot be imported."""

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from hf_lottery.mask import Mask
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.ticket import Ticket, TicketError

LOAD = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_lottery":
            raise ImportError("hf_lottery is not installed here")

sys.meta_path.insert(0, Blocker())
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base, plain, adapter, inputs = sys.argv[1:]
inputs = torch.tensor(json.loads(inputs))
with torch.no_grad():
    for load in (
        lambda: AutoModelForSequenceClassification.from_pretrained(plain),
        lambda: PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base), adapter),
    ):
        print(json.dumps(load().eval()(inputs).logits.tolist()))
try:
    import hf_lottery
except ImportError:
    print(json.dumps("blocked"))
"""


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, num_labels=3
    )
    return BertForSequenceClassification(config).eval()


def lora(model) -> nn.Module:
    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(r=3, target_modules=["query", "value"], task_type="SEQ_CLS"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model.eval()


def trained(model: nn.Module) -> Ticket:
    """A ticket of `model`, which is then 'trained': its survivors move, its pruned weights are zero."""
    matrices = {n: p for n, p in model.named_parameters() if p.dim() == 2 and p.requires_grad and "embed" not in n}
    mask = Mask({name: torch.rand(p.shape) < 0.4 for name, p in matrices.items()})
    ticket = Ticket(mask, RewindPoint.capture(model))
    with torch.no_grad():
        for name, parameter in matrices.items():
            parameter.copy_((parameter + 0.1) * mask[name])
    return ticket


def test_model_and_adapter_load_without_hf_lottery(tmp_path):
    inputs = torch.tensor([[1, 5, 7, 2]])
    bert().save_pretrained(tmp_path / "base")
    expected = []
    for name, model in [
        ("plain", bert()),
        ("adapter", lora(BertForSequenceClassification.from_pretrained(tmp_path / "base"))),
    ]:
        trained(model).save_pretrained(tmp_path / name, model=model)
        with torch.no_grad():
            expected.append(model(inputs).logits)
    command = [
        sys.executable,
        "-c",
        LOAD,
        *(str(tmp_path / n) for n in ("base", "plain", "adapter")),
        str(inputs.tolist()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *found, blocked = map(json.loads, done.stdout.splitlines())
    assert blocked == "blocked"
    for logits, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(logits), wanted)


def test_the_model_is_plain_and_its_pruned_weights_are_zero(tmp_path):
    model = bert()
    ticket = trained(model)
    ticket.save_pretrained(tmp_path, model=model)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *("README.md", "ticket.json", "mask.safetensors", "rewind.safetensors"),
        *("config.json", "model.safetensors"),
    }
    assert not {"sparsity_config", "quantization_config", "auto_map"} & set(
        json.loads((tmp_path / "config.json").read_text())
    )
    saved = load_file(tmp_path / "model.safetensors")
    for name, kept in ticket.mask.items():
        assert not saved[name][~kept].any() and saved[name][kept].all()
    card = (tmp_path / "README.md").read_text()
    assert "exact zeros" in card and "no hf_lottery needed" in card
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TicketError, match=r"config\.json"):
        Ticket.from_pretrained(tmp_path)


def test_an_adapter_goes_without_its_base(tmp_path):
    model = lora(bert())
    trained(model).save_pretrained(tmp_path, model=model)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= names
    assert "model.safetensors" not in names
    assert "PeftModel.from_pretrained" in (tmp_path / "README.md").read_text()


def test_a_model_whose_pruned_weights_live_is_refused(tmp_path):
    model = bert()
    ticket = trained(model)
    name = next(iter(ticket.mask))
    with torch.no_grad():
        model.get_parameter(name).fill_(1)
    pruned = int((~ticket.mask[name]).sum())
    with pytest.raises(TicketError, match=f"{pruned} pruned weights of '{name}' are not zero"):
        ticket.save_pretrained(tmp_path, model=model)
    assert not (tmp_path / "ticket.json").exists()


def test_a_quantised_model_is_refused(tmp_path):
    model = bert()
    ticket = trained(model)
    model.config.quantization_config = {"quant_method": "x"}
    with pytest.raises(TicketError, match="quantization_config"):
        ticket.save_pretrained(tmp_path, model=model)


def test_a_plain_module_is_refused(tmp_path):
    with pytest.raises(TicketError, match="a Linear cannot be loaded without its code"):
        Ticket(Mask({}), RewindPoint(0, {})).save_pretrained(tmp_path, model=nn.Linear(1, 1))


def test_plots_are_named_plainly(tmp_path):
    plot = tmp_path / "a b.png"
    plot.write_bytes(b"")
    with pytest.raises(TicketError, match=r"a b\.png"):
        Ticket(Mask({}), RewindPoint(0, {})).save_pretrained(tmp_path / "t", plots=tmp_path)
