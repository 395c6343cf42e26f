"""The paper's tables and figures by one command, on scenes and networks of the smallest size."""

import json
import re

import pytest
import torch
from PIL import Image

from contextcrf import load
from contextcrf.cli.main import main
from contextcrf.reproduction import ROWS, Runner, open_study
from contextcrf.training import jobs


def stamps(folder):
    """The times of networks and measurements, which are one folder deeper than the tables."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*") if path.suffix in (".safetensors", ".npz")}


def test_all_rows_of_a_study(scenes, tmp_path, write_study, capsys, monkeypatch):
    study, out = write_study(), tmp_path / "out"
    command = ["reproduce", study, "--data", str(scenes), "--out", str(out)]
    main([*command, "--rows", "[unary-3scales, pairwise-above]"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    steps = [
        "Row 1 of 2: unary-3scales",
        "Training the network unary-3scales",
        "Row 2 of 2: pairwise-above",
        "Training the network unary-3scales-heads",
    ]
    assert [line for line in lines if line in steps] == steps
    done = stamps(out)
    assert {path.name for path in (out / "networks").iterdir()} == {"unary-3scales", "unary-3scales-heads"}
    main(command)
    output = capsys.readouterr().out
    lines = [line.strip() for line in output.splitlines()]
    assert f"written to {out}" in output
    assert "Training the network unary-3scales" not in lines  # it exists
    assert "Tuning the dense CRF of full" in lines
    # Finished parts are kept as they are; what is measured fits the model.
    assert {path: stamp for path, stamp in stamps(out).items() if path in done} == done
    results = json.loads((out / "results.json").read_text())
    names = [row.name for row in ROWS]
    assert [row["name"] for row in results["systems"]] == names
    assert results["metadata"]["precision"] == "32-true"
    here = {row["name"]: row["mean_iou"] for row in results["systems"]}
    table1, table2, table3 = (json.loads((out / f"table{number}.json").read_text())["rows"] for number in (1, 2, 3))
    found = {row["method"]: row for row in table1}
    assert list(found)[: len(names)] == names
    assert {name: found[name]["here"] for name in names} == {name: f"{100 * here[name]:.1f}" for name in names}
    paper = [found[name]["paper"] for name in names[:6]]
    assert paper == ["58.3", "65.5", "66.7", "66.4", "67.8", "70.3"]
    assert found["Deep-struct"] == {"method": "Deep-struct", "here": "", "paper": "64.1", "seconds per image": ""}
    assert [row["method"] for row in table2][:6] == [*names[:3], "gain over unary", names[3], "gain over unary"]
    gain = 100 * (here["pairwise-above"] - here["unary-3scales"])
    assert float(table2[5]["mean"]) == pytest.approx(gain, abs=0.051)
    tested = {row["method"]: row["paper, test"] for row in table3}
    assert (tested["full"], tested["fcn-8s"], tested["crf-rnn"]) == ("70.7", "62.2", "65.2")
    assert re.search(r"\n *fcn-8s +& ", (out / "table3.tex").read_text())
    assert "Mean IoU in percent: here on " in (out / "table1.tex").read_text()
    assert re.search(r"\| full +\| ", (out / "table1.md").read_text())
    assert {path.name for path in out.glob("*.png")} == {"fig6.png", "fig7.png", "fig10.png"}
    with Image.open(out / "fig7.png") as shown:
        assert shown.height > 3 * 64  # all three images of the split, each once
    main(["compare", str(out), str(out), "--first-system", "fcn-8s", "--second-system", "full", "--min-images", "1"])
    assert f"{100 * here['fcn-8s']:.2f} -> {100 * here['full']:.2f}: " in capsys.readouterr().out
    # All is there: the command again trains and tunes nothing.
    monkeypatch.setattr(jobs, "_train", None)
    check_models(Runner(open_study(study), scenes, out))


def check_models(runner):
    """The models of the rows are what the rows are called."""
    assert runner.unary(scales=1).config.scales == (1.0,)
    rnn, [tuned] = runner.crf_rnn(), (runner.out / "tuned").glob("crf-rnn-before+dense-*")
    assert rnn.metadata["end-to-end"]["training"]["objective"] == "crf-rnn"
    chosen = load(tuned).metadata["tune-dense"]["settings"]
    assert rnn.inference.dense == {**chosen, "iterations": 5}
    assert set(chosen) == {"spatial_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat"}
    both = runner.crf_rnn_with_pairs()
    assert both.config.network == "fcn-8s"
    assert both.config.coarse_factor == max(1, (runner.study.model.graph_stride or runner.study.model.stride) // 8)
    assert "above" in both.trained_relations  # on so few nodes, surrounding has no edges
    assert {key: both.metadata["end-to-end"]["training"][key] for key in ("objective", "epochs", "lr")} == {
        "objective": "end-to-end",
        "epochs": rnn.metadata["end-to-end"]["training"]["epochs"],
        "lr": rnn.metadata["end-to-end"]["training"]["lr"],
    }
    whole, [tuned] = runner.end_to_end(), (runner.out / "tuned").glob("end-to-end-before+full-*")
    assert (whole.config.network, whole.trained_relations) == ("context", ["surrounding", "above"])
    assert whole.metadata["end-to-end"]["training"]["potentials"] is None
    assert whole.metadata["end-to-end"]["training"]["objective"] == "end-to-end"
    start = load(tuned)
    assert whole.inference.relation_weights == start.inference.relation_weights
    assert any(offsets.abs().sum() > 0 for offsets in whole.weight_offsets.values())
    for name in ("unary", "pairwise.surrounding", "pairwise.above"):
        head, before = whole.get_submodule(name), start.get_submodule(name)
        assert not torch.equal(head.last.weight.cpu(), before.last.weight), name
    assert runner.baseline("deeplab-largefov", dense=True).metadata["tune-dense"]["split"] == "train"
    assert runner.on_baseline("deeplabv3plus").config.network == "deeplabv3plus"


def test_the_seed_of_all_training_runs_is_an_option(scenes, tmp_path, write_study):
    study, out = write_study(), tmp_path / "out"
    main(["reproduce", study, "--data", str(scenes), "--out", str(out), "--rows", "[pairwise-above]", "--seed", "5"])
    trained = [load(out / "networks" / name / "model").metadata for name in ("unary-3scales", "unary-3scales-heads")]
    assert [trained[0]["fit"]["training"]["seed"], trained[1]["fit-heads"]["training"]["seed"]] == [5, 5]
    # The same folder cannot hold another seed.
    with pytest.raises(SystemExit):
        main(["reproduce", study, "--data", str(scenes), "--out", str(out), "--rows", "[pairwise-above]"])
