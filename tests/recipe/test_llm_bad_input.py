"""What a user of the language-model recipes can get wrong: one sentence, exit status 2, nothing trained."""

from __future__ import annotations

import json
import sys

import pytest

from hf_lottery import cli
from tests import tiny_lm

ROW = {"instruction": "add", "input": "", "output": "three"}
NF4 = "quantization={load_in_4bit: true}"


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a recipe on a tiny model and table, and gives what stderr says: of it, hf-lottery's own line."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tiny_lm.save_model(tmp_path / "model")
    tiny_lm.save_table(tmp_path / "table")

    def run(*words, recipe="smollm2/135m-lora"):
        small = [f"model.name_or_path={tmp_path / 'model'}", "model.gguf_file=null", f"data.path={tmp_path / 'table'}"]
        small += ["data.validation_size=4", "data.test_size=4", "data.max_length=400", "training.use_cpu=true"]
        out = f"training.output_dir={tmp_path / 'out'}"
        monkeypatch.setattr(sys, "argv", ["hf-lottery", "run", recipe, *small, out, *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and "Traceback" not in err
        assert not list((tmp_path / "out").rglob("result.json"))
        (line,) = [line for line in err.splitlines() if line.startswith("hf-lottery: ")]
        return line

    return run


def _table(folder, rows):
    folder.mkdir()
    text = rows if isinstance(rows, str) else json.dumps(rows)
    (folder / "train.json").write_text(text)
    return f"data.path={folder}"


@pytest.mark.parametrize(
    ("rows", "words", "said"),
    [
        ([{"q": "a", "a": "b"}] * 20, [], "split train has the columns q, a, and data.instruction_column is 'instr"),
        ([{**ROW, "output": "x" * 900}] * 20, ["data.max_length=900"], "900 tokens, but the model's context is 512"),
        ([{**ROW, "instruction": "x" * 900}] * 20, [], "no example is left to train on, of 12 rows: 12 left out bec"),
        ([{**ROW, "output": " "}] * 20, [], "no example is left to train on, of 12 rows: 12 left out for an empty an"),
        ([{**ROW, "output": None}] * 20, [], "no example is left to train on, of 12 rows: 12 left out for an empty "),
        ([ROW] * 5, [], "data.validation_size is 4, of 1 examples"),
        ("{{{", [], "no data set can be read from the folder"),
        ([ROW] * 20, ["data.template=chat"], "has no chat template: set data.template=alpaca"),
    ],
)
def test_data_that_cannot_be_learned_from(rows, words, said, refused, tmp_path):
    assert said in refused(_table(tmp_path / "bad", rows), *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["peft.target_modules=[q_prj, v_proj]"], "'q_prj' matches no module; the nearest name is 'q_proj'"),
        (["peft.target_modules=.*q_prj"], "peft.target_modules: '.*q_prj' matches no module"),
        (["peft.modules_to_save=[lm_hed]"], "'lm_hed' matches no module; the nearest name is 'lm_head'"),
        (["lottery.target_modules=[lora_Q]"], "'lora_Q' matches no module; the nearest name is 'lora_"),
        (["lottery.target_modules=[q_proj, up_proj]"], "'up_proj' asks for weights that are not trained, such as"),
        ([NF4, "lottery.target_modules=[up_proj]"], "in 4 bits or not, only the adapter has a mask"),
        ([NF4, "peft=null"], "quantised weights cannot be trained, masked or rewound: add the section peft"),
        (["peft.init_lora_weights=pissa"], "peft.init_lora_weights is 'pissa'"),
    ],
)  # fmt: skip
def test_targets_that_are_not_there_or_cannot_be_pruned(words, said, refused):
    if NF4 in words:
        pytest.importorskip("bitsandbytes")
    assert said in refused(*words)


def test_a_base_model_that_does_not_fit_is_refused_from_its_config_alone(refused, monkeypatch, tmp_path):
    (tmp_path / "large").mkdir()
    tiny_lm.config(hidden_size=4096, intermediate_size=16384, num_hidden_layers=80).save_pretrained(tmp_path / "large")
    monkeypatch.setattr("hf_lottery.runner.memory.memory_of_this_machine", lambda recipe: 24 << 30)
    line = refused(f"model.name_or_path={tmp_path / 'large'}", f"data.tokenizer={tmp_path / 'model'}")
    assert "large does not fit: 20,134,383,616 parameters" in line and "there are 24.0 GiB: set model.dtype=bf" in line


def test_a_folder_without_tokenizer_files_has_no_tokenizer(refused, tmp_path):
    from transformers import Qwen2Config

    # of this kind transformers makes a tokenizer of no tokens, without a word
    Qwen2Config(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=2).save_pretrained(tmp_path / "bare")  # fmt: skip
    assert "which is no folder with a tokenizer" in refused(f"model.name_or_path={tmp_path / 'bare'}")
