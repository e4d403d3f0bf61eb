"""Small models of real classes of transformers with random weights, and one example input for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

STACKED = hasattr(transformers, "__version__") and int(transformers.__version__.split(".")[0]) >= 5
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
ROPES = {"rope_type": "default", "type": "mrope", "mrope_section": [1, 1, 2]}
BERT = {**SIZES, "is_decoder": False}
GPT2 = {
    "vocab_size": 96,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.2,
}
SIGHT = {"hidden_size": 16, "intermediate_size": 24, "patch_size": 4, "initializer_range": 0.2}
CLIP = {**SIGHT, "model_type": "clip_vision_model", "image_size": 8, "num_hidden_layers": 2}
QWEN = {
    **SIGHT,
    "depth": 2,
    "num_heads": 2,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
    "window_size": 8,
}
IMAGE = 95  # the id that stands for a part of an image

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", SIZES),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", {**SIZES, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", SIZES),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**SIZES, "head_dim": 8}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", SIZES),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**SIZES, "head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**SIZES, "head_dim": 8}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2),
    "phi": ("PhiConfig", "PhiForCausalLM", SIZES),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", SIZES),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**SIZES, "num_local_experts": 4}),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM", {**SIZES, **EXPERTS}),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {**SIZES, **EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    ),
    "deepseek": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {
            **SIZES,
            **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
            **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
            **{"v_head_dim": 8, "num_key_value_heads": 4, "moe_intermediate_size": 24},
            "first_k_dense_replace": 1,
        },
    ),
    "bert": ("BertConfig", "BertForMaskedLM", BERT),
    "bert-classes": ("BertConfig", "BertForSequenceClassification", BERT),
    "qwen2.5-vl": (
        "Qwen2_5_VLConfig",
        "Qwen2_5_VLForConditionalGeneration",
        {"text_config": {**SIZES, "rope_scaling": ROPES}, "vision_config": QWEN},
    ),
    "llava": (
        "LlavaConfig",
        "LlavaForConditionalGeneration",
        {
            "text_config": {**SIZES, "model_type": "llama"},
            "vision_config": {**CLIP, "num_attention_heads": 2, "projection_dim": 16},
            "image_token_index": IMAGE,
        },
    ),
}
EXPERT_KINDS = ("mixtral", "olmoe", "qwen2-moe", "deepseek")
VISION_KINDS = ("qwen2.5-vl", "llava")
CAUSAL = [kind for kind in KINDS if not kind.startswith("bert")]


def maker(kind: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Callable[[], Any]:
    """A factory of equal models in eval mode, with norms and biases that are not those of a fresh model."""
    config, model, settings = KINDS[kind]

    def make() -> nn.Module:
        torch.manual_seed(0)
        made = getattr(transformers, model)(getattr(transformers, config)(**{**settings, **changes})).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.dim() <= 1:
                    parameter.add_(torch.rand(parameter.shape) * 0.3)
        return made.to(dtype)

    return make


def inputs(rows: int = 3, length: int = 7) -> dict[str, Tensor]:
    """Ids [rows, length] and the mask of a left padding of the first of them."""
    ids = torch.randint(3, 90, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}
