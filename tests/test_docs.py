"""The Python of the README and of the documentation runs."""

import re
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser

from contextcrf import ModelConfig, PairwisePotential, RangeBox, mean_field
from contextcrf.storage import save

ROOT = Path(__file__).parent.parent


def run(page, names, blocks):
    found = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert len(found) == blocks
    for block in found:
        exec(compile(block, page, "exec"), names)
    return names


def test_the_readme(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tiny_model, "runs/mine/model")
    names = run("README.md", {"image": torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)}, blocks=2)
    assert (tmp_path / "overlay.png").exists()
    assert names["loss"].isfinite()
    torch.testing.assert_close(names["refined"].sum(1), torch.ones(2, 28, 38))


def test_the_page_on_the_crf():
    names = run("docs/crf.md", {}, blocks=3)
    elbos = torch.cat(names["elbos"])
    assert (elbos.diff() > 0).all()
    assert names["found"].push_map(3, 7).shape == (28, 38)


def test_the_page_on_the_dense_crf():
    names = run("docs/dense.md", {}, blocks=2)
    assert names["labels"].shape == (2, 60, 80)
    assert all(parameter.grad is not None for parameter in names["crf"].parameters())


def test_the_page_on_networks_of_ones_own():
    images, labels = torch.randn(2, 3, 96, 128), torch.randint(21, (2, 96, 128))
    names = run("docs/any-network.md", {"torch": torch, "images": images, "labels": labels}, blocks=6)
    assert names["losses"][-1] < names["losses"][0]
    torch.testing.assert_close(names["marginals"].sum(1), torch.ones(2, 6, 8))
    # What every library gives fits both functions.
    for library in ("torchvision", "timm", "smp", "transformers"):
        features, logits = (part.detach() for part in names[f"{library}_pair"])
        assert logits.shape[1] == 21
        assert logits.shape[-1] % features.shape[-1] == 0
        potential = PairwisePotential(features.shape[1], 21, RangeBox.surrounding(0.2), 8)
        assert names["train_step"](potential, torch.optim.SGD(potential.parameters()), features, labels).isfinite()
        cell = logits.shape[-1] // features.shape[-1]
        assert mean_field(logits, [(potential, features)], cell=cell).shape == logits.shape


def test_the_relations_of_the_page_on_the_crf_are_a_configuration():
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/crf.md").read_text(), re.DOTALL)
    parser = ArgumentParser()
    parser.add_argument("--model", type=ModelConfig)
    relations = parser.instantiate(parser.parse_object(yaml.safe_load(text))).model.relations
    assert relations["surrounding"] == RangeBox.surrounding()
    assert relations["above"] == RangeBox.above()
    assert len(relations["sides"]) == 2
