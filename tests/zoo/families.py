"""Model families of transformers: each one's own configuration, made small, with random weights.

A family is here once it exports with a dynamic batch, and a dynamic length where it has one.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from torch import nn

from tests import torchvision_shim

__all__ = ["FAMILIES", "inputs", "make"]

FAMILIES = """
    aimv2_vision_model albert altclip apertus arcee aria aria_text audioflamingo3 bart beam beit
    bert bert-generation big_bird bigbird_pegasus biogpt bit bitnet blenderbot blenderbot-small
    blip bloom camembert chinese_clip chinese_clip_vision_model clip clip_text_model
    clip_vision_model clipseg cohere cohere2 cohere2_moe conditional_detr convbert convnext
    convnextv2 cosmos3_edge cosmos3_edge_text cosmos3_omni cpmant ctrl cvt cwm dab-detr
    data2vec-audio data2vec-text data2vec-vision deberta deberta-v2 deepseek_v4 deepseek_vl
    deepseek_vl_hybrid deformable_detr deit detr diffllama dinov2 dinov2_with_registers
    dinov3_convnext dinov3_vit distilbert doge dpr dpt electra embedding_gemma2
    embedding_gemma2_text ernie ernie4_5 ernie4_5_moe eurobert evolla exaone4 exaone_moe falcon
    falcon_h1 falcon_mamba fast_vlm flaubert flava flex_olmo flint florence2 fnet focalnet fsmt
    fun_asr_nano fuyu gemma gemma2 gemma3_text gemma4 gemma4_text gemma4_unified
    gemma4_unified_text git glm glm4 glm4_moe glmasr glmasr_encoder glpn got_ocr2 gpt-sw3 gpt2
    gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gradium_phonon_tts granite
    granite_docling granite_docling_text granite_speech granite_speech_plus granite_swa granitemoe
    granitemoe_swa granitemoeshared groupvit gte helium hgnet_v2 hiera hrm_text hubert hy_v3
    hyperclovax hyperclovax_vision_v2 ibert idefics2 idefics3 ijepa imagegpt inkling2_text
    inkling_mm_model inkling_text internlm3 internvl internvl_vision iquestcoder jais2 jamba janus
    jina_embeddings_v3 kolibri1 kosmos-2.5 laguna layoutlm lfm2 lfm2_vl lfm3 lighton_ocr llama
    llama4 llama4_text llava llava_next llava_next_video llava_onevision longt5 luke m2m_100 mamba
    marian markuplm maskformer mbart megatron-bert mellum metaclip_2 mgp-str mimo_v2_flash minimax
    minimax_m2 minimax_m3_vl minimax_m3_vl_text ministral3 mistral mistral3 mixtral mlcd
    mlcd_vision_model mllama mobilebert mobilenet_v1 mobilenet_v2 mobilevit modernbert
    modernbert-decoder modernvbert molmo2 molmo2_text moonshine moshi moss_transcribe_diarize
    mpnet mpt mra mt5 muse_glimmer_text muse_spark_text musicflamingo mvp nanochat nemotron_h
    neomme nllb-moe nomic_bert nystromformer olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt
    ovis2 owlv2 owlvit pegasus pegasus_x persimmon phi phi3 phi4_multimodal phimoe pixio plbart
    pocket_tts poolformer prophetnet pvt pvt_v2 qianfan_ocr qianfan_ocr_vision qwen2 qwen2_audio
    qwen3 qwen3_asr qwen3_vl qwen3_vl_text regnet rembert resnet roberta roberta-prelayernorm
    roc_bert roformer sam3_vit_model sam_hq_vision_model sam_vision_model seamless_m4t
    seamless_m4t_v2 seed_oss segformer sew sew-d siglip_vision_model smollm3 smolvlm splinter
    squeezebert stablelm starcoder2 swiftformer t5 table-transformer tapas tipsv2
    tipsv2_text_model tipsv2_vision_model ultrabert ultravbert umt5 unispeech unispeech-sat
    video_llama_3 video_llava vipllava visual_bert vit vit_msn vitdet voxtral
    voxtral_realtime_encoder wav2vec2 wav2vec2-conformer wavlm xglm xlm xlm-roberta xlm-roberta-xl
    xlnet yolos yoso
