"""A ticket's folder and card where people have been before: what is theirs stays, and an error changes nothing."""

from __future__ import annotations

import os

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_lottery.config import LotteryConfig
from hf_lottery.export.merged import merge, save_merged
from hf_lottery.export.source import open_source
from hf_lottery.mask import Mask
from hf_lottery.pruning.lora import delta_counts, live_ranks
from hf_lottery.recipe.errors import RecipeError
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.tasks.building import locate
from hf_lottery.ticket.info import ticket_info
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.ticket import Ticket, TicketError
from tests import tiny_lm
from tests.ticket_cases import Tiny, reseal, tiny_ticket


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("spoiled", ["license", "metadata", "encoding", "end mark"])
def test_a_save_that_is_refused_leaves_the_old_ticket(tmp_path, spoiled):
    tiny_ticket().save_pretrained(tmp_path)
    card, other = tmp_path / "README.md", tiny_ticket(density=0.5)
    if spoiled == "license":
        other = tiny_ticket(density=0.5, license="Apache-2.0")  # ids of the Hub are in lower case
    elif spoiled == "metadata":
        card.write_text("---\ntags: [a\n---\nmine")
    elif spoiled == "encoding":
        card.write_bytes("é".encode("latin-1") + card.read_bytes())
    else:
        card.write_text(card.read_text().replace("<!-- hf_lottery: end -->", "my notes"))
    before = files(tmp_path)
    with pytest.raises(TicketError):
        other.save_pretrained(tmp_path)
    assert files(tmp_path) == before
    assert Ticket.from_pretrained(tmp_path).mask == tiny_ticket().mask


def test_text_after_the_end_mark_and_a_byte_order_mark(tmp_path):
    tiny_ticket().save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    card.write_bytes(b"\xef\xbb\xbf" + card.read_bytes() + "\nMy notes, ü.\n".encode())
    tiny_ticket(density=0.5).save_pretrained(tmp_path)
    text = card.read_text()
    assert text.startswith("---") and text.rstrip().endswith("My notes, ü.")
    assert text.count("<!-- hf_lottery: end -->") == 1


def test_files_of_the_ticket_before_go_and_others_stay(tmp_path):
    from tests.ticket.test_ticket_model import bert, trained

    model = bert()
    trained(model).save_pretrained(tmp_path, model=model)
    (tmp_path / "mine.txt").write_text("mine")
    assert (tmp_path / "model.safetensors").is_file()
    tiny_ticket().save_pretrained(tmp_path)
    assert sorted(files(tmp_path)) == [
        "README.md",
        "mask.safetensors",
        "mine.txt",
        "rewind.safetensors",
        "ticket.json",
    ]


def test_links_are_replaced_or_refused_never_followed(tmp_path):
    secret, blob, folder = tmp_path / "secret", tmp_path / "blob", tmp_path / "ticket"
    secret.write_text("secret")
    folder.mkdir()
    os.symlink(secret, folder / "README.md")
    with pytest.raises(TicketError, match="is a link"):
        tiny_ticket().save_pretrained(folder)
    (folder / "README.md").unlink()
    blob.write_bytes(b"blob")
    os.symlink(blob, folder / "mask.safetensors")
    tiny_ticket().save_pretrained(folder)
    assert blob.read_bytes() == b"blob" and Ticket.from_pretrained(folder).mask == tiny_ticket().mask
    with pytest.raises(TicketError, match="is a file"):
        tiny_ticket().save_pretrained(blob)


def test_metrics_with_capitals_and_names_with_spaces(tmp_path):
    line = {"control": "ticket", "replicate": 0, "round": 0, "density": 1.0, "test_rougeL": 0.5, "eval_recall@5": 0.1}
    tiny_ticket(results=[line]).save_pretrained(tmp_path)
    assert Ticket.from_pretrained(tmp_path).info["results"] == [line]


def test_a_newer_minor_version_may_nest_what_we_do_not_know(tmp_path):
    tiny_ticket(criterion="magnitude", pattern="weight").save_pretrained(tmp_path)

    def newer(document):
        document.update(schema="2.7", criterion={"name": "hessian"}, lora={"r": 4, "arrow": True})

    reseal(tmp_path, newer)
    with pytest.warns(UserWarning, match="newer"):
        ticket = Ticket.from_pretrained(tmp_path)
    assert ticket.mask == tiny_ticket().mask
    assert "criterion" not in ticket.info and "lora" not in ticket.info and ticket.info["pattern"] == "weight"


