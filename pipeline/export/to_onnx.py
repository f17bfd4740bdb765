"""ONNX: graphs of a model in a given opset, checked with onnxruntime before they count as written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pipeline.config.export import GraphConfig
from pipeline.errors import ModelError
from pipeline.export.files import write_description, write_tokenizer
from pipeline.export.graph import IMAGE_GRAPH, Traced, exported_graphs
from pipeline.files import write_whole
from pipeline.models.bundle import Bundle

LIBRARY = "onnx"
USE = """```python
import onnxruntime

session = onnxruntime.InferenceSession("{folder}/model.onnx")
outputs = session.run(None, {{"images": images}})  # normalised float32 [B, C, H, W]; model.json names all shapes
```"""
TOLERANCE = 1e-4  # on outputs, relative to the largest if that is above 1
FEW = 1e-3  # fraction of integers, such as pixel classes, that may differ because of ties


def write(bundle: Bundle, folder: Path, config: GraphConfig) -> Path:
    """Write `folder/model.onnx`, further graphs next to it, and `folder/model.json` with inputs, outputs and opset.

    See `exported_graphs` for their inputs. Raises `ModelError` if onnxruntime cannot run a graph, or computes other
    outputs.
    """
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # users need not know which constants it cannot fold
    traced = exported_graphs(bundle, config)
    for name, graph in traced.items():
        program = torch.onnx.export(
            graph.module,
            tuple(graph.inputs.values()),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=graph.dynamic_shapes(),
            opset_version=config.opset,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props["opset"] = str(config.opset)
        write_whole(folder / f"{name}.onnx", partial(_save, program=program, graph=graph, opset=config.opset))
    described = {f"{name}.onnx": graph.described() for name, graph in traced.items()}
    write_description(bundle, folder, graphs={"opset": config.opset, **described})
    if bundle.preprocess.tokenizer:
        write_tokenizer(bundle.preprocess.tokenizer, folder)
    return folder / f"{IMAGE_GRAPH}.onnx"


def _save(path: Path, program: Any, graph: Traced, opset: int) -> None:
    program.save(path, external_data=False)
    _check(path, graph, opset)


def _check(path: Path, graph: Traced, opset: int) -> None:
    """Run a graph on inputs it was not traced with. Raises `ModelError` as `write` does."""
    for inputs in graph.trials():
        expected = [output.numpy() for output in graph.expected(inputs)]
        found = _run(path, inputs, opset)
        if graph.ranked and _same_rows(graph.outputs, expected, found):
            continue
        for name, one, other in zip(graph.outputs, expected, found, strict=True):
            if not _alike(one, other):
                raise ModelError(
                    f"onnx: onnxruntime's {name!r} differs from the model's for inputs of the shapes "
                    f"{[list(x.shape) for x in inputs.values()]}; set graph.any_size: false, or another graph.opset"
                )


def _run(path: Path, inputs: dict[str, Tensor], opset: int) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised and reported here
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        outputs: list[np.ndarray] = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    except Exception as error:  # the exception classes come from a C++ library
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(
            f"onnx: onnxruntime {onnxruntime.__version__} cannot run the graph with opset {opset} ({reason}); set "
            "graph.opset to one that it supports, or install a newer onnxruntime"
        ) from error
    return outputs


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not np.issubdtype(one.dtype, np.floating):
        return bool((one != other).mean() <= FEW)
    return bool(np.abs(one - other).max(initial=0) <= TOLERANCE * max(np.abs(one).max(initial=0), 1))


def _same_rows(names: Sequence[str], expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> bool:
    """Whether outputs [B, M, ...] hold the same rows by the same scores; rows of equal scores may change places.

    Only rows that tie with the last one may be missing for others that tie with it.
    """
    if [(one.shape, one.dtype) for one in expected] != [(one.shape, one.dtype) for one in found]:
        return False
    scores, theirs = (side[names.index("scores")] for side in (expected, found))
    if not _alike(scores, theirs):
        return False
    if not scores.size:
        return True
    flat = [np.concatenate([x.reshape(*scores.shape, -1) for x in side], axis=2) for side in (expected, found)]
    for rows, others, score in zip(*flat, scores, strict=True):
        apart = ~(np.abs(rows[:, None] - others[None]).max(axis=2) <= TOLERANCE)  # of what is not a number, too
        places = linear_sum_assignment(apart)
        if (score[places[0][apart[places]]] > score[-1] + TOLERANCE).any():
            return False
    return True


def notes(bundle: Bundle) -> list[str]:
    """What the format cannot express."""
    return ["The caller must resize and normalise images as above."]
