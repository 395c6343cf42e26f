"""Models in folders with a card, and on the hub, whose requests are answered here."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from contextcrf import ContextCRF, load
from contextcrf.cli.main import main
from contextcrf.modeling import model as hub
from contextcrf.modeling.model_card import model_card
from contextcrf.modeling.serialization import CONFIG, ModelError, bundled_models, save
from models import same_weights, settings, tiny


def listed(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_saved_model_is_the_model_with_a_card(tmp_path):
    model = tiny(inference=settings(relation_weights={"surrounding": 0.0, "above": 0.5}))
    model.metadata = {"fit": {"data": "scenes", "split": "train"}}
    assert model.save_pretrained(tmp_path / "new") is None
    assert listed(tmp_path / "new") == ["README.md", "config.json", "model.safetensors"]
    for read in (ContextCRF.from_pretrained, load):
        found = read(tmp_path / "new")
        assert isinstance(found, ContextCRF)
        assert same_weights(found, model)
        assert (found.config, found.inference, found.metadata) == (model.config, model.inference, model.metadata)
        assert not found.training
    card = (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert card == model_card(model).content


def test_the_card_of_an_earlier_model_is_replaced(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    model.metadata = {"fit": {"data": "beach", "split": "train"}}
    model.save_pretrained(tmp_path)
    assert "trained on beach, so" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert listed(tmp_path) == ["README.md", "config.json", "model-2.safetensors"]


def test_a_relative_folder_and_that_of_a_training_are_read(tmp_path, monkeypatch):
    model = tiny()
    save(model, tmp_path / "runs" / "mine" / "model")
    monkeypatch.chdir(tmp_path)
    assert same_weights(ContextCRF.from_pretrained("runs/mine"), model)


@pytest.mark.parametrize("name", bundled_models())
def test_the_name_of_a_bundled_model_is_for_load(name, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", None)  # nothing is asked of the hub
    with pytest.raises(ModelError, match=rf"'{name}' is bundled .*Load it with contextcrf\.load\('{name}'\)"):
        ContextCRF.from_pretrained(name)


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "/somewhere/else", "."])
def test_what_is_neither_a_folder_nor_a_repository_is_named(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", None)
    with pytest.raises(ModelError, match=rf"There is no (model|folder) '{name}'"):
        ContextCRF.from_pretrained(name)


def test_a_repository_that_cannot_be_read_is_named():
    with pytest.raises(ModelError, match=r"There is no folder 'no body/scenes', and no model .* the hub: "):
        ContextCRF.from_pretrained("no body/scenes")  # no repository has such a name


def test_a_repository_without_network_is_named(monkeypatch):
    def hf_hub_download(**options):
        raise LocalEntryNotFoundError("outgoing traffic has been disabled")

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", hf_hub_download)
    with pytest.raises(ModelError, match=r"no folder 'somebody/scenes', .* from the hub: outgoing traffic"):
        ContextCRF.from_pretrained("somebody/scenes")


@pytest.mark.parametrize("option", ["classes", "inference", "config", "map_location"])
def test_arguments_that_would_change_a_saved_model_are_refused(option, tmp_path):
    save(tiny(), tmp_path)
    with pytest.raises(TypeError, match=f"does not accept {option}. A model is always loaded"):
        ContextCRF.from_pretrained(tmp_path, **{option: {}})


def test_a_damaged_model_is_named(tmp_path):
    save(tiny(), tmp_path)
    for content in ("{", "[]", "{}"):
        (tmp_path / CONFIG).write_text(content)
        with pytest.raises(ModelError, match=r"config\.json (is not|has the format)"):
            ContextCRF.from_pretrained(tmp_path)


def test_a_model_comes_from_the_hub(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        return str(tmp_path)

    model = tiny()
    save(model, tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **options: str(tmp_path / CONFIG))
    found = ContextCRF.from_pretrained("somebody/scenes", revision="v2", token="secret", local_files_only=True)
    assert same_weights(found, model)
    [(name, options)] = asked
    assert name == "somebody/scenes"
    assert options == {
        "revision": "v2",
        "token": "secret",
        "local_files_only": True,
        "cache_dir": None,
        "force_download": False,
        # The file of weights has one of two names.
        "allow_patterns": ["config.json", "*.safetensors"],
    }


@pytest.fixture
def pushed(monkeypatch):
    """The requests to the hub: (call, arguments), with the names of a folder's files."""
    calls = []

    class Api:
        def __init__(self, **options):
            calls.append(("login", options))

        def create_repo(self, repo_id, **options):
            calls.append(("create", {"repo_id": repo_id, **options}))
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, folder_path, **options):
            calls.append(("upload", {**options, "files": listed(folder_path), "model": load(folder_path)}))
            return "https://hub/commit/1"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    return calls


def test_a_model_goes_to_the_hub(pushed):
    model = tiny()
    assert model.push_to_hub("somebody/scenes", private=True) == "https://hub/commit/1"
    assert [name for name, _ in pushed] == ["login", "create", "upload"]
    assert pushed[1][1]["private"] is True
    assert pushed[2][1]["repo_id"] == "somebody/scenes"
    assert pushed[2][1]["files"] == ["README.md", "config.json", "model.safetensors"]
    assert same_weights(pushed[2][1]["model"], model)


@pytest.mark.parametrize(("options", "repo"), [({"repo_id": "a/b", "private": True}, "a/b"), ({}, "scenes")])
def test_a_model_is_saved_and_goes_to_the_hub_in_one_call(options, repo, tmp_path, pushed):
    model = tiny()
    assert model.save_pretrained(tmp_path / "scenes", push_to_hub=True, **options) == "https://hub/commit/1"
    assert same_weights(load(tmp_path / "scenes"), model)
    assert pushed[1][1]["repo_id"] == pushed[2][1]["repo_id"] == repo
    assert pushed[1][1]["private"] is options.get("private")


def test_publish_takes_the_table_of_this_model_and_of_no_other(tiny_model, scenes, tmp_path, pushed, capsys):
    save(tiny_model, tmp_path / "model")
    results, out = tmp_path / "results", tmp_path / "out"
    main(["evaluate", str(tmp_path / "model"), "--data", str(scenes), "--out", str(results), "--pictures", "0"])
    main(["publish", str(tmp_path / "model"), "--out", str(out), "--repo", "a/b", "--results", f"[{results}]"])
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"On {scenes.name} val, 3 images" in card
    assert card.count("| unary+pairwise ") == 1
    assert load(out).metadata["measured"][0]["systems"][0]["name"] == "unary"
    assert "pushed to https://hub/commit/1" in capsys.readouterr().out
    assert pushed[1][1]["private"] is True
    assert pushed[-1][1]["files"] == ["README.md", "config.json", "model.safetensors"]

    # The weights are the same, but not the predictions.
    save(tiny_model, tmp_path / "model", inference=settings(relation_weights={"surrounding": 3.0}))
    command = ["publish", str(tmp_path / "model")]
    for options, message in (
        (["--out", str(out), "--results", f"[{results}]"], "was measured with the relation_weights (default)"),
        (["--out", str(out), "--results", f"[{tmp_path}]"], "does not exist"),
        ([], "Give --out FOLDER, --repo OWNER/NAME"),
    ):
        with pytest.raises(SystemExit):
            main([*command, *options])
        assert message in capsys.readouterr().err