def test_stored_values_are_not_cast(tmp_path):
    tiny_ticket().save_pretrained(tmp_path)
    with pytest.raises(TicketError, match="is float16 in this model and float32 in the ticket"):
        Ticket.from_pretrained(tmp_path).apply_to(Tiny().half())


# --- what a recipe in a stranger's ticket may say


@pytest.mark.parametrize(
    "word",
    [
        "model.config.trust_remote_code=true",
        "model.config.auto_map={AutoModel: x.y}",
        "model.config._name_or_path=x",
        "model.config.attn_implementation=someone/kernel",
        "model.config.quantization_config={quant_method: x}",
    ],
)
def test_a_recipe_cannot_reach_the_loader(word):
    with pytest.raises(RecipeError, match=r"model\.config"):
        load_recipe("smollm2/135m-lora", [word])


def test_a_package_is_looked_for_without_being_imported():
    for name in ("package:this.x/foo", "package:../etc", "package:hf_lottery/../../..", "package:hf_lottery//etc"):
        with pytest.raises(ValueError, match="package"):
            locate(name)


def test_tokens_of_accounts_are_not_written_down():
    recipe = load_recipe("quickstart", ["training.hub_token=hf_SECRET"])
    assert recipe.training["hub_token"] == "hf_SECRET"
    assert "hf_SECRET" not in recipe.to_yaml()


# --- exports


def test_a_hub_models_ticket_is_merged_by_applying_it(tmp_path, monkeypatch):
    """Its θ_k is the base's own, so the ticket holds no values of it: what it becomes must be sparse all the same."""
    from tests.export.test_export import _recipe

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    from rich.console import Console

    from hf_lottery.runner.run import run

    root = run(_recipe(tmp_path, {}, peft=False), Console(quiet=True))
    source = open_source(root)
    source.tensors = {}  # as if all of it were the base's own
    save_merged(source, tmp_path / "merged")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for name, kept in source.mask.items():
        assert not model.get_parameter(name)[~kept].any()


def test_merging_into_a_tied_weight_is_refused():
    base = tiny_lm.model(tie_word_embeddings=True)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match=r"lm_head' is tied to another module"):
        merge(model)


def test_a_convolutions_pair_is_counted():
    a, b = torch.zeros(2, 3, 2, 2, dtype=torch.bool), torch.zeros(4, 2, 1, 1, dtype=torch.bool)
    a[0, 1, 1, 0] = b[2, 0] = b[3, 1] = True
    names = ("conv.lora_A.default.weight", "conv.lora_B.default.weight")
    mask = Mask(dict(zip(names, (a, b), strict=True)))
    assert live_ranks(a, b).tolist() == [True, False]
    assert delta_counts(mask, dict(mask)) == {"conv": (1, 4 * 12)}


@pytest.mark.parametrize(
    "changes",
    [
        {"rank_pattern": {".*0.*q_proj": 3}, "alpha_pattern": {r"model\.layers\.1.*": 7}},
        {"layers_to_transform": [1]},
        {"exclude_modules": "model.layers.0.self_attn.v_proj"},
    ],
)
def test_the_adapter_is_rebuilt_from_what_the_ticket_says(tmp_path, changes):
    def adapter(config):
        torch.manual_seed(1)
        return get_peft_model(tiny_lm.model(), config)

    def shapes(model):
        return {name: (p.shape, p.requires_grad) for name, p in model.named_parameters()}

    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **changes}
    model = adapter(LoraConfig(**config))
    mask = Mask.ones({name: p for name, p in model.named_parameters() if p.requires_grad})
    rewind = RewindPoint.capture(model)
    Ticket(mask, rewind, ticket_info(model, mask, rewind, LotteryConfig())).save_pretrained(tmp_path)
    ticket = Ticket.from_pretrained(tmp_path)
    again = adapter(LoraConfig(**ticket.info["lora"]))
    assert shapes(again) == shapes(model)
    scaling = {name: m.scaling for name, m in model.named_modules() if hasattr(m, "scaling")}
    assert {name: m.scaling for name, m in again.named_modules() if hasattr(m, "scaling")} == scaling
    ticket.apply_to(again)
    text = (tmp_path / "README.md").read_text()  # a local base: no code can say where it is
    assert 'get_peft_model(base, LoraConfig(**ticket.info["lora"]))' in text and "is not a model on the Hub" in text
