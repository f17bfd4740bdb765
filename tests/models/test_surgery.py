from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ModelError
from pipeline.models import HeadSpec, MiniViT, ModelSpec, TokenSchema, adapt
from pipeline.models.heads import head_kind
from pipeline.models.model_costs import forward_flops
from pipeline.models.surgery_probe import probe_outputs

Make = Callable[..., MiniViT]
MakeSpec = Callable[..., ModelSpec]


def build(spec: ModelSpec, state: dict[str, torch.Tensor]) -> MiniViT:
    model = MiniViT.from_spec(spec).eval()
    model.load_state_dict(state)
    return model


def with_tokens(spec: ModelSpec, **tokens: object) -> ModelSpec:
    backbone = dataclasses.replace(spec.backbone, tokens=dataclasses.replace(spec.backbone.tokens, **tokens))
    return ModelSpec.classifier(backbone, spec.num_classes)


def test_same_spec_is_identity(small_model: Make) -> None:
    model = small_model(registers=2, layer_scale=0.1, qk_norm=True)
    state, report = adapt(model.state_dict(), model.spec, model.spec)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert not report.changed
    assert report.probe.feature_cosine == pytest.approx(1.0)
    assert report.probe.logit_change == 0.0


def test_a_large_model_is_probed_by_its_first_layers(small_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe notices changes within the layers that it compares, but not those after them."""
    model = small_model(depth=4)
    budget = 2 * forward_flops(model.spec) * 0.6
    monkeypatch.setattr("pipeline.models.surgery_probe.PROBE_FLOPS", budget)
    deep, shallow = ({name: tensor.clone() for name, tensor in model.state_dict().items()} for _ in range(2))
    deep["transformer.layers.3.linear1.weight"].zero_()
    shallow["transformer.layers.0.linear1.weight"].zero_()
    spec = model.spec
    unseen, seen = (probe_outputs(model.state_dict(), spec, other, spec, True) for other in (deep, shallow))
    assert (unseen.layers, unseen.images, unseen.logit_change) == (2, 1, None)
    assert unseen.feature_change == 0 < seen.feature_change


def test_input_is_left_alone(small_model: Make, small_spec: MakeSpec) -> None:
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, _ = adapt(model.state_dict(), model.spec, small_spec(image_size=32, num_classes=9))
    for tensor in state.values():
        tensor.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_other_resolution(small_model: Make, small_spec: MakeSpec) -> None:
    model = small_model(image_size=28)
    state, report = adapt(model.state_dict(), model.spec, small_spec(image_size=56))
    positions = model.state_dict()["pos_embed"]
    grid = positions[:, 1:].transpose(1, 2).unflatten(2, (7, 7))
    expected = F.interpolate(grid, (14, 14), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(state["pos_embed"][:, 1:], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(state["pos_embed"][:, :1], positions[:, :1])
    assert [(c.name, c.action) for c in report.changed] == [("pos_embed", "resized")]
    assert report.changed[0].note == "bicubic, grid 7x7 -> 14x14"


def test_equal_counts_other_grid(small_model: Make, small_spec: MakeSpec) -> None:
    model = small_model(image_size=(8, 32))
    state, report = adapt(model.state_dict(), model.spec, small_spec(image_size=(16, 16)))
    assert state["pos_embed"].shape == model.state_dict()["pos_embed"].shape
    assert report.count("resized") == 1
    assert not torch.allclose(state["pos_embed"], model.state_dict()["pos_embed"], atol=1e-2)


def test_other_patch_size_at_the_same_grid_keeps_the_answer(small_model: Make, small_spec: MakeSpec) -> None:
    """Twice the patch on twice the image sees the same patches; only the images' own resize may blur."""
    model = small_model()
    larger = small_spec(image_size=32, patch_size=8)
    state, report = adapt(model.state_dict(), model.spec, larger)
    patches = torch.randn(2, 3, 4, 4, 4, 4)  # [B, C, h, w, p, p], each resized alone so that none bleeds into another
    grown = F.interpolate(patches.flatten(0, 3)[:, None], (8, 8), mode="bicubic", antialias=True)[:, 0]
    image, large = (
        x.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
        for x in (patches, grown.unflatten(0, patches.shape[:4]))
    )
    torch.testing.assert_close(build(larger, state)(large), model(image), atol=1e-4, rtol=1e-4)
    assert "patch 4x4 -> 8x8" in report.changed[0].note


def test_smaller_patch_at_the_same_image_resizes_both(small_model: Make, small_spec: MakeSpec) -> None:
    model = small_model()
    _, report = adapt(model.state_dict(), model.spec, small_spec(patch_size=2))
    assert {c.name for c in report.changed} == {"pos_embed", "patch_embed.proj.weight"}


def test_registers_added_and_taken_back(small_model: Make) -> None:
    model = small_model()
    more = with_tokens(model.spec, registers=3)
    state, report = adapt(model.state_dict(), model.spec, more)
    assert [c.name for c in report.changed if c.action == "initialised"] == ["registers"]
    assert not state["pos_embed"][:, 1:4].any()
    back, _ = adapt(state, more, model.spec)
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_class_token_position_folds_exactly(small_model: Make) -> None:
    """Positions that no longer cover the prefix move into the tokens, and outputs do not change."""
    model = small_model(registers=2)
    folded = with_tokens(model.spec, positions_cover_prefix=False)
    state, report = adapt(model.state_dict(), model.spec, folded)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(build(folded, state)(images), model(images), atol=1e-5, rtol=1e-5)
    unfolded, _ = adapt(state, folded, model.spec)
    torch.testing.assert_close(build(model.spec, unfolded)(images), model(images), atol=1e-5, rtol=1e-5)
    assert report.probe.logit_change == pytest.approx(0.0, abs=1e-5)


def test_class_token_dropped_for_average_pooling(small_model: Make) -> None:
    model = small_model(pool="avg")
    without = with_tokens(model.spec, cls=False)
    state, _ = adapt(model.state_dict(), model.spec, without)
    assert "cls_token" not in state
    assert torch.equal(state["pos_embed"], model.state_dict()["pos_embed"][:, 1:])


def test_distillation_token_starts_as_a_second_vote(small_model: Make) -> None:
    model = small_model()
    distilled = with_tokens(model.spec, dist=True, mask=True)
    state, _ = adapt(model.state_dict(), model.spec, distilled)
    assert torch.equal(state["dist_token"], state["cls_token"])
    assert torch.equal(state["dist_head.weight"], state["mlp_head.1.weight"])
    back, report = adapt(state, distilled, model.spec)
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
    assert {c.name for c in report.changes if c.action == "dropped"} == {
        "dist_token",
        "mask_token",
        "dist_head.weight",
        "dist_head.bias",
    }


def test_layer_scale_folds_exactly(small_model: Make) -> None:
    model = small_model(layer_scale=0.3)
    without = model.spec.with_backbone(layer_scale=None)
    state, _ = adapt(model.state_dict(), model.spec, without)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(build(without, state)(images), model(images), atol=1e-5, rtol=1e-5)
    again, _ = adapt(state, without, model.spec)
    torch.testing.assert_close(build(model.spec, again)(images), model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("old", "new"), [("learned", "sincos"), ("sincos", "learned"), ("learned", "none"), ("none", "learned")]
)
def test_kinds_of_positions(small_model: Make, old: str, new: str) -> None:
    model = small_model(positions=old)
    changed = model.spec.with_backbone(positions=new)
    state, _ = adapt(model.state_dict(), model.spec, changed)
    images = torch.randn(2, 3, 16, 16)
    same = torch.allclose(build(changed, state)(images), model(images), atol=1e-5)
    assert same == (new == "learned")


def test_grey_images_answer_alike_in_any_channels(small_model: Make, small_spec: MakeSpec) -> None:
    model = small_model(channels=1)
    colour = small_spec(channels=3)
    state, _ = adapt(model.state_dict(), model.spec, colour)
    grey = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(build(colour, state)(grey.expand(-1, 3, -1, -1)), model(grey), atol=1e-5, rtol=1e-5)


def test_head_rows_follow_class_names(small_model: Make, small_spec: MakeSpec) -> None:
    model = small_model()
    state, report = adapt(
        model.state_dict(), model.spec, small_spec(num_classes=3), from_classes=list("abcde"), to_classes=list("ezb")
    )
    old = model.state_dict()
    for key in ("mlp_head.1.weight", "mlp_head.1.bias"):
        assert torch.equal(state[key][0], old[key][4])
        assert torch.equal(state[key][2], old[key][1])
    assert not state["mlp_head.1.bias"][1]
    assert report.changed[0].note == "2 of 3 classes kept by name"
    assert report.probe.logit_change is None


def test_head_without_common_classes_is_new(small_model: Make, small_spec: MakeSpec) -> None:
    model = small_model()
    state, report = adapt(
        model.state_dict(), model.spec, small_spec(), from_classes=list("abcde"), to_classes=list("vwxyz")
    )
    assert {c.name for c in report.changes if c.action == "initialised"} == {"mlp_head.1.weight", "mlp_head.1.bias"}
    assert not state["mlp_head.1.bias"].any()


def test_same_surgery_twice_is_the_same(small_model: Make, small_spec: MakeSpec) -> None:
    model, target = small_model(), small_spec(registers=2, num_classes=9)
    (first, one), (second, two) = (adapt(model.state_dict(), model.spec, target) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert one == two


shapes = st.fixed_dictionaries(
    {
        "image_size": st.tuples(st.integers(1, 3), st.integers(1, 3)).map(lambda n: (n[0] * 8, n[1] * 8)),
        "patch_size": st.sampled_from([2, 4, 8]),
        "channels": st.sampled_from([1, 3, 4]),
        "num_classes": st.integers(1, 6),
        "positions": st.sampled_from(["learned", "sincos", "none"]),
        "layer_scale": st.sampled_from([None, 0.5]),
        "pool": st.just("avg"),
    }
)
token_schemas = st.builds(
    TokenSchema,
    cls=st.booleans(),
    mask=st.booleans(),
    registers=st.integers(0, 2),
    positions_cover_prefix=st.booleans(),
)


@settings(max_examples=25)
@given(shapes, token_schemas, shapes, token_schemas)
def test_any_shape_becomes_any_other(
    old: dict[str, object], old_tokens: TokenSchema, new: dict[str, object], new_tokens: TokenSchema
) -> None:
    """Every target is reached with a state that fits it, finite outputs, and a complete report."""
    from pipeline.models import build_spec

    small = {"depth": 1, "embed_dim": 8, "num_heads": 2}
    source, target = (
        with_tokens(build_spec("nano", **shape, **small), **vars(tokens))
        for shape, tokens in ((old, old_tokens), (new, new_tokens))
    )
    model = MiniViT.from_spec(source)
    state, report = adapt(model.state_dict(), source, target)
    logits = build(target, state)(torch.randn(1, target.backbone.channels, *target.backbone.image_size))
    assert logits.isfinite().all()
    assert {c.name for c in report.changes} == model.state_dict().keys() | state.keys()
    assert {c.name for c in report.changes if c.action == "dropped"} == model.state_dict().keys() - state.keys()
    for change in report.changes:
        if change.action == "copied":
            assert torch.equal(state[change.name], model.state_dict()[change.name]), change.name


def test_half_precision_stays_half(small_model: Make, small_spec: MakeSpec) -> None:
    model = small_model().to(torch.bfloat16)
    target = small_spec(image_size=32, patch_size=8, registers=1, channels=1, num_classes=2)
    state, _ = adapt(model.state_dict(), model.spec, target)
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}


def test_report_is_json_and_reads_as_a_table(small_model: Make, small_spec: MakeSpec) -> None:
    model = small_model()
    _, report = adapt(model.state_dict(), model.spec, small_spec(image_size=32, num_classes=2))
    raw = json.loads(json.dumps(report.to_dict()))
    assert raw["counts"] == {"copied": len(report.changes) - 3, "resized": 1, "initialised": 2, "dropped": 0}
    table = str(report).splitlines()
    assert table[0] == report.summary()
    assert any("pos_embed" in line and "1x17x32" in line and "1x65x32" in line for line in table)


def test_another_architecture_is_refused(small_model: Make, small_spec: MakeSpec) -> None:
    model = small_model()
    with pytest.raises(ModelError, match=r"model\.depth: found 3, but the weights to start from have 2"):
        adapt(model.state_dict(), model.spec, small_spec(depth=3))


def test_wrong_spec_or_classes_are_refused(small_model: Make, small_spec: MakeSpec) -> None:
    model = small_model()
    with pytest.raises(ModelError, match="'pos_embed' has shape"):
        adapt(model.state_dict(), small_spec(image_size=32), small_spec())
    with pytest.raises(ModelError, match="to_classes: found 1 names, but the head has 5"):
        adapt(model.state_dict(), model.spec, model.spec, to_classes=["a"])


@pytest.fixture
def decoder(small_spec: MakeSpec) -> ModelSpec:
    """Of masked pretraining, on the backbone of `small_spec`."""
    heads = {"decoder": HeadSpec("mae_decoder", options={"dim": 16, "depth": 1})}
    return ModelSpec(small_spec().backbone, heads, "mae")


def test_a_model_of_another_task_gives_its_backbone(small_spec: MakeSpec, decoder: ModelSpec) -> None:
    """Its head is listed as dropped, and the missing head is newly initialised with small weights."""
    torch.manual_seed(0)
    source = MiniViT.from_spec(decoder).state_dict()
    state, report = adapt(source, decoder, small_spec(), to_classes=list("abcde"))
    kept = {name for name in source if not name.startswith("decoder.")}
    assert all(torch.equal(state[name], source[name]) for name in kept)
    assert {c.name for c in report.changes if c.action == "dropped"} == source.keys() - kept
    assert {c.name for c in report.changes if c.action == "initialised"} == state.keys() - kept
    assert report.heads == (
        "the source's head 'decoder' (mae_decoder) is dropped",
        "its head 'mlp_head' (classifier) is initialised",
    )
    assert all(sentence in report.summary() for sentence in report.heads)
    assert state["mlp_head.1.weight"].std().item() == pytest.approx(0.02, rel=0.2)
    assert not state["mlp_head.1.bias"].any()


def test_a_head_of_the_same_kind_and_other_shapes_starts_anew(decoder: ModelSpec) -> None:
    wider = dataclasses.replace(decoder, heads={"decoder": HeadSpec("mae_decoder", options={"dim": 24, "depth": 1})})
    source = MiniViT.from_spec(decoder).state_dict()
    state, report = adapt(source, decoder, wider)
    assert state["decoder.embed.weight"].shape == (24, 32)
    assert report.heads == ("its head 'decoder' (mae_decoder) is initialised",)
    same, report = adapt(source, decoder, decoder)
    assert all(torch.equal(same[name], source[name]) for name in source)
    assert report.heads == ()


def test_dense_heads_keep_their_rows_by_class_name(small_spec: MakeSpec) -> None:
    def model(outputs: int, kind: str) -> ModelSpec:
        return ModelSpec(small_spec().backbone, {"head": HeadSpec(kind, outputs)}, "segmentation")

    for kind in ("linear", "conv", "mask_transformer", "queries", "pyramid"):
        source = MiniViT.from_spec(model(3, kind)).state_dict()
        names = {"from_classes": list("abc"), "to_classes": list("cxbay")}
        state, report = adapt(source, model(3, kind), model(5, kind), **names)
        for tensor in head_kind(kind).class_tensors(HeadSpec(kind, 3)):
            assert torch.equal(state[f"head.{tensor}"][[3, 2, 0]], source[f"head.{tensor}"])
        assert report.heads == ()
        assert report.count("initialised") == 0


def test_a_second_vote_starts_as_a_copy_of_the_first(small_model: Make, small_spec: MakeSpec) -> None:
    model, target = small_model(), small_spec(dist_token=True, num_classes=3)
    state, report = adapt(model.state_dict(), model.spec, target, from_classes=list("abcde"), to_classes=list("exa"))
    assert torch.equal(state["dist_head.weight"], state["mlp_head.1.weight"])
    assert torch.equal(state["dist_head.weight"][[0, 2]], model.mlp_head[1].weight[[4, 0]])
    assert report.heads == ("its head 'dist_head' (distillation) is copied from 'mlp_head'",)
