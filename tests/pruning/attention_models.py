"""Tiny models of many families with attention, and an input for each."""

from __future__ import annotations

import torch
import transformers as hf

SIZES = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
MIXED = {**GROUPED, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
GPT = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
FALCON = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGES = {
    "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
T5 = {"vocab_size": 40, "d_model": 32, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
BART = {
    "vocab_size": 40, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": 2,
}  # fmt: skip
WHISPER = {**BART, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 20}
SPEECH = {
    **SIZES, "conv_dim": (8, 8), "conv_kernel": (8, 3), "conv_stride": (4, 2), "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2,
}  # fmt: skip
RELATIVE = {**SIZES, "relative_attention": True, "pos_att_type": "c2p|p2c", "max_position_embeddings": 32}
VISION_TEXT = {"text_config": {**SIZES, "num_attention_heads": 2}, "vision_config": IMAGES}
SAM = {
    "vision_config": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
        "output_channels": 16, "mlp_dim": 24, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 8,
    },
    "prompt_encoder_config": {"hidden_size": 16, "image_size": 32, "patch_size": 8, "mask_input_channels": 4},
    "mask_decoder_config": {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_dim": 16,
        "iou_head_hidden_dim": 16, "attention_downsample_rate": 2,
    },
}  # fmt: skip
IDS = torch.arange(3, 13).view(2, 5)


def tokens():
    return {"input_ids": IDS}


def both():
    return {"input_ids": IDS, "decoder_input_ids": IDS}


def images(size=16):
    return {"pixel_values": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))}


def speech():
    return {"input_values": torch.randn(2, 400, generator=torch.Generator().manual_seed(0))}


