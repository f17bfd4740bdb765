"""What the formats of other libraries cannot hold, besides what their models cannot express. Needs no torch."""

from __future__ import annotations

from pipeline.config.data import PlainConfig
from pipeline.config.export import GraphConfig
from pipeline.errors import ModelError
from pipeline.models.expressible import check_tower, text_head
from pipeline.models.heads.text_tower.shape import TEMPERATURE
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import Pair

IR_VERSION = 8  # of ONNX files, old enough for every runtime that has the oldest opset of `GraphConfig`
FILTERS = ("auto", "bilinear", "bicubic")  # torchvision, which `transformers` uses, differs from Pillow in others


def check_open_clip(spec: ModelSpec) -> None:
    """Raise `ModelError` if open_clip has no such model."""
    text_head(spec, "open_clip")
    check_tower(spec.backbone)
    if spec.backbone.channels != 3:
        raise ModelError(f"model.channels: found {spec.backbone.channels}, but open_clip's image tower has 3")


def check_hf_clip(spec: ModelSpec) -> None:
    """Raise `ModelError` if `transformers` has no such model."""
    text_head(spec, "CLIPModel")
    check_tower(spec.backbone)
    if "bias" in spec.heads[TEMPERATURE].options:
        raise ModelError("task.loss: found sigmoid, but a CLIPModel cannot hold its bias; export to open-clip")
    for name in ("image_size", "patch"):
        height, width = getattr(spec.backbone, name)
        if height != width:
            raise ModelError(f"model.{name}: found {height} x {width}, but a CLIPModel only supports squares")


def check_opset(graph: GraphConfig) -> None:
    """Raise `ModelError` if the installed onnxruntime lacks the operators' version."""
    import onnxruntime
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    nothing = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "nothing", [x], [y])
    version = helper.make_opsetid("", graph.opset)
    model = helper.make_model(nothing, opset_imports=[version], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised and reported here
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the exception classes come from a C++ library
        raise ModelError(
            f"graph.opset: onnxruntime {onnxruntime.__version__} does not support opset {graph.opset}; set "
            "graph.opset to an older one, or install a newer onnxruntime"
        ) from error


def check_hf_images(how: PlainConfig, size: Pair) -> None:
    """Raise `ModelError` if no `transformers` processor resizes images to that size in this way."""
    if how.resize == "pad":
        raise ModelError("eval.resize: found pad, but transformers' image processors squash or crop")
    if how.resize == "shorter" and size[0] != size[1]:
        raise ModelError(
            f"eval.resize: found shorter for images of {size[0]} x {size[1]}, but transformers' image processors crop "
            "squares"
        )
    if how.interpolation not in FILTERS:
        raise ModelError(
            f"eval.interpolation: found {how.interpolation}, but transformers' image processors only match "
            f"{' and '.join(FILTERS[1:])}"
        )
