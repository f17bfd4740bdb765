from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models import VARIANTS, HeadSpec, MiniViT, ModelSpec, build_spec
from pipeline.models.heads.head import Features
from pipeline.models.self_attention import SelfAttention

Make = Callable[..., MiniViT]
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4}


def read(model: MiniViT, tokens: Tensor) -> Tensor:
    """The logits of the encoder's whole output [B, P+N, D]."""
    return model.apply_heads(Features(tokens, {}, (0, 0), model.spec.backbone.tokens.num_prefix))


class StockMiniViT(nn.Module):
    """The tutorial's model put together from stock `torch.nn` parts."""

    def __init__(
        self, img_size: int, patch_size: int, embed_dim: int, depth: int, num_heads: int, num_classes: int = 10
    ) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (img_size // patch_size) ** 2 + 1, embed_dim))
        layer = nn.TransformerEncoderLayer(d_model=embed_dim, nhead=num_heads, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, num_layers=depth)
        self.mlp_head = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.transformer(x + self.pos_embed[:, : x.size(1)])
        logits: Tensor = self.mlp_head(x[:, 0])
        return logits


@pytest.fixture
def pair(randomise: Callable[[nn.Module], None]) -> tuple[MiniViT, StockMiniViT]:
    """Ours and stock, with the same random weights everywhere."""
    ours, stock = MiniViT(**SMALL), StockMiniViT(**SMALL)
    randomise(stock)
    ours.load_state_dict(stock.state_dict())
    return ours, stock


def test_default_signature_is_the_tutorials() -> None:
    with torch.device("meta"):
        model = MiniViT(init="torch")
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["patch_embed.proj.weight"] == (768, 3, 16, 16)
    assert shapes["pos_embed"] == (1, 197, 768)
    assert shapes["transformer.layers.5.linear1.weight"] == (2048, 768)
    assert shapes["mlp_head.1.weight"] == (10, 768)
    assert model.transformer.layers[0].self_attn.num_heads == 8


def test_tutorial_has_stocks_keys_and_initial_values() -> None:
    torch.manual_seed(0)
    ours = MiniViT(**SMALL).state_dict()
    torch.manual_seed(0)
    stock = StockMiniViT(**SMALL).state_dict()
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[name], stock[name]) for name in stock)
    assert not ours["cls_token"].any()
    assert not ours["pos_embed"].any()


@pytest.mark.parametrize("training", [False, True])
def test_tutorial_has_stocks_outputs_and_gradients(pair: tuple[MiniViT, StockMiniViT], training: bool) -> None:
    ours, stock = pair
    for model in pair:
        model.train(training)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
            elif hasattr(module, "rate"):
                module.rate = 0.0
    images = torch.randn(4, 3, 32, 32)
    outputs = [model(images) for model in pair]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)
    for output in outputs:
        output.square().mean().backward()
    gradients = dict(stock.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-5, rtol=1e-4)


def test_tutorial_drops_out_in_training_only(pair: tuple[MiniViT, StockMiniViT]) -> None:
    ours, _ = pair
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(ours.train()(images), ours(images))
    assert torch.equal(ours.eval()(images), ours(images))


def test_prenorm_gelu_equals_stock_encoder(small_model: Make) -> None:
    """The other options of torch's encoder also match it."""
    ours = small_model(eps=1e-5)
    layer = nn.TransformerEncoderLayer(
        32, 2, ours.spec.backbone.mlp_dim, 0.0, "gelu", batch_first=True, norm_first=True
    )
    stock = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    stock.load_state_dict(ours.transformer.state_dict())
    x = torch.randn(2, 17, 32)
    torch.testing.assert_close(ours.transformer(x), stock(x), atol=1e-5, rtol=1e-5)


OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "average pool": {"pool": "avg"},
    "no class token": {"class_token": False},
    "registers": {"registers": 3},
    "layer scale and qk norm": {"layer_scale": 0.5, "qk_norm": True},
    "sine-cosine": {"positions": "sincos"},
    "no positions": {"positions": "none"},
    "post norm": {"norm": "post"},
    "drop path and dropout": {"drop_path": 0.2, "dropout": 0.1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_logits_are_those_of_all_features(small_model: Make, options: dict[str, object]) -> None:
    """The shortcut through the last layer changes nothing, at the model's size and at another."""
    model = small_model(**options)
    for size in ((16, 16), (24, 20)):
        images = torch.randn(2, 3, *size)
        features = model.forward_features(images)
        assert features.shape == (2, model.spec.backbone.tokens.num_prefix + size[0] * size[1] // 16, 32)
        torch.testing.assert_close(model(images), read(model, features), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_parameter_learns(small_model: Make, options: dict[str, object]) -> None:
    model = small_model(**options).train()
    torch.manual_seed(0)
    model(torch.randn(8, 3, 24, 20)).square().sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


EVERY_PART = [
    {},
    {"dist_token": True, "registers": 2, "mask_token": True},
    {"qk_norm": True, "embed_norm": True, "layer_scale": 0.1},
    {"positions": "sincos", "pool": "avg", "class_token": False, "registers": 1},
    {"positions": "none", "mask_token": True, "prefix_positions": False},
    {"norm": "post", "activation": "relu", "dist_token": True},
]


@pytest.mark.parametrize("options", EVERY_PART)
def test_a_parameters_layer_is_the_first_place_that_it_acts_on(small_model: Make, options: dict[str, object]) -> None:
    model = small_model(**options)
    images = torch.randn(2, 3, 16, 16)
    mask = torch.arange(16).expand(2, -1) < 4 if options.get("mask_token") else None
    places = [model.embed(images, mask)]
    places += model.transformer.layer_outputs(places[0])
    places.append(read(model, places[-1]))
    unseen = dict(model.named_parameters())
    for layer, place in enumerate(places):
        gradients = torch.autograd.grad(place.sum(), list(unseen.values()), retain_graph=True, allow_unused=True)
        acting = [name for name, gradient in zip(unseen, gradients, strict=True) if gradient is not None]
        assert [model.layer_of(name) for name in acting] == [layer] * len(acting)
        unseen = {name: parameter for name, parameter in unseen.items() if name not in acting}
    assert not unseen


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_are_counted_up_to_the_depth_of_every_variant(variant: str) -> None:
    with torch.device("meta"):
        spec = build_spec(variant, image_size=4 * VARIANTS[variant].patch, num_classes=10, dist_token=True)
        model = MiniViT.from_spec(spec, init="torch")
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert set(layers.values()) == set(range(model.spec.backbone.depth + 2))
    assert layers["dist_head.weight"] == layers["mlp_head.1.weight"] == model.spec.backbone.depth + 1


def test_a_parameter_without_a_layer_is_our_mistake(small_model: Make) -> None:
    model = small_model()
    for name in ("new_head.weight", "transformer.norm.weight"):
        with pytest.raises(AssertionError, match=f"{name.removeprefix('transformer.')}: belongs to no known layer"):
            model.layer_of(name)


@pytest.mark.parametrize("options", EVERY_PART)
def test_weight_decay_acts_on_products_alone(small_model: Make, options: dict[str, object]) -> None:
    model = small_model(**options)
    factors = {
        f"{name}.{weight}"
        for name, module in model.named_modules()
        for weight in ("weight", "in_proj_weight")
        if isinstance(module, (nn.Linear, nn.Conv2d, SelfAttention)) and hasattr(module, weight)
    }
    assert {name for name, _ in model.named_parameters() if model.decays(name)} == factors


def test_distillation_logits_are_averaged(small_model: Make, small_spec: Callable[..., ModelSpec]) -> None:
    model = small_model(dist_token=True)
    images = torch.randn(2, 3, 16, 16)
    normed = model.mlp_head[0](model.forward_features(images))
    own = F.linear(normed[:, 1], model.dist_head.weight, model.dist_head.bias)
    expected = (model.mlp_head[1](normed[:, 0]) + own) / 2
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)


def test_masked_patches_are_not_seen(small_model: Make, small_spec: Callable[..., ModelSpec]) -> None:
    model = small_model(mask_token=True)
    images, mask = torch.randn(2, 3, 16, 16), torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 0] = True
    changed = images.clone()
    changed[:, :, :4, :4] += 1
    torch.testing.assert_close(model.forward_features(images, mask), model.forward_features(changed, mask))
    assert not torch.allclose(model.forward_features(images), model.forward_features(images, mask))


@pytest.mark.parametrize("size", [(16, 16), (24, 20)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_kept_patches_are_encoded_as_if_there_were_no_others(
    small_model: Make, options: dict[str, object], size: tuple[int, int]
) -> None:
    model = small_model(**options)
    images, prefix = torch.randn(3, 3, *size), model.spec.backbone.tokens.num_prefix
    patches = size[0] * size[1] // 16
    keep = torch.stack([torch.randperm(patches)[:5] for _ in images])
    tokens = model.embed(images)
    kept = torch.cat([tokens[:, :prefix], tokens[:, prefix:].take_along_dim(keep[..., None], dim=1)], dim=1)
    torch.testing.assert_close(model.embed(images, keep=keep), kept)
    torch.testing.assert_close(model.forward_features(images, keep=keep), model.transformer(kept))


def test_keeping_all_patches_in_order_changes_nothing(small_model: Make) -> None:
    model = small_model(registers=2)
    images = torch.randn(2, 3, 16, 24)
    keep = torch.arange(24).expand(2, -1)
    torch.testing.assert_close(model.forward_features(images, keep=keep), model.forward_features(images))


def test_per_batch_multi_scale_equals_a_model_of_that_size(small_model: Make) -> None:
    """Interpolating on the fly is the same as surgery to that size."""
    from pipeline.models import adapt

    model = small_model()
    larger = model.spec.with_backbone(grid=(7, 5))
    state, _ = adapt(model.state_dict(), model.spec, larger)
    other = MiniViT.from_spec(larger).eval()
    other.load_state_dict(state)
    images = torch.randn(2, 3, 28, 20)
    torch.testing.assert_close(model(images), other(images), atol=1e-5, rtol=1e-5)


def test_interpolated_positions_follow_the_weights(small_model: Make) -> None:
    """Engines write weights through `.data`, which version counters do not notice; no stale value may remain."""
    model = small_model()
    images = torch.randn(1, 3, 28, 20)
    with torch.no_grad():
        before = model(images)
        assert model.pos_embed is not None
        model.pos_embed.data.mul_(-3)
        assert not torch.allclose(model(images), before, atol=1e-3)


def test_bfloat16_weights_train_on_a_cpu(small_model: Make) -> None:
    """As DeepSpeed's bf16 engine runs it, at the model's size and at another."""
    reference = small_model(registers=2, layer_scale=0.5, qk_norm=True)
    model = MiniViT.from_spec(reference.spec)
    model.load_state_dict(reference.state_dict())
    model = model.to(torch.bfloat16)
    reference.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    for size in ((16, 16), (24, 20)):
        images = torch.randn(2, 3, *size)
        logits = model(images)
        logits.float().square().sum().backward()
        torch.testing.assert_close(logits.float(), reference(images), atol=0.05, rtol=0.05)
        assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())


def test_intermediates_are_maps_of_the_last_layers(small_model: Make) -> None:
    model = small_model(registers=2)
    images = torch.randn(2, 3, 16, 24)
    maps = model.forward_intermediates(images, n_layers=2)
    assert [tuple(m.shape) for m in maps] == [(2, 32, 4, 6)] * 2
    features = model.forward_features(images)[:, 3:]
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), features)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 1, 16, 16), r"\[batch, 3, height, width\]"), ((1, 3, 18, 16), "height 18"), ((1, 3, 16, 2), "width 2")],
)
def test_wrong_images_are_refused(small_model: Make, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        small_model()(torch.zeros(shape))


def test_mask_without_a_token_is_refused(small_model: Make) -> None:
    with pytest.raises(ModelError, match=r"\[MASK\]"):
        small_model().forward_features(torch.zeros(1, 3, 16, 16), torch.ones(1, 16, dtype=torch.bool))


@pytest.mark.parametrize("move", [nn.Module.bfloat16, nn.Module.half, lambda model: model.to("cpu", torch.bfloat16)])
def test_sine_cosine_positions_keep_their_digits_in_any_precision(move: Callable[[nn.Module], nn.Module]) -> None:
    model = MiniViT(**SMALL, positions="sincos")
    table = model.state_dict()["pos_embed"].clone()
    move(model)
    kept = model.state_dict()["pos_embed"]
    assert kept.dtype == torch.float32
    assert torch.equal(kept, table)
    dtype = model.cls_token.dtype
    assert dtype != torch.float32
    assert model(torch.randn(1, 3, 32, 32, dtype=dtype)).dtype == dtype
    assert model(torch.randn(1, 3, 48, 32, dtype=dtype)).dtype == dtype


def test_several_heads_answer_by_name_and_one_that_is_not_called_leaves_the_features(small_model: Make) -> None:
    backbone = small_model().spec.backbone
    heads = {"mlp_head": HeadSpec("classifier", 5), "dense": HeadSpec("linear", 5, {"layers": [0, 1]})}
    decoder = {"decoder": HeadSpec("mae_decoder", options={"dim": 16, "depth": 1})}
    images = torch.randn(2, 3, 24, 16)
    both = small_model(ModelSpec(backbone, heads | decoder, "several"))
    outputs = both(images)
    assert list(outputs) == ["mlp_head", "dense"]
    assert (outputs["mlp_head"].shape, outputs["dense"].shape) == ((2, 5), (2, 5, 6, 4))
    one = small_model(ModelSpec(backbone, {"mlp_head": heads["mlp_head"]}))
    one.load_state_dict({name: both.state_dict()[name] for name in one.state_dict()})
    torch.testing.assert_close(one(images), outputs["mlp_head"], atol=1e-5, rtol=1e-5)
    alone = small_model(ModelSpec(backbone, decoder, "mae"))
    torch.testing.assert_close(alone(images), alone.forward_features(images))
    assert {alone.layer_of(name) for name in alone.state_dict() if name.startswith("decoder.")} == {3}
    assert not alone.decays("decoder.mask_token")
    assert alone.decays("decoder.embed.weight")