""".split()

_SMALL = {
    64: """hidden_size d_model n_embd dim embedding_size word_embed_proj_dim emb_dim hidden_dim""",
    32: """embed_dim image_size text_embed_dim projection_dim moe_intermediate_size
        shared_expert_intermediate_size""",
    2: """num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers
        num_encoder_layers num_decoder_layers depth num_blocks num_key_value_heads
        num_experts_per_tok type_vocab_size""",
    4: """num_attention_heads n_head n_heads num_heads encoder_attention_heads
        decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads
        attention_heads num_experts num_local_experts n_routed_experts""",
    96: """intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner d_inner mlp_dim""",
    16: """d_kv head_dim d_head num_mel_bins feature_size q_lora_rank kv_lora_rank qk_nope_head_dim
        qk_rope_head_dim v_head_dim""",
    99: "vocab_size",
    128: "max_position_embeddings n_positions",
    8: "patch_size",
    1: "bos_token_id decoder_start_token_id n_group topk_group first_k_dense_replace",
    0: "pad_token_id",
}
_SIZES = {name: size for size, names in _SMALL.items() for name in names.split()}


def _shrink(config: Any) -> None:
    from transformers import PretrainedConfig

    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            _shrink(value)
        elif name == "layer_types" and isinstance(value, list | tuple):
            config.layer_types = (list(dict.fromkeys(value))[:2] * 2)[:2]
        elif isinstance(value, int) and not isinstance(value, bool):
            wanted = _SIZES.get(name, value)
            if name.endswith("_token_id") and value >= _SIZES["vocab_size"]:
                wanted = 90
            with contextlib.suppress(Exception):  # what the family computes from others stays
                setattr(config, name, min(value, wanted) if name == "patch_size" else wanted)


def make(family: str) -> nn.Module:
    """The family's base model, a few small layers of it."""
    torchvision_shim.install()
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    config = transformers.CONFIG_MAPPING[family]()
    _shrink(config)
    name = MODEL_MAPPING_NAMES[family]
    torch.manual_seed(0)
    model = getattr(transformers, name if isinstance(name, str) else name[0])(config).eval()
    with contextlib.suppress(Exception):
        model.config.use_cache = False
    return model


def inputs(model: nn.Module, batch: int, length: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments, and which of their dims are dynamic."""
    config: Any = model.config
    names = inspect.signature(model.forward).parameters
    main = model.main_input_name
    generator = torch.Generator().manual_seed(batch + length)
    made: dict[str, torch.Tensor] = {}

    def ids(count: int) -> torch.Tensor:
        return torch.randint(3, 80, (batch, count), generator=generator)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator)

    if "input_ids" in names:
        made["input_ids"] = ids(length)
        if "attention_mask" in names:
            made["attention_mask"] = torch.ones(batch, length, dtype=torch.long)
    if "decoder_input_ids" in names:
        made["decoder_input_ids"] = ids(length + 1)
    vision = getattr(config, "vision_config", config)
    both = "input_ids" in names and vision is not config and hasattr(config, "projection_dim")
    if main == "pixel_values" or ("pixel_values" in names and both):
        size = getattr(vision, "image_size", None) or 32
        height, width = size[-2:] if isinstance(size, list | tuple) else (size, size)
        made["pixel_values"] = noise(getattr(vision, "num_channels", 3), height, width)
    if main == "input_values":
        made["input_values"] = noise(3200)
    if main == "input_features":
        made["input_features"] = noise(getattr(config, "num_mel_bins", 80), 256)
    lengths = {"input_ids": "length", "attention_mask": "length", "decoder_input_ids": "decoded"}
    dynamic = {
        name: {0: "batch", 1: lengths[name]} if name in lengths else {0: "batch"} for name in made
    }
    return made, dynamic