def spectrograms():
    return {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": IDS}


def decisions():
    draw = torch.Generator().manual_seed(0)
    given = {"states": 17, "actions": 4, "rewards": 1, "returns_to_go": 1}
    steps = {"timesteps": torch.arange(3).repeat(2, 1), "attention_mask": torch.ones(2, 3)}
    return {name: torch.randn(2, 3, size, generator=draw) for name, size in given.items()} | steps


def cross_attending_gpt2():
    decoder = hf.GPT2Config(**{**GPT, "n_head": 2}, add_cross_attention=True, is_decoder=True)
    return hf.EncoderDecoderModel(encoder=hf.BertModel(hf.BertConfig(**SIZES)), decoder=hf.GPT2LMHeadModel(decoder))


# family -> (class, config, input, numbers of heads in the order of the layers, those of the encoder first)
FAMILIES = {
    "llama": (hf.LlamaModel, hf.LlamaConfig(**GROUPED), tokens, [2, 2]),
    "llama of one key": (hf.LlamaModel, hf.LlamaConfig(**{**SIZES, "num_key_value_heads": 1}), tokens, [4, 4]),
    "qwen2": (hf.Qwen2Model, hf.Qwen2Config(**GROUPED), tokens, [2, 2]),
    "qwen3": (hf.Qwen3Model, hf.Qwen3Config(**GROUPED, head_dim=16), tokens, [2, 2]),
    "gemma": (hf.GemmaModel, hf.GemmaConfig(**GROUPED, head_dim=4), tokens, [2, 2]),
    "phi": (hf.PhiModel, hf.PhiConfig(**GROUPED), tokens, [2, 2]),
    "phi3": (hf.Phi3Model, hf.Phi3Config(**GROUPED), tokens, [2, 2]),
    "phi3 of one key": (hf.Phi3Model, hf.Phi3Config(**{**SIZES, "num_key_value_heads": 1}), tokens, [4, 4]),
    "dbrx": (
        hf.DbrxModel,
        hf.DbrxConfig(
            vocab_size=40, d_model=32, n_heads=4, n_layers=2, max_seq_len=32,
            attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
            ffn_config={"ffn_hidden_size": 16, "moe_num_experts": 2, "moe_top_k": 1},
        ),
        tokens, [2, 2],
    ),
    "mixtral": (hf.MixtralModel, hf.MixtralConfig(**GROUPED, num_local_experts=2), tokens, [2, 2]),
    "qwen2 moe": (hf.Qwen2MoeModel, hf.Qwen2MoeConfig(**MIXED), tokens, [2, 2]),
    "gpt2": (hf.GPT2Model, hf.GPT2Config(**GPT), tokens, [4, 4]),
    "openai": (hf.OpenAIGPTModel, hf.OpenAIGPTConfig(**GPT), tokens, [4, 4]),
    "imagegpt": (hf.ImageGPTModel, hf.ImageGPTConfig(**GPT), tokens, [4, 4]),
    "decision transformer": (
        hf.DecisionTransformerModel, hf.DecisionTransformerConfig(hidden_size=32, n_layer=2, n_head=4, n_inner=24),
        decisions, [4, 4],
    ),
    "gptj": (hf.GPTJModel, hf.GPTJConfig(**GPT, rotary_dim=4), tokens, [4, 4]),
    "bigcode": (hf.GPTBigCodeModel, hf.GPTBigCodeConfig(**GPT, multi_query=False), tokens, [4, 4]),
    "bigcode of one key": (hf.GPTBigCodeModel, hf.GPTBigCodeConfig(**GPT), tokens, [4, 4]),
    "neox": (hf.GPTNeoXModel, hf.GPTNeoXConfig(**SIZES), tokens, [4, 4]),
    "neox japanese": (hf.GPTNeoXJapaneseModel, hf.GPTNeoXJapaneseConfig(**SIZES), tokens, [4, 4]),
    "bloom": (hf.BloomModel, hf.BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=4), tokens, [4, 4]),
    "falcon": (hf.FalconModel, hf.FalconConfig(**FALCON, multi_query=False), tokens, [4, 4]),
    "falcon of one key": (hf.FalconModel, hf.FalconConfig(**FALCON, multi_query=True), tokens, [4, 4]),
    "falcon in groups": (
        hf.FalconModel, hf.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2), tokens, [2, 2],
    ),
    "persimmon": (hf.PersimmonModel, hf.PersimmonConfig(**SIZES), tokens, [4, 4]),
    "mpt": (
        hf.MptModel, hf.MptConfig(vocab_size=40, d_model=32, n_heads=4, n_layers=2, max_seq_len=32), tokens, [4, 4],
    ),
    "opt": (
        hf.OPTModel, hf.OPTConfig(**SIZES, ffn_dim=24, word_embed_proj_dim=32, max_position_embeddings=32), tokens,
        [4, 4],
    ),
    "bark": (
        hf.BarkSemanticModel,
        hf.BarkSemanticConfig(
            input_vocab_size=40, output_vocab_size=40, hidden_size=32, num_layers=2, num_heads=4, block_size=32
        ),
        tokens, [4, 4],
    ),
    "modernbert": (
        hf.ModernBertModel, hf.ModernBertConfig(**SIZES, cls_token_id=1, sep_token_id=2), tokens, [4, 4],
    ),
    "bert": (hf.BertModel, hf.BertConfig(**SIZES), tokens, [4, 4]),
    "roberta": (hf.RobertaModel, hf.RobertaConfig(**SIZES), tokens, [4, 4]),
    "deberta": (hf.DebertaModel, hf.DebertaConfig(**RELATIVE), tokens, [4, 4]),
    "deberta v2": (
        hf.DebertaV2Model, hf.DebertaV2Config(**RELATIVE, position_buckets=8, share_att_key=True), tokens, [4, 4],
    ),
    "albert": (hf.AlbertModel, hf.AlbertConfig(**SIZES, embedding_size=16), tokens, [4]),
    "distilbert": (
        hf.DistilBertModel, hf.DistilBertConfig(vocab_size=40, dim=32, n_heads=4, n_layers=2, hidden_dim=24), tokens,
        [4, 4],
    ),
    "mpnet": (hf.MPNetModel, hf.MPNetConfig(**SIZES), tokens, [4, 4]),
    "xlm": (hf.XLMModel, hf.XLMConfig(vocab_size=40, emb_dim=32, n_layers=2, n_heads=4), tokens, [4, 4]),
    "t5": (hf.T5Model, hf.T5Config(**T5), both, [4] * 6),
    "bart": (hf.BartModel, hf.BartConfig(**BART), both, [4] * 2 + [2] * 4),
    "marian": (hf.MarianModel, hf.MarianConfig(**BART), both, [4] * 2 + [2] * 4),
    "whisper": (hf.WhisperModel, hf.WhisperConfig(**WHISPER), spectrograms, [4] * 2 + [2] * 4),
    "wav2vec2": (hf.Wav2Vec2Model, hf.Wav2Vec2Config(**SPEECH), speech, [4, 4]),
    "vit": (hf.ViTModel, hf.ViTConfig(**IMAGES), images, [4, 4]),
    "dinov2": (hf.Dinov2Model, hf.Dinov2Config(**IMAGES), images, [4, 4]),
    "swin": (
        hf.SwinModel,
        hf.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4),
        lambda: images(32), [2, 4],
    ),
    "segformer": (
        hf.SegformerModel,
        hf.SegformerConfig(hidden_sizes=[8, 16, 16, 32], num_attention_heads=[1, 2, 4, 8], depths=[1, 1, 1, 1]),
        lambda: images(64), [1, 2, 4, 8],
    ),
    "clip": (hf.CLIPModel, hf.CLIPConfig(**VISION_TEXT), lambda: {**tokens(), **images()}, [2, 2, 4, 4]),
    "blip": (hf.BlipVisionModel, hf.BlipVisionConfig(**IMAGES), images, [4, 4]),
    "blip 2": (hf.Blip2VisionModel, hf.Blip2VisionConfig(**IMAGES), images, [4, 4]),
    "sam": (
        hf.SamModel, hf.SamConfig(**SAM), lambda: {**images(32), "input_points": torch.zeros(2, 1, 1, 2)}, [4] * 9,
    ),
    "gpt2 after bert": (cross_attending_gpt2, None, both, [4, 4, 2, 2, 2, 2]),
}  # fmt: skip


def network(family):
    """(model in evaluation mode with random weights and biases, its input)."""
    make, config, inputs, _ = FAMILIES[family]
    torch.manual_seed(0)
    model = (make() if config is None else make(config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return model, inputs()
