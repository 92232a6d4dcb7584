"""What is published does not say where it comes from: no absolute path, no home folder, no token."""

from __future__ import annotations

import json

import pytest
import yaml
from peft import LoraConfig, get_peft_model

from hf_lottery.bundled import bundled_recipes
from hf_lottery.config import LotteryConfig
from hf_lottery.mask import Mask
from hf_lottery.ticket.document import dump, parse
from hf_lottery.ticket.info import ticket_info
from hf_lottery.ticket.publishing import published_recipe, published_value
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.ticket import Ticket
from tests import tiny_lm
from tests.ticket.conftest import TOKEN
from tests.ticket_cases import tiny_ticket

RECIPE = """# Made from /home/alice/lenet.yaml

model:
  name_or_path: /home/alice/my models/bert  # the one in ~/models
training:
  output_dir: /home/alice/runs/lenet
  logging_dir: >-
    ~/logs
  hub_token: S3CRET
data:
  path: "C:\\\\Users\\\\alice\\\\digits"
  name: you/digits
"""


@pytest.mark.parametrize(
    ("value", "published"),
    [
        ("/home/alice/runs/lenet", "lenet"),
        ("/home/alice", "folder"),
        ("/home/alice/", "folder"),
        ("~", "folder"),
        ("~bob", "folder"),
        ("~/my runs", "my runs"),
        ("/tmp/x/out/", "out"),
        ("/", "folder"),
        ("C:\\Users\\alice\\runs", "runs"),
        ("C:\\Users\\alice", "folder"),
        ("d:/data/x", "x"),
        ("\\\\server\\share\\x", "x"),
        ("file:///home/alice/x.csv", "x.csv"),
        ("file://localhost/home/alice/x.csv", "x.csv"),
        ("../../home/alice/x", "x"),
        ("json:/home/alice/a,/home/alice/b", "json:a,b"),
        ("PYTHONPATH=/home/alice/src", "PYTHONPATH=src"),
    ],
)
def test_local_paths(value, published):
    assert published_value({"a": [value]}) == {"a": [published]}
    assert yaml.safe_load(published_recipe(yaml.safe_dump({"a": [value]}))) == {"a": [published]}


@pytest.mark.parametrize(
    "value",
    ["outputs/lenet", "../lenet", "./x", "you/bert", "https://host/home/x", "s3://b/k", "package:mlxtend/data", "1/2"]
    + [".*(q|v)_proj", "~5 minutes", "$HOME/x", "</s>", "2:4", "a / b", ""],
)
def test_what_stays(value):
    assert published_value(value) == value
    text = yaml.safe_dump({"a": value})
    assert published_recipe(text) == text


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipes_stay(name):
    text = bundled_recipes()[name].read_text(encoding="utf-8")
    assert published_recipe(text) == text


def test_a_recipe_keeps_its_form():
    found = published_recipe(RECIPE)
    assert "alice" not in found and "S3CRET" not in found and "~" not in found
    assert found.startswith("# Made from lenet.yaml\n\nmodel:\n  name_or_path: bert  # the one in models\n")
    assert yaml.safe_load(found)["training"] == {
        "output_dir": "lenet",
        "logging_dir": "logs",
        "hub_token": "<redacted>",
    }
    assert published_recipe(found) == found
    assert "alice" not in published_recipe("not: [yaml\n/home/alice/x")


def test_a_ticket_and_its_card(tmp_path):
    tiny_ticket(recipe=RECIPE).save_pretrained(tmp_path)
    for name in ("ticket.json", "README.md"):
        text = (tmp_path / name).read_text()
        assert "lenet" in text and "alice" not in text and "S3CRET" not in text


def test_an_older_ticket_is_published_without_them(hub, tmp_path):
    tiny_ticket(recipe="x").save_pretrained(tmp_path)
    path = tmp_path / "ticket.json"
    path.write_bytes(dump({**parse(path.read_bytes()), "recipe": RECIPE}))
    Ticket.push_folder(tmp_path, "you/ticket", token=TOKEN)
    tree = hub.tree("you/ticket")
    assert b"alice" not in tree["ticket.json"] and b"alice" not in tree["README.md"]
    assert Ticket.from_pretrained("you/ticket").info["recipe"] == published_recipe(RECIPE)


def test_a_trained_adapter_does_not_say_where_its_base_is(tmp_path):
    tiny_lm.model().save_pretrained(tmp_path / "base")
    base = type(tiny_lm.model()).from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    mask = Mask.ones({name: p for name, p in model.named_parameters() if p.requires_grad})
    rewind = RewindPoint.capture(model)
    ticket = Ticket(mask, rewind, ticket_info(model, mask, rewind, LotteryConfig()))
    ticket.save_pretrained(tmp_path / "ticket", model=model)
    config = json.loads((tmp_path / "ticket" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    assert not [p for p in (tmp_path / "ticket").iterdir() if str(tmp_path).encode() in p.read_bytes()]
