"""A recipe is data: whatever it names, no module is imported and no code is run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hf_lottery import cli
from hf_lottery.recipe.errors import RecipeError
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.tasks.hub import load_splits

EVIL = "open('RAN', 'w').close()\n"


@pytest.mark.parametrize(
    "override",
    [
        "training.deepspeed={torch_autocast: {enabled: true, lower_precision_safe_modules: [evil.X]}}",
        "training.deepspeed=evil.json",
        "training.fsdp_config=evil.json",
        "training.accelerator_config=evil.json",
        "training.lr_scheduler_kwargs='{\"a\": 1}'",
        "peft={megatron_core: evil, megatron_config: {}}",
        "peft={auto_mapping: {base_model_class: X, parent_library: evil}}",
        "lottery.criterion=evil.scores",
        "lottery.criterion=!!python/name:evil.scores",
        "model.config.auto_map={AutoConfig: evil.X}",
        "model.config={text_config: {auto_map: {AutoConfig: evil.X}}}",
        "model.config={a: [{trust_remote_code: true}]}",
        "model.config.trust_remote_code=true",
        "model.config.attn_implementation=someone/kernel",
        "model.config={vision_config: {attn_implementation: someone/kernel}}",
        "model.config={experts_implementation: someone/kernel}",
        "model={name_or_path: x, config: {backbone: someone/model}}",
        "model={name_or_path: x, trust_remote_code: true}",
        "data.trust_remote_code=true",
        "training.trust_remote_code=true",
    ],
)
def test_settings_that_name_code_are_refused(override):
    with pytest.raises(RecipeError):
        load_recipe("quickstart", [override])


@pytest.mark.parametrize("name", ["json", "pandas", "webdataset", "text", "generator", "sql"])
def test_a_reader_of_files_is_no_data_set(name):
    with pytest.raises(ValueError, match=f"data.name is '{name}', which is a reader of files, not a data set"):
        load_splits(name, ["train"])


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"data/data.py": EVIL, "data/evil.py": EVIL}, ["quickstart", "data.path=data"]),
        ({"set/set.py": EVIL}, ["quickstart", "data.name=set"]),
        ({"set/set.py": EVIL}, ["quickstart", "data.name=set/set.py"]),
        ({"model/config.json": '{"model_type": "x", "auto_map": {"AutoConfig": "evil.X", "AutoModel": "evil.Y",'
          '"AutoModelForImageClassification": "evil.Y"}}', "model/evil.py": EVIL},
         ["quickstart", "model={name_or_path: model}"]),
        ({"model/config.json": '{"model_type": "vit", "auto_map": {"AutoConfig": "evil.X", '
          '"AutoModelForImageClassification": "evil.Y"}}', "model/evil.py": EVIL},
         ["quickstart", "model={name_or_path: model}"]),
        ({"evil/__init__.py": EVIL}, ["quickstart", "model={name_or_path: package:evil/x}"]),
        ({"evil/__init__.py": EVIL, "evil/a/__init__.py": EVIL},
         ["quickstart", "model={name_or_path: package:evil.a/x}"]),
        ({"tok/tokenizer_config.json": '{"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["evil.X", null]}}',
          "tok/evil.py": EVIL, "d/train.csv": "text,label\na,0\n", "d/test.csv": "text,label\na,0\n"},
         ["imdb/transformer", "data.path=d", "data.tokenizer=tok"]),
    ],
    ids=["scripts", "script of the folder's name", "script", "model", "known model", "package", "module", "tokenizer"],
)  # fmt: skip
def test_code_that_lies_in_the_folders_of_a_recipe_is_not_run(files, words, tmp_path, monkeypatch, capsys):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")  # as in `python -m hf_lottery`
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for library in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{library}.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever asks whether to run it gets a yes
    words = [*words, "training.max_steps=1", "training.output_dir=out", "training.use_cpu=true"]
    monkeypatch.setattr(sys, "argv", ["hf-lottery", "run", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "hf-lottery: " in capsys.readouterr().err
    assert not Path("RAN").exists()
