"""Guesses the architecture of a checkpoint from the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from pipeline.errors import ModelError

# (pattern of a key, architecture of a checkpoint with such a key). The first match counts, so more specific
# architectures come before general ones.
SIGNS: tuple[tuple[str, str], ...] = (
    (r"visual\.layer1\.0\.conv1\.weight", "CLIP with a ResNet for images; only its Vision Transformers can be read"),
    (r"(.*\.)?layer1\.0\.conv1\.weight", "a ResNet"),
    (r"(.*\.)?decoder_blocks\.0\..*", "MAE's encoder with its decoder; keep the encoder alone to start from it"),
    (r"(.*\.)?blocks\.0\.(mlp\.w[123]|mlp\.w12|mlp\.fc1_g|attn\.q_proj)\.weight", "EVA or another ViT with SwiGLU"),
    (r"(.*\.)?encoder\.layer\.0\.mlp\.(weights_in|gate_proj)\.weight", "DINOv2 or another ViT with SwiGLU"),
    (r"(.*\.)?relative_position_bias_table", "a Swin Transformer or BEiT, with relative positions"),
    (r"(.*\.)?blocks\.0\.(attn\.q_bias|gamma_1)", "BEiT or EVA"),
    (r"(.*\.)?(downsample_layers\.0\.0|stages\.0\.blocks\.0\.conv_dw|features\.1\.0\.block\.0)\.weight", "a ConvNeXt"),
    (r"(.*\.)?convnextv?2?\.embeddings\..*", "a ConvNeXt in Hugging Face's layout"),
    (r"conv_stem\.weight|features\.0\.0\.weight", "an EfficientNet, MobileNet or another convolutional network"),
    (r"(.*\.)?mlp_tokens\.fc1\.weight", "an MLP-Mixer"),
    (r"register_tokens|mask_token|dino_head\..*", "DINOv2 in its own layout; timm has it as `timm:vit_..._dinov2`"),
    (r"visual\.trunk\..*", "CLIP of open_clip with a timm tower; strip `visual.trunk.` to start from it"),
    (r"(.*\.)?transformer\.resblocks\.0\..*", "CLIP in the layout of OpenAI and open_clip"),
    (r"(.*\.)?vision_model\.embeddings\.class_embedding", "CLIP in Hugging Face's layout"),
    (r"(.*\.)?vision_model\.embeddings\..*", "SigLIP in Hugging Face's layout"),
    (r"(.*\.)?encoder\.layer\.0\.(layer_scale1|norm1)\..*", "DINOv2 in Hugging Face's layout"),
    (r"(.*\.)?encoder\.layer\.0\.attention\.attention\.query\.weight", "a ViT in Hugging Face's layout"),
    (r"(.*\.)?encoder_layer_0\.self_attention\..*", "a ViT in torchvision's layout"),
    (r"blocks\.0\.attn\.qkv\.weight", "a Vision Transformer in timm's layout"),
    (r".+\.blocks\.0\.attn\.qkv\.weight", "a Vision Transformer in timm's layout under a prefix; strip it"),
    (r"transformer\.layers\.0\.self_attn\..*", "a MiniViT"),
    (r"(.*\.)?(model\.layers\.0|h\.0|encoder\.layer\.0)\..*", "a language model"),
)


def recognise(keys: Iterable[str]) -> tuple[str, str] | None:
    """Returns (matching key, its architecture), or None if no key is known."""
    names = sorted(keys)
    for pattern, description in SIGNS:
        sign = re.compile(pattern)
        found = next((name for name in names if sign.fullmatch(name)), None)
        if found is not None:
            return found, description
    return None


def refuse_unplaced(source: str, keys: Collection[str]) -> None:
    """Raises `ModelError` if there are tensors that a MiniViT has no place for; `source` names their origin."""
    if not keys:
        return
    sign = recognise(keys)
    raise ModelError(
        f"{source}: its tensor {min(keys)!r} does not fit into a MiniViT ({len(keys)} such), "
        + (f"as it seems to be {sign[1]}; " if sign else "so its outputs would change; ")
        + "start from another checkpoint"
    )
