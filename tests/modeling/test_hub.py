"""Models travel: folders with a card, and the hub's calls, which are answered here."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from contextcrf import ContextCRF, load
from contextcrf.cli.main import main
from contextcrf.modeling import hub
from contextcrf.modeling.model_card import model_card
from contextcrf.modeling.serialization import ModelError, fingerprint, save


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def same(first, second):
    return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_a_saved_model_is_the_model_with_a_card(tiny_model, tmp_path):
    tiny_model.about = {"fit": {"data": "scenes", "split": "train", "recipe": {"epochs": 7, "potentials": None}}}
    tiny_model.config.strengths = {"surrounding": 0.0, "above": 0.5}
    tiny_model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for read in (ContextCRF.from_pretrained, load):
        found = read(tmp_path)
        assert isinstance(found, ContextCRF)
        assert same(found, tiny_model)
        assert found.config == tiny_model.config
        assert found.about == tiny_model.about
    card = (tmp_path / "README.md").read_text()
    assert front(card)["library_name"] == "contextcrf"
    assert front(card)["pipeline_tag"] == "image-segmentation"
    for text in (
        "| 6 | sheep | ",
        "`above`, K x K, has 0.5 unary votes",
        "`surrounding`, K x K, is silent",
        "epochs 7",
    ):
        assert text in card
    assert "trained on scenes" in card
    assert "Nothing was measured" in card


def test_what_is_not_known_is_not_made_up(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "What it was trained on was not noted." in card
    assert "What they were trained on was not noted: the terms" in card


def test_the_bundled_model_says_what_was_measured_with_it():
    card = model_card(load("camvid"))
    assert "On CamVid val, 101 images:" in card
    assert "| full | 75.1 | 94.7 |" in card  # as results/camvid.md


def test_bundled_models_have_their_names():
    assert same(ContextCRF.from_pretrained("camvid"), load("camvid"))


def test_what_is_no_model_is_refused(tiny_model, tmp_path):
    with pytest.raises(ModelError, match="bundled"):
        ContextCRF.from_pretrained("nothing")
    save(tiny_model, tmp_path)
    with pytest.raises(TypeError, match="classes"):
        ContextCRF.from_pretrained(tmp_path, classes=[])


def test_a_model_comes_from_the_hub(tiny_model, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        return str(tmp_path)

    save(tiny_model, tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    found = ContextCRF.from_pretrained("somebody/scenes", revision="v2", token="secret", local_files_only=True)
    assert same(found, tiny_model)
    [(name, options)] = asked
    assert name == "somebody/scenes"
    assert options["allow_patterns"] == ["config.json", "model.safetensors"]
    assert (options["revision"], options["token"], options["local_files_only"]) == ("v2", "secret", True)


@pytest.fixture
def pushed(monkeypatch):
    """What is put on the hub: (call, arguments), with the names of a folder's files."""
    calls = []

    class Api:
        def __init__(self, **options):
            calls.append(("login", options))

        def create_repo(self, repo_id, **options):
            calls.append(("create", {"repo_id": repo_id, **options}))
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, folder_path, **options):
            calls.append(("upload", {**options, "files": sorted(path.name for path in Path(folder_path).iterdir())}))
            return "https://hub/commit/1"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    return calls


def test_a_model_goes_to_the_hub(tiny_model, pushed):
    assert tiny_model.push_to_hub("somebody/scenes", private=True) == "https://hub/commit/1"
    assert [name for name, _ in pushed] == ["login", "create", "upload"]
    assert pushed[1][1]["private"] is True
    assert pushed[2][1]["repo_id"] == "somebody/scenes"
    assert pushed[2][1]["files"] == ["README.md", "config.json", "model.safetensors"]


def test_publish_takes_the_table_of_this_model_and_of_no_other(tiny_model, scenes, tmp_path, pushed, capsys):
    save(tiny_model, tmp_path / "model")
    results, out = tmp_path / "results", tmp_path / "out"
    main(["evaluate", str(tmp_path / "model"), "--data", str(scenes), "--out", str(results), "--pictures", "0"])
    main(["publish", str(tmp_path / "model"), "--out", str(out), "--repo", "a/b", "--results", f"[{results}]"])
    card = (out / "README.md").read_text()
    assert f"On {scenes.name} val, 3 images" in card
    assert card.count("| 1unary+2pair | ") == 1
    assert load(out).about["measured"][0]["rows"][0]["name"] == "unary"
    assert "pushed to https://hub/commit/1" in capsys.readouterr().out
    assert pushed[-1][1]["files"] == ["README.md", "config.json", "model.safetensors"]

    before = fingerprint(tiny_model)
    tiny_model.config.strengths = {"surrounding": 3.0}
    assert fingerprint(tiny_model) != before
    save(tiny_model, tmp_path / "model")
    command = ["publish", str(tmp_path / "model")]
    for options, message in (
        (["--out", str(out), "--results", f"[{results}]"], "measured with the model"),
        (["--out", str(out), "--results", f"[{tmp_path}]"], "no such file"),
        ([], "expected --out FOLDER, --repo OWNER/NAME"),
    ):
        with pytest.raises(SystemExit):
            main([*command, *options])
        assert message in capsys.readouterr().err
