"""The Python of the README runs."""

import re
from pathlib import Path

import torch

from contextcrf.storage import save

README = Path(__file__).parent.parent / "README.md"


def test_every_python_block_runs(tiny_model, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    save(tiny_model, "runs/mine/model")
    names = {"image": torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "overlay.png").exists()
    assert names["loss"].isfinite()
    torch.testing.assert_close(names["refined"].sum(1), torch.ones(2, 28, 38))
