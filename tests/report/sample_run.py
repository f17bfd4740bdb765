"""A run folder as the quickstart leaves one: real shards, real bundles, real surgery, made-up curves."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, ImageDraw

from pipeline.models.bundle import Bundle, Preprocess, load_bundle
from pipeline.models.minivit import MiniViT
from pipeline.models.surgery import adapt
from pipeline.models.variants import build_spec
from pipeline.shards.build import build_index
from pipeline.shards.write import ShardWriter

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
START = 1_790_000_000.0  # unix seconds
STEPS = 240
MEAN, STD = (0.286,), (0.353,)


def build_run(root: Path, *, name: str = "quickstart") -> Path:
    """A finished run with a fan-out, two surgeries, an evaluation, restarts and an export; returns its folder."""
    torch.manual_seed(0)
    run = root / "runs" / name
    write_shards(root / "shards")
    write_pipeline(run, root / "shards", name)
    write_json(
        run / "run.json", {"created": START, "mlflow_run_id": "5d0c1e7a9b3f4c2d8e6f", "tracking_uri": "sqlite:///x"}
    )
    fresh = {v: build_spec(v, image_size=28, channels=1, num_classes=10, patch_size=4) for v in ("nano", "micro")}
    for i, (variant, spec) in enumerate(fresh.items()):
        home = run / "stages" / "pretrain" / variant
        train(home, (0.1, 0.79 + 0.03 * i), START + 4, 150 + 45 * i, 1900 / (1 + i), [28])
        save(home / "model", MiniViT.from_spec(spec), learn_positions=True)
    hand_on(run, "pretrain/micro", "finetune-56", fresh["micro"], image_size=56, patch_size=4)
    train(run / "stages" / "finetune-56", (0.71, 0.857), START + 220, 130, 310, [56])
    hand_on(run, "finetune-56", "finetune-patch2", fresh["micro"], image_size=28, patch_size=2)
    train(run / "stages" / "finetune-patch2", (0.742, 0.869), START + 360, 140, 290, [20, 24, 28, 32])
    interrupt(run / "stages" / "finetune-patch2")
    evaluate(run, {"pretrain/nano": 0.781, "pretrain/micro": 0.812, "finetune-56": 0.851, "finetune-patch2": 0.8644})
    status(run / "stages" / "export", "export", START + 530, 4)
    return run


def build_unfinished_run(root: Path) -> Path:
    """The same pipeline, killed while its first stage trains: one branch failed, one is running, a line is torn."""
    run = root / "runs" / "half"
    write_pipeline(run, root / "missing-shards", "half")
    train(run / "stages" / "pretrain" / "nano", (0.1, 0.4), START, 60, 1900, [28], steps=100, state="running")
    home = run / "stages" / "pretrain" / "micro"
    status(home, "pretrain", START, 9, state="failed", error="cluster: 2 workers ask for 8 CPUs, there are 2")
    with (run / "stages" / "pretrain" / "nano" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "train/lo')
    return run


def write_pipeline(run: Path, shards: Path, name: str) -> None:
    data = {"train": "train", "val": "test", "lanes": 64}

    def stage(kind: str, model: dict[str, Any], **rest: Any) -> dict[str, Any]:
        base = {"type": kind, "model": {"channels": 1, **model}, "data": data, "global_batch_size": 64}
        return {**base, "duration": f"{STEPS} steps", **rest}

    dataset = {"shards": str(shards), "mean": list(MEAN), "std": list(STD)}
    stages = {
        "pretrain": stage("pretrain", {"variant": ["nano", "micro"], "image_size": 28, "patch_size": 4}),
        "finetune-56": stage("finetune", {"image_size": 56, "patch_size": 4}, init_from="pretrain"),
        "finetune-patch2": stage(
            "finetune",
            {"image_size": 28, "patch_size": 2},
            init_from="finetune-56",
            resolution={"mode": "random", "sizes": [20, 24, 28, 32]},
        ),
        "test": {"type": "evaluate", "models": ["pretrain", "finetune-56", "finetune-patch2"], "data": "test"},
        "export": {"type": "export", "model": "finetune-patch2"},
        "report": {"type": "report"},
    }
    run.mkdir(parents=True)
    config = {"name": name, "datasets": {"train": dataset, "test": dataset}, "stages": stages}
    (run / "pipeline.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def write_shards(folder: Path) -> None:
    """Twenty simple pictures, two of each class."""
    folder.mkdir(parents=True)
    with ShardWriter(folder, "test", 10) as writer:
        for i in range(20):
            picture = Image.new("L", (28, 28))
            draw = ImageDraw.Draw(picture)
            draw.polygon([(14 + 11 * math.cos(a), 14 + 11 * math.sin(a)) for a in corners(i % 10)], fill=120 + 6 * i)
            encoded = io.BytesIO()
            picture.save(encoded, format="PNG")
            writer.write(f"test-{i:05d}", {"png": encoded.getvalue(), "cls": str(i % 10).encode()})
    build_index(str(folder), classes=CLASSES, workers=1)


def corners(label: int) -> list[float]:
    return [2 * math.pi * k / (label + 3) + label / 7 for k in range(label + 3)]


def save(bundle: Path, model: MiniViT, *, learn_positions: bool = False) -> None:
    """Keep a model as a finished stage would; positions that know where they are stand in for learnt ones."""
    spec = model.spec
    if learn_positions:
        rows, columns = torch.meshgrid(*(torch.linspace(0, 1, n) for n in spec.backbone.grid), indexing="ij")
        angles = torch.stack([math.pi * f * axis.flatten() for axis in (rows, columns) for f in (1, 2, 3)], dim=1)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)  # [N, 12]
        field = waves @ torch.randn(12, spec.backbone.embed_dim) + 1.2 * torch.randn(
            spec.backbone.num_patches, spec.backbone.embed_dim
        )
        with torch.no_grad():
            assert model.pos_embed is not None
            model.pos_embed[0, -spec.backbone.num_patches :] = 0.1 * field
    Bundle(model.state_dict(), spec, Preprocess(MEAN, STD, 1, spec.backbone.image_size), CLASSES).save(bundle)


def hand_on(run: Path, source: str, target: str, like: Any, *, image_size: int, patch_size: int) -> None:
    """Start a stage from another one's model, through real surgery, and let "training" change it a little."""
    parent = load_bundle(run / "stages" / source / "model")
    spec = build_spec(like.backbone.variant, image_size=image_size, channels=1, num_classes=10, patch_size=patch_size)
    state, report = adapt(parent.state, parent.spec, spec, from_classes=CLASSES, to_classes=CLASSES)
    home = run / "stages" / target
    model = MiniViT.from_spec(spec)
    model.load_state_dict(state)
    save(home / "init", model)
    with torch.no_grad():
        assert model.pos_embed is not None
        model.pos_embed += 0.05 * torch.randn_like(model.pos_embed)
    save(home / "model", model)
    write_json(home / "surgery.json", report.to_dict())
    write_json(home / "status.json", {"init_from": source})


