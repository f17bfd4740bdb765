from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from pipeline.config.task import task_class
from pipeline.errors import ConfigError
from pipeline.models import MiniViT
from pipeline.models.bundle import Preprocess
from pipeline.models.variants import build_backbone
from pipeline.stages.data import check_task
from pipeline.tasks.zero_shot.module import ZeroShot
from pipeline.text.training import train_tokenizer

CLASSES = ["Boot", "Dress", "Bag"]
SETTINGS = {"templates": ["a {}", "the {} of red"], "names": {"Boot": "ankle boot"}}


@pytest.fixture
def module() -> ZeroShot:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red ankle boot", "a blue dress"], 280, 16)
    spec = task_class("clip")(text={"length": 16}, tokenizer={"size": 280}).model_spec(
        build_backbone("nano", image_size=8, depth=1), 0
    )
    preprocess = Preprocess((0.5,) * 3, (0.5,) * 3, 3, (8, 8), tokenizer=tokenizer)
    return task_class("zero_shot")(**SETTINGS).module(MiniViT.from_spec(spec), CLASSES, preprocess).eval()


def test_a_class_is_the_mean_of_its_prompts(module: ZeroShot) -> None:
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        prompts = module.clip.embed_sentences(["a ankle boot", "the ankle boot of red"])
        boot = prompts.mean(dim=0)
        expected = module.clip.embed_images(images) @ (boot / boot.norm()) / 0.07
        torch.testing.assert_close(module.logits(images)[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_it_is_judged_as_a_classifier(module: ZeroShot) -> None:
    views = {"image": torch.randn(4, 3, 8, 8)}
    with torch.no_grad():
        labels = module.logits(views["image"]).argmax(dim=1)
        found = module(views, {"label": labels}, torch.ones(4), {})
    assert module.means(found.sums)["accuracy"] == 1
    assert set(module.collectors(validation=False)) == {"confusion"}


@pytest.mark.parametrize("template", ["a picture", "{} and {}"])
def test_a_template_has_one_place_for_the_name(template: str) -> None:
    with pytest.raises(ValidationError, match=r"write \{\} once, where the class name belongs"):
        task_class("zero_shot")(templates=[template])


def test_a_name_of_no_class_is_refused() -> None:
    """Its class would silently keep its own name in prompts."""
    task = task_class("zero_shot")(**SETTINGS)
    check_task(task, CLASSES, "stages.name")
    with pytest.raises(ConfigError, match=r"^stages.name.task.names: 'Boot' is not among the 2 classes"):
        check_task(task, ["Boots", "Dress"], "stages.name")
