from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models import MiniViT, ModelSpec
from pipeline.models.clip_bridge import from_clip, to_clip

Randomise = Callable[[nn.Module], None]
Make = Callable[..., MiniViT]


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """CLIP's residual attention block, of stock parts, under OpenAI's names."""

    def __init__(self, width: int, heads: int, activation: nn.Module) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        for name, module in (
            ("c_fc", nn.Linear(width, 4 * width)),
            ("gelu", activation),
            ("c_proj", nn.Linear(4 * width, width)),
        ):
            self.mlp.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:  # [T, B, D]
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    """CLIP's vision tower (Radford et al. 2021), of stock parts, under OpenAI's names."""

    def __init__(
        self, size: int, patch: int, width: int, layers: int, heads: int, embedding: int, activation: nn.Module
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((size // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(Block(width, heads, activation) for _ in range(layers)))
        self.proj = nn.Parameter(torch.zeros(width, embedding))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.transformer.resblocks(self.ln_pre(x).transpose(0, 1)).transpose(0, 1)
        return self.ln_post(x[:, 0]) @ self.proj


@pytest.fixture(params=["quick_gelu", "gelu"])
def tower(request: pytest.FixtureRequest, randomise: Randomise) -> tuple[Tower, str]:
    """A randomised tower of two heads of 64 channels, and its activation."""
    activation = QuickGELU() if request.param == "quick_gelu" else nn.GELU()
    model = Tower(32, 8, 128, 3, 2, 48, activation).eval()
    randomise(model)
    return model, request.param


def build(state: dict[str, Tensor], spec: ModelSpec) -> MiniViT:
    model = MiniViT.from_spec(spec, init="torch").eval()
    model.load_state_dict(state)
    return model


def hugging_face(tower: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """OpenAI's names changed to Hugging Face's, by rule: another way than the bridge's tables."""
    new = {}
    for key, tensor in tower.items():
        if ".attn.in_proj_" in key:
            head, part = key.split("attn.in_proj_")
            for name, third in zip("qkv", tensor.chunk(3), strict=True):
                new[f"{head}self_attn.{name}_proj.{part}"] = third.contiguous()
        else:
            new[key] = tensor
    words = {
        "transformer.resblocks": "vision_model.encoder.layers",
        ".attn.out_proj": ".self_attn.out_proj",
        ".ln_1": ".layer_norm1",
        ".ln_2": ".layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "ln_pre": "vision_model.pre_layrnorm",
        "ln_post": "vision_model.post_layernorm",
        "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "class_embedding": "vision_model.embeddings.class_embedding",
        "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    }
    renamed = {}
    for key, tensor in new.items():
        for old, word in words.items():
            key = key.replace(old, word)
        renamed[key] = tensor
    renamed["visual_projection.weight"] = renamed.pop("proj").t().contiguous()
    return renamed


def test_openai_tower_both_ways_with_equal_outputs(tower: tuple[Tower, Any]) -> None:
    theirs, activation = tower
    whole = {f"visual.{key}": tensor for key, tensor in theirs.state_dict().items()}
    whole |= {"transformer.resblocks.0.attn.in_proj_weight": torch.zeros(9, 3), "logit_scale": torch.ones(())}
    state, spec = from_clip(whole, activation=activation)
    assert (
        spec.backbone.num_heads,
        spec.backbone.grid,
        spec.backbone.patch,
        spec.num_classes,
        spec.backbone.embed_norm,
    ) == (2, (4, 4), (8, 8), 48, True)
    images = torch.randn(2, 3, 32, 32)
    expected = theirs(images)
    assert expected.std() > 1e-2
    torch.testing.assert_close(build(state, spec)(images), expected, atol=1e-5, rtol=1e-5)
    back = {key.removeprefix("visual."): tensor for key, tensor in to_clip(state, spec).items()}
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in theirs.state_dict().items())


def test_hugging_face_tower_both_ways(tower: tuple[Tower, Any]) -> None:
    theirs, activation = tower
    renamed = hugging_face(theirs.state_dict(), 3)
    extra = {"text_model.final_layer_norm.bias": torch.zeros(3), "logit_scale": torch.ones(())}
    state, spec = from_clip({**renamed, **extra}, activation=activation)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(build(state, spec)(images), theirs(images), atol=1e-5, rtol=1e-5)
    back = to_clip(state, spec, "hugging_face")
    assert back.keys() == renamed.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in renamed.items())


def test_a_tower_without_projection_gets_an_empty_head(tower: tuple[Tower, Any]) -> None:
    state = {key: tensor for key, tensor in tower[0].state_dict().items() if key != "proj"}
    state, spec = from_clip(state)
    assert spec.num_classes == 1
    assert not state["mlp_head.1.weight"].any()


@pytest.mark.parametrize(
    "options",
    [{}, {"positions": "none"}, {"positions": "sincos", "activation": "quick_gelu"}, {"prefix_positions": False}],
)
def test_biases_that_clip_lacks_are_folded_exactly(small_model: Make, options: dict[str, Any]) -> None:
    """A trained model has biases at its patches and its head; an equal tower has none."""
    ours = small_model(embed_norm=True, eps=1e-5, **options)
    activation = QuickGELU() if ours.spec.backbone.activation == "quick_gelu" else nn.GELU()
    theirs = Tower(16, 4, 32, 2, 2, 5, activation).eval()
    state = {key.removeprefix("visual."): tensor for key, tensor in to_clip(ours.state_dict(), ours.spec).items()}
    assert ours.spec.backbone.mlp_dim == 128
    theirs.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(theirs(images), ours(images), atol=1e-5, rtol=1e-5)


def test_surgery_takes_the_tower_to_another_size(tower: tuple[Tower, Any]) -> None:
    from pipeline.models import adapt, build_spec

    theirs, activation = tower
    state, spec = from_clip(theirs.state_dict(), activation=activation)
    target = build_spec(
        "nano",
        image_size=64,
        patch_size=8,
        num_classes=3,
        **{name: getattr(spec.backbone, name) for name in ("embed_dim", "depth", "num_heads", "mlp_dim", "activation")},
        embed_norm=True,
        registers=2,
    )
    adapted, report = adapt(state, spec, target)
    assert adapted["pos_embed"].shape == (1, 64 + 3, 128)
    assert report.probe.feature_cosine > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"model\.embed_norm: found False, but CLIP's vision tower has True"),
        ({"embed_norm": True}, r"model\.eps"),
        ({"embed_norm": True, "eps": 1e-5, "registers": 1}, r"model\.registers"),
        ({"embed_norm": True, "eps": 1e-5, "activation": "relu"}, r"model\.activation"),
        ({"embed_norm": True, "eps": 1e-5, "pool": "avg"}, r"model\.pool"),
        (
            {"embed_norm": True, "eps": 1e-5, "num_classes": 40},
            r"model\.num_classes: .* cannot express the bias of a head with 40",
        ),
    ],
)
def test_what_clip_cannot_express_is_refused(small_model: Make, options: dict[str, Any], message: str) -> None:
    model = small_model(**options)
    with pytest.raises(ModelError, match=message):
        to_clip(model.state_dict(), model.spec)


def test_foreign_tensors_are_refused(tower: tuple[Tower, Any]) -> None:
    state = tower[0].state_dict()
    with pytest.raises(ModelError, match=r"its tensor 'attn_pool\.query' does not fit into a MiniViT"):
        from_clip({**state, "attn_pool.query": torch.zeros(1)})
    with pytest.raises(ModelError, match="a ResNet"):
        from_clip({"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match="expected one for CLS and a square grid"):
        from_clip({**state, "positional_embedding": torch.zeros(8, 128)})