def train(
    home: Path,
    accuracy: tuple[float, float],
    start: float,
    seconds: float,
    speed: float,
    sizes: list[int],
    *,
    steps: int = STEPS,
    state: str = "finished",
) -> None:
    """Metrics and status of a stage whose validation accuracy rises from the first value to the second."""
    noise = np.random.default_rng(len(str(home)))
    first, last = accuracy
    rows = []
    for step in range(0, steps + 1, 5):
        share = step / STEPS
        level = first + (last - first) * (1 - math.exp(-5 * share)) / (1 - math.exp(-5))
        base = {"step": step, "time": start + seconds * step / steps, "samples": 64 * step}
        if step % 40 == 0:
            rows.append({**base, "val/loss": 2.6 * (1 - level), "val/accuracy": level, "val/top5": 0.5 + level / 2})
        if step:
            rows.append(
                {
                    **base,
                    "train/loss": 2.8 * (1.02 - level) + 0.08 * noise.standard_normal(),
                    "train/accuracy": float(np.clip(level - 0.02 + 0.04 * noise.standard_normal(), 0, 1)),
                    "train/lr": 1e-3 * min(1, step / 30) * (1 + math.cos(math.pi * share)) / 2,
                    "train/image_size": int(noise.choice(sizes)),
                    "speed/images_per_s": speed * (1 + 0.04 * noise.standard_normal()),
                    "speed/data_wait_share": abs(0.01 * noise.standard_normal()),
                }
            )
    home.mkdir(parents=True, exist_ok=True)
    (home / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    validated = next(row for row in reversed(rows) if "val/loss" in row)
    measures = {name: validated[f"val/{name}"] for name in ("loss", "accuracy", "top5")}
    kind = "pretrain" if "pretrain" in str(home) else "finetune"
    status(home, kind, start, seconds, state=state, result={"measures": measures} if state == "finished" else {})


def interrupt(home: Path) -> None:
    """What a stage notes when a worker is lost and training goes on."""
    events = [
        ("restart", "workers were lost (rank 1 died with SIGKILL); restart 1 of at most 3", {"restart": 1}),
        (
            "resume",
            "resumes at step 120 (7,680 samples); kept: weights, optimiser, position in the data",
            {"step": 120},
        ),
    ]
    lines = [{"time": START + 440 + i, "event": e, "message": m, **more} for i, (e, m, more) in enumerate(events)]
    (home / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def evaluate(run: Path, accuracies: dict[str, float]) -> None:
    """Confusions of each model on 10,000 samples, with shirts the hardest."""
    noise = np.random.default_rng(5)
    models, tables = {}, []
    for model, accuracy in accuracies.items():
        likeness = noise.random((10, 10)) ** 6
        for group in ((0, 2, 3, 4, 6), (5, 7, 9)):
            likeness[np.ix_(group, group)] += 0.8 * noise.random((len(group), len(group)))
        np.fill_diagonal(likeness, 0)
        error = (1 - accuracy) * np.array([1, 0.3, 1.6, 0.9, 1.5, 0.4, 2.8, 0.6, 0.3, 0.6])
        shares = likeness / likeness.sum(axis=1, keepdims=True) * error[:, None]
        counts = np.rint(1000 * shares).astype(int)
        np.fill_diagonal(counts, 1000 - counts.sum(axis=1))
        right = float(np.trace(counts) / 10_000)
        models[model] = {"loss": 0.4, "accuracy": right, "top5": 0.99, "samples": 10_000, "bad_samples": 0}
        tables.append(np.array([(*pair, count) for pair, count in np.ndenumerate(counts) if count]))
    home = run / "stages" / "test"
    write_json(home / "evaluation.json", {"dataset": "shards", "samples": 10_000, "classes": 10, "models": models})
    np.savez_compressed(home / "confusion.npz", *tables, classes=np.array(CLASSES))
    status(home, "evaluate", START + 505, 22)


def status(home: Path, kind: str, start: float, seconds: float, *, state: str = "finished", **more: Any) -> None:
    """Write or complete a stage's status."""
    path = home / "status.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    ended = None if state == "running" else start + seconds
    spans = [[start] if ended is None else [start, ended]]
    times = {"started": start, "ended": ended, "attempts": 1, "spans": spans}
    write_json(path, {**known, "state": state, "type": kind, **times, **more})


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
