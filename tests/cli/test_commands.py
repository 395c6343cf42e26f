import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import contextcrf
from contextcrf import RangeBox
from contextcrf.cli import project, quickstart
from contextcrf.cli.errors import MEMORY_ADVICE
from contextcrf.cli.main import COMMANDS, GROUPS, Command, build_parser, main, option_names, read_command
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation import tuning
from contextcrf.evaluation.evaluate import default_systems
from contextcrf.modeling.model import load
from contextcrf.modeling.model_card import measured, model_card
from contextcrf.modeling.serialization import save
from contextcrf.training import trainer
from models import tiny

FIT = ["--model.backbone", "plain", "--pretrained", "false", "--model.channels", "8", "--model.hidden", "8"]
FIT += ["--model.scales", "[1.0]", "--training.epochs", "1", "--training.crop", "[64,96]", "--training.max-edges", "64"]


@pytest.fixture
def data(scenes, tmp_path):
    return shutil.copytree(scenes, tmp_path / "data")


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    """A run of `fit` on the command line."""
    out = tmp_path_factory.mktemp("run")
    main(["fit", "--data", str(scenes), "--out", str(out), *FIT])
    return out


def test_fit_writes_a_model_that_loads(trained):
    model = load(trained / "model")
    assert model.config.backbone == "plain"
    assert model.metadata["fit"]["training"]["epochs"] == 1


def test_the_same_command_again_trains_nothing_and_another_says_what_differs(trained, scenes, capsys):
    weights = trained / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    main(["fit", "--data", str(scenes), "--out", str(trained), *FIT])
    assert weights.stat().st_mtime_ns == before
    assert f"model written to {trained / 'model'}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--data", str(scenes), "--out", str(trained), *FIT, "--training.lr", "0.5"])
    assert stop.value.code == 2
    assert "was trained with training.lr 0.001, not 0.5" in capsys.readouterr().err


def test_fit_lists_every_defect_of_the_data_before_training(scenes, tmp_path, capsys):
    broken = tmp_path / "data"
    shutil.copytree(scenes, broken)
    (first, second, *_) = sorted((broken / "splits" / "train.txt").read_text().split())
    (broken / "images" / f"{first}.png").unlink()
    Image.fromarray(np.full((64, 96), 77, np.uint8)).save(broken / "masks" / f"{second}.png")
    with pytest.raises(SystemExit):
        main(["fit", "--data", str(broken), "--out", str(tmp_path / "run"), *FIT])
    message = capsys.readouterr().err
    assert f"{first}.png" in message
    assert f"{second}.png" in message
    assert "77" in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_relation_may_be_written_in_a_config_file(tmp_path):
    config = tmp_path / "c.yaml"
    box = {"top": 0.0, "bottom": 0.0, "left": 0.3, "right": 0.3}
    config.write_text(yaml.safe_dump({"model": {"relations": {"beside": box}}, "training": {"epochs": 7}}))
    parser = build_parser()
    options = parser.parse_args(["fit", "--config", str(config), "--data", "d", "--out", "o"])
    fit = parser.instantiate(options).fit
    assert fit.model.relations["beside"].left == 0.3
    assert list(fit.model.relations) == ["beside"]
    assert fit.training.epochs == 7


def test_an_unknown_option_in_a_config_file_is_refused(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("training: {epoch: 7}\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "c.yaml"), "--data", "d", "--out", "o"])
    assert "epoch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: {epoch: 7}", ["c.yaml contains training.epoch, but fit", "Did you mean training.epochs?"]),
        ("trainin: {epochs: 7}", ["c.yaml contains trainin, but fit has no such option. Did you mean training?"]),
        ("epochs: 7", ["c.yaml contains epochs, but fit has no such option. Did you mean training.epochs?"]),
        ("training: {crop: 192}", ["c.yaml: training.crop is 192, but a list of 2 whole numbers is expected."]),
        ("training:\n  crop: [1,\n", ["c.yaml cannot be read as a YAML file", "line 3"]),
        ("training: {epochs: -1}", ["epochs is -1, but must be 0 or greater"]),
        ("training: {lr: -1.0}", ["lr is -1.0, but must be greater than 0"]),
        ("training: {crop: [0, 9]}", ["crop is [0, 9], but must be a height and a width"]),
        ("model: [1]", ["c.yaml has [1] under model, but options with their values are expected"]),
        ("[1]", ["c.yaml contains [1], but options with their values are expected"]),
        ("devices: x", ["c.yaml: devices is 'x', but a whole number is expected."]),
        ("training: {lr: x}", ["c.yaml: training.lr is 'x', but a number is expected."]),
        ("training: {flip: 3}", ["c.yaml: training.flip is 3, but true or false is expected."]),
        ("training: {optimizer: adam}", ["c.yaml: training.optimizer is 'adam', but adamw or sgd is expected."]),
        ("training: {max_edges: x}", ["c.yaml: training.max_edges is 'x', but a whole number or null is expected."]),
        ("model: {relations: {a: {topp: 1}}}", ["c.yaml: model.relations is", "A box has no setting 'topp'"]),
        ("model: {relations: {a: {top: 1}}}", ["c.yaml: model.relations is", "A box also needs bottom, left, right"]),
        ("inference: {relation_weights: {below: 1}}", ["relation_weights names ['below']"]),
        ("inference: {system: pairwise+above}", ["system 'pairwise+above'"]),
    ],
)
@pytest.mark.parametrize("given", ["--config {}", "--config={}"])
def test_errors_of_a_recipe_are_short_and_help(tmp_path, capsys, given, text, words):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["fit", *given.format(tmp_path / "c.yaml").split(" "), "--data", "d", "--out", "o"])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert all(word in said for word in words)
    assert len(said.splitlines()) < 16
    assert not re.search(r"Parser key|class '|Union|typing|NoneType", said)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fit --epochs 2", "fit has no option --epochs. Did you mean --training.epochs?"),
        ("fit --precision 2", "Did you mean --training.precision or --inference.precision?"),
        ("fit --batch-sise 2", "Did you mean --training.batch-size?"),
        ("fit --training.epochs x", "--training.epochs is 'x', but a whole number is expected."),
        (
            "fit --training.crop 192",
            "--training.crop is '192', but a list of 2 whole numbers is expected. Write a list",
        ),
        ("fit --training.potentials unary", "but a list of names or null is expected. Write a list in quotes and"),
        ("fit --inference.dense 3", "--inference.dense is '3', but a mapping of names to numbers or lists of"),
        ("fit --training x", "--training is 'x', but the path of a YAML file with the settings of this group is"),
        ("fit --data", "The option --data needs a value."),
        ("fit --config", "The option --config needs a value: the path of a YAML file."),
        ("fit extra", "fit does not take the argument extra."),
        ("predict m i.png --out o --tile x", "--tile is 'x', but a whole number or null is expected."),
        (
            "predict m i.png --out o --flip=3",
            "The option --flip takes no value, but '3' was given. Write --flip alone.",
        ),
        ("evalute m", "There is no command 'evalute'. Did you mean evaluate?"),
        ("--data d fit", "The first argument is --data, but the name of a command is expected."),
    ],
)
def test_mistakes_in_arguments_name_the_option_the_value_and_what_is_expected(capsys, command, message):
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("contextcrf: error: ")
    assert len(said.splitlines()) <= 2
    assert not re.search(r"Parser key|class '|Union|typing|NoneType|collections", said)


def test_an_empty_file_sets_no_option_and_the_command_line_overrides_files(tmp_path):
    for name, text in (("empty", ""), ("comment", "# nothing\n"), ("c", "training: {epochs: 7, lr: 0.5}\n")):
        (tmp_path / f"{name}.yaml").write_text(text)
    files = [f"--config={tmp_path / 'empty.yaml'}", "--config", str(tmp_path / "comment.yaml")]
    command = ["fit", "--data", "d", "--out", "o", "--training.epochs", "3", *files]
    assert read_command(command)[1]["training"].epochs == 3
    for order in (
        [*command[1:], "--config", str(tmp_path / "c.yaml")],
        ["--config", str(tmp_path / "c.yaml"), *command[1:]],
    ):
        training = read_command(["fit", *order])[1]["training"]
        assert (training.epochs, training.lr) == (3, 0.5)


def test_a_start_model_and_another_configuration_are_refused(tmp_path, capsys):
    command = ["fit", "--init", "runs/a", "--data", "d", "--out", "o"]
    assert read_command([*command, "--model.learned-dense", "true"])[1]["model"].learned_dense
    (tmp_path / "c.yaml").write_text("model: {hidden: 8}\n")
    for options, named in (
        (["--model.hidden", "8"], "--model.hidden cannot be combined with --init runs/a"),
        (
            ["--config", str(tmp_path / "c.yaml")],
            f"model.hidden in {tmp_path / 'c.yaml'} cannot be combined with --init",
        ),
    ):
        with pytest.raises(SystemExit):
            main([*command, *options])
        assert named in capsys.readouterr().err
    assert read_command(["fit", "--init", "null", *command[3:], "--model.hidden", "8"])[1]["init"] is None


def test_options_are_written_out(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--data", "d", "--out", "o", "--training.epoch", "3"])
    assert "fit has no option --training.epoch. Did you mean --training.epochs?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"contextcrf {contextcrf.__version__}\n"


def test_options_have_hyphens_and_switches_are_flags(capsys):
    for command in (["--train-split", "a"], ["--train_split", "a"], ["--train-split=a"]):
        assert read_command(["fit", "--data", "d", "--out", "o", *command])[1]["train_split"] == "a"
    values = read_command(["predict", "m", "--dense", "--flip", "i.png", "--out", "o_o-o"])[1]
    assert (values["dense"], values["flip"], values["resume"]) == (True, True, False)
    assert values["out"] == Path("o_o-o")
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        said = capsys.readouterr().out
        assert not re.search(r"--[\w.]*_", said)
        # The stages after the first have the settings of the group training, which the help has once.
        again = {option for option in option_names(command) if option.startswith(("heads.", "end_to_end."))}
        for option in option_names(command) - {*command.positional} - again:
            assert f"--{option.replace('_', '-')}" in said


def test_the_help_has_the_description_the_examples_and_types_in_plain_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit):
            main([name, "--help"])
        said = capsys.readouterr().out
        assert said.startswith(f"usage: contextcrf {name}")
        for paragraph in command.function.__doc__.split("Args:")[0].split("\n\n"):
            assert " ".join(paragraph.split()) in " ".join(said.split())
        assert f"examples:\n  contextcrf {name}" in said
        assert not re.search(r"<class|NoneType|\bNone\b|Optional|typing|\| null|Literal|\bTrue\b|\bFalse\b", said)
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "(a whole number, default: 30)" in said
    assert "(a list of 2 whole numbers, default: [320, 320])" in said
    assert "default: surrounding and above)" in said


def test_the_main_help_has_every_command_in_a_group_with_a_sentence(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for title, group in GROUPS.items():
        assert f"\n{title}:\n" in said
        for name, command in group.items():
            first = command.function.__doc__.split("\n\n")[0]
            assert first.endswith(".")
            assert f"\n  {name:18}{' '.join(first.split())}\n" in said


def test_a_closed_pipe_gives_no_traceback():
    for arguments in (["--help"], ["fit", "--help"]):
        end, start = os.pipe()
        os.close(end)
        command = [sys.executable, "-m", "contextcrf", *arguments]
        done = subprocess.run(command, stdout=start, stderr=subprocess.PIPE, text=True, check=False)
        os.close(start)
        # argparse ignores errors of writing, which it meets first where a text is longer than the buffer.
        assert done.returncode in (0, 141)
        assert done.stderr == ""


@pytest.mark.parametrize("module", ["torch", "jsonargparse", "contextcrf.cli.commands"])
def test_an_interrupt_during_the_imports_is_one_line(module):
    program = f"""
import sys
class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from contextcrf.cli.main import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "contextcrf: Stopped.\n")


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_an_interrupt_names_the_way_to_continue(monkeypatch, capsys, command):
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, command, Command(interrupt, resumable=COMMANDS[command].resumable))
    monkeypatch.setattr("contextcrf.cli.main.read_command", lambda arguments: (command, {}))
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 130
    more = " Run the same command again to continue." if command == "fit" else ""
    assert capsys.readouterr().err == f"contextcrf: Stopped.{more}\n"


def test_a_flag_may_stand_in_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text("dense: true\nscales: [1.0, 0.5]\n")
    values = read_command(["predict", "--config", str(tmp_path / "c.yaml"), "m", "i.png", "--out", "o"])[1]
    assert (values["dense"], values["scales"]) == (True, [1.0, 0.5])


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["fit"], "arguments --data and --out are missing"),
        (["evaluate"], "arguments MODEL, --data and --out are missing"),
        (["predict", "model", "--out", "o"], "argument IMAGES is missing"),
    ],
)
def test_what_is_missing_is_named(capsys, arguments, missing):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert f"The {missing}. `contextcrf {arguments[0]} --help` describes the arguments.\n" in said


def fails_with(monkeypatch, command, error):
    def fail() -> None:
        raise error

    monkeypatch.setitem(COMMANDS, command, Command(fail))
    monkeypatch.setattr("contextcrf.cli.main.read_command", lambda arguments: (command, {}))


@pytest.mark.parametrize("command", ["fit", "fit-heads", "predict", "evaluate", "export", "demo", "compare"])
@pytest.mark.parametrize("of", ["accelerator", "machine", "array"])
def test_too_little_memory_is_one_line_that_says_what_to_lower(monkeypatch, capsys, command, of):
    error = {
        "accelerator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        "machine": None,
        "array": MemoryError(),
    }[of]
    if error is None:
        with pytest.raises(RuntimeError) as found:
            torch.empty(10**15)
        error = found.value
    fails_with(monkeypatch, command, error)
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert ("accelerator" in line) is (of == "accelerator")
    assert line.endswith(MEMORY_ADVICE.get(command, "use smaller images."))


def test_the_options_that_save_memory_exist():
    for name, advice in MEMORY_ADVICE.items():
        options = {option.strip(".").replace("-", "_") for option in re.findall(r"--([\w.-]+)", advice)}
        assert options <= option_names(COMMANDS[name])


def test_another_runtime_error_keeps_its_traceback(monkeypatch):
    fails_with(monkeypatch, "fit", RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        main([])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "x"),
            "x cannot be accessed, because you have no permission.",
        ),
        (OSError(errno.EFBIG, "File too large"), "A file of fit is larger than the file system"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "x cannot be written, because the disk is full. Free"),
        (OSError(errno.ENOENT, "No such file or directory", "x", None, "y"), "x or y does not exist. Check"),
        (FileExistsError("o holds checkpoints"), "o holds checkpoints"),
        (OSError(errno.EADDRINUSE, "Address in use"), f"[Errno {errno.EADDRINUSE}] Address in use"),
    ],
)
def test_errors_of_the_system_are_in_words(monkeypatch, capsys, error, said):
    fails_with(monkeypatch, "fit", error)
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"contextcrf: error: {said}")


def test_a_file_in_the_way_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    for path, said in (("file/c.yaml", "is not a valid path, because one of"), ("c.yaml", "does not exist. Check")):
        with pytest.raises(SystemExit):
            main(["fit", "--config", str(tmp_path / path)])
        assert f"{tmp_path / path} {said}" in capsys.readouterr().err


def test_two_values_of_ignore_index_are_refused(scenes, tmp_path, capsys):
    (tmp_path / "maps").mkdir()
    path = next((scenes / "masks").iterdir())
    shutil.copy(path, tmp_path / "maps")
    command = ["refine", str(tmp_path / "maps"), "--images", str(scenes / "images"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main([*command, "--classes", str(scenes / "classes.yaml"), "--ignore-index", "0"])
    assert f"--ignore-index is 0, but {scenes / 'classes.yaml'} has the ignore_index 255." in capsys.readouterr().err
    main([*command, "--classes", str(scenes / "classes.yaml"), "--ignore-index", "255"])
    main([*command, "--num-classes", "10", "--ignore-index", "0"])
    assert capsys.readouterr().out.count("1 of 1 maps refined") == 2


def test_a_table_has_the_trained_systems_and_a_verdict(trained, scenes, tmp_path, capsys):
    """After `fit` with the unary alone, untrained potentials have no row."""

    def names(network):
        return [system.name for system in default_systems(network)]

    network = load(trained / "model")
    assert names(network) == ["unary", "surrounding", "above", "unary+pairwise"]
    network.pairwise["above"].last.zero_()
    assert names(network) == ["unary", "surrounding", "unary+pairwise"]
    network.pairwise["surrounding"].last.zero_()
    assert names(network) == ["unary"]
    save(network, tmp_path / "model", inference=replace(network.inference, dense={"bilateral_compat": 2}))
    assert names(load(tmp_path / "model")) == ["unary", "unary+pairwise+dense"]
    main(
        ["evaluate", str(tmp_path / "model"), "--data", str(scenes), "--out", str(tmp_path / "out"), "--pictures", "0"]
    )
    said = capsys.readouterr().out
    assert "unary -> unary+pairwise+dense: mIoU " in said
    # The sentence that is printed is also in the results and in the report.
    [line] = [line for line in said.splitlines() if line.startswith("unary -> unary+pairwise+dense: ")]
    assert f"- {line}\n" in (tmp_path / "out" / "results.md").read_text()
    assert line.replace(">", "&gt;") in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    [gain] = json.loads((tmp_path / "out" / "results.json").read_text())["gains"]
    assert gain["low"] <= gain["gain"] <= gain["high"]
    assert line.endswith(gain["verdict"])
    assert "unary -> unary+pairwise:" not in said


def test_what_is_measured_on_training_images_is_said_to_flatter(data, tmp_path, capsys):
    train = (data / "splits" / "train.txt").read_text().split()
    with (data / "splits" / "val.txt").open("a") as file:
        file.write(f"{train[0]}\n{train[1]}\n")
    main(["fit", "--data", str(data), "--out", str(tmp_path / "out"), *FIT])
    said = capsys.readouterr().out
    assert "2 of the 5" in said
    main(["fit", "--data", str(data), "--out", str(tmp_path / "out"), *FIT])
    assert "The model is already trained." in capsys.readouterr().out


def test_mistakes_in_both_splits_are_listed_together(data, tmp_path, capsys):
    for split in ("train", "val"):
        stem = (data / "splits" / f"{split}.txt").read_text().split()[0]
        (data / "masks" / f"{stem}.png").unlink()
    with pytest.raises(SystemExit):
        main(["fit", "--data", str(data), "--out", str(tmp_path / "out"), *FIT])
    assert "2 problems were found in 9 pairs of image and mask" in capsys.readouterr().err


def test_the_configs_of_the_project_fit_the_command_line():
    folder = Path(__file__).parents[2] / "configs"
    for path in sorted(folder.rglob("*.yaml")):
        command = ["fit-heads", "model"] if path.stem.endswith("heads") else ["fit"]
        build_parser().parse_args([*command, "--config", str(path), "--data", "d", "--out", "o"])
    assert len(list(folder.glob("*.yaml"))) >= 4


def test_heads_tune_and_evaluate(trained, scenes, tmp_path, capsys):
    heads = [
        "--training.epochs",
        "1",
        "--training.crop",
        "[64,96]",
        "--training.max-edges",
        "64",
        "--graph-stride",
        "16",
    ]
    main(["fit-heads", str(trained / "model"), "--data", str(scenes), "--out", str(tmp_path / "heads"), *heads])
    model = tmp_path / "heads" / "model"
    first = capsys.readouterr().out
    assert "The relation weights have their default values" in first
    assert load(model).config.graph_stride == 16
    # The folder of a training stands for the model in it.
    main(["tune", str(tmp_path / "heads"), "--data", str(scenes), "--split", "train", "--limit", "3"])
    printed = first + capsys.readouterr().out
    assert "plain sum" in printed
    assert "<- chosen" in printed
    # The warning comes before the first trial.
    assert 0 < printed.index("warning: The model was trained on the split train") < printed.index("plain sum")
    assert "mean IoU on 3 images of train:" in printed
    assert f"{100 * load(model).metadata['tune']['mean_iou']:.2f}\nmodel written" in printed
    assert set(load(model).metadata) == {"fit", "fit-heads", "tune"}
    results = tmp_path / "results"
    command = ["evaluate", str(model), "--data", str(scenes), "--out", str(results), "--pictures", "1"]
    main([*command, "--systems", "[unary, unary+pairwise]"])
    stored = json.loads((results / "results.json").read_text())
    assert [system["name"] for system in stored["systems"]] == ["unary", "unary+pairwise"]
    assert "scenes" in stored["metadata"]["data"]
    with Image.open(results / "examples.png") as grid:
        assert grid.size[0] > 4 * 96
    # New heads do not inherit the relation weights that were tuned for the old ones.
    tuned = load(model)
    save(tuned, model, inference=replace(tuned.inference, relation_weights={"surrounding": 0.0}))
    main(["fit-heads", str(model), "--data", str(scenes), "--out", str(tmp_path / "again"), *heads[:-2]])
    again = load(tmp_path / "again" / "model")
    assert again.inference.relation_weights == {}
    assert again.config.graph_stride == 16
    assert set(again.metadata) == {"fit", "fit-heads"}


def test_networks_trained_each_for_one_potential_are_merged(trained, tmp_path, capsys):
    model, out = str(trained / "model"), tmp_path / "together"
    main(["merge-potentials", "--unary", model, "--pairwise", json.dumps({"above": model}), "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    together = load(out)
    assert together.potentials == ("unary", "above")
    assert together.config.shared_trunk  # both have the same trunk
    assert together.metadata["above"]["fit"]["training"]["epochs"] == 1


def test_models_that_were_trained_on_are_averaged(trained, tmp_path, capsys):
    other = load(trained)
    with torch.no_grad():
        other.unary.last.bias.add_(2.0)
    weights = replace(other.inference, relation_weights={"above": 0.0})
    save(other, tmp_path / "other", {"data": "elsewhere"}, inference=weights)
    main(["average-weights", str(trained), str(tmp_path / "other"), "--out", str(tmp_path / "mean")])
    assert str(tmp_path / "mean") in capsys.readouterr().out
    first, mean = load(trained), load(tmp_path / "mean")
    torch.testing.assert_close(mean.unary.last.bias, first.unary.last.bias + 1.0)
    torch.testing.assert_close(mean.unary.first.weight, first.unary.first.weight)
    assert (mean.config, mean.inference) == (first.config, first.inference)
    assert mean.metadata == {**first.metadata, "averaged with 1": {"data": "elsewhere"}}


def test_predict_goes_on_past_broken_files_and_says_which(tiny_model, tmp_path, capsys):
    save(tiny_model, tmp_path / "model")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(pictures / "a.png")
    Image.new("L", (17, 9)).save(pictures / "gray.jpg")
    whole = (pictures / "a.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "empty.jpg").touch()
    (pictures / "notes.txt").write_text("not an image, and not asked for")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(tmp_path / "model"), str(pictures), "--out", str(out)])
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert "2 of 4 images labeled" in printed.out
    assert "cut.png" in printed.err
    assert "empty.jpg" in printed.err
    expected = {"a.png", "a_overlay.png", "gray.png", "gray_overlay.png", "provenance.json"}
    assert {path.name for path in out.iterdir()} == expected
    with Image.open(out / "a.png") as labels, Image.open(pictures / "a.png") as image:
        assert labels.mode == "P"
        written = torch.from_numpy(np.array(labels)).long()
        assert torch.equal(written, tiny_model.segment(image).labels)
        assert tuple(labels.getpalette()[:3]) == tiny_model.classes.palette[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "x.png"], "x.png"),
        (["nowhere", "image.png"], "There is no model 'nowhere'"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    with pytest.raises(SystemExit) as stop:
        main(["predict", *arguments, "--out", "o"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_two_files_with_one_output_are_refused(tmp_path, capsys):
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    files = [str(tmp_path / name) for name in ("a.png", "a.jpg")]
    with pytest.raises(SystemExit):
        main(["predict", "camvid", *files, "--out", str(tmp_path / "o")])
    assert "a.jpg" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_labels_are_not_written_to_the_folder_of_the_images(tmp_path, capsys, monkeypatch):
    """They would become images of the next run."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    monkeypatch.chdir(tmp_path)
    for images, out in (("photos", "photos"), ("photos", str(folder)), ("photos/a.png", "photos")):
        with pytest.raises(SystemExit) as stop:
            main(["predict", "nowhere", images, "--out", out])
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert f"--out {out} is the folder of the images photos, so the next run" in said
        assert "such as --out photos-labels." in said
    assert [path.name for path in folder.iterdir()] == ["a.png"]
    # Subfolders are not searched for images.
    for images in ("photos", "photos/a.png"):
        with pytest.raises(SystemExit):
            main(["predict", "nowhere", images, "--out", "photos/labels"])
        assert "nowhere" in capsys.readouterr().err


def test_predict_turns_phone_photographs_and_reads_deep_images(tiny_model, tmp_path, capsys):
    save(tiny_model, tmp_path / "model")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.new("RGB", (40, 24)).save(tmp_path / "phone.jpg", exif=exif)
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(tmp_path / "deep.png")
    files = [str(tmp_path / "phone.jpg"), str(tmp_path / "deep.png")]
    main(["predict", str(tmp_path / "model"), *files, "--out", str(tmp_path / "o")])
    assert (tmp_path / "o" / "deep.png").exists()
    with Image.open(tmp_path / "o" / "phone.png") as labels:
        assert labels.size == (24, 40)


def test_the_quickstart_deletes_no_files_of_others(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "precious.txt").touch()
    with pytest.raises(SystemExit):
        main(["quickstart", "--out", str(tmp_path)])
    assert "Choose an empty or new folder" in capsys.readouterr().err
    assert (tmp_path / "results" / "precious.txt").exists()


def test_an_impossible_model_is_one_line(scenes, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--data", str(scenes), "--out", str(tmp_path / "o"), *FIT, "--model.graph-stride", "12"])
    error = capsys.readouterr().err
    assert "graph_stride=12" in error
    assert "Traceback" not in error


def test_the_dense_crf_is_tuned_into_the_model_and_used_by_predict(tiny_model, scenes, tmp_path, capsys):
    save(tiny_model, tmp_path / "model")
    options = ["--data", str(scenes), "--split", "val", "--limit", "2", "--dense"]
    main(["tune", str(tmp_path / "model"), *options])
    said = capsys.readouterr().out
    assert "<- chosen" in said
    assert said.count("<- before") == 1
    tuned = load(tmp_path / "model")
    assert set(tuned.inference.dense) == {"spatial_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat"}
    assert tuned.inference.precision == tiny_model.inference.precision
    assert tuned.metadata["tune-dense"]["images"] == 2
    save(
        tuned,
        tmp_path / "model",
        inference=replace(tuned.inference, dense={"bilateral_compat": 8, "bilateral_srgb": 30}),
    )
    tuned = load(tmp_path / "model")
    image = next((scenes / "images").iterdir())
    for name, dense in (("plain", []), ("refined", ["--dense"])):
        main(["predict", str(tmp_path / "model"), str(image), *dense, "--out", str(tmp_path / name)])
    plain, refined = (np.array(Image.open(tmp_path / name / f"{image.stem}.png")) for name in ("plain", "refined"))
    with Image.open(image) as picture:
        assert np.array_equal(refined, tuned.segment(picture, "unary+pairwise+dense").labels.numpy())
        assert np.array_equal(plain, tuned.segment(picture).labels.numpy())
    assert (plain != refined).any()


def test_sigterm_while_features_are_computed_leaves_a_message_and_no_model(
    trained, scenes, tmp_path, capsys, monkeypatch
):
    def terminated(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("The signal did not stop the command.")

    monkeypatch.setattr(trainer, "cache_features", terminated)
    before = signal.getsignal(signal.SIGTERM)
    out = tmp_path / "heads"
    with pytest.raises(SystemExit) as stopped:
        main(["fit-heads", str(trained / "model"), "--data", str(scenes), "--out", str(out), "--training.epochs", "1"])
    assert stopped.value.code == 143
    assert "Stopped. Run the same command again to continue." in capsys.readouterr().err
    assert not (out / "model").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_tune_keeps_what_helps_reliably_only(tiny_model, scenes, tmp_path, capsys, monkeypatch):
    """A gain on two images of three may be chance: the weights are 0, and the reader sees why."""
    save(tiny_model, tmp_path / "model")
    wrong, right = torch.diag_embed(torch.ones(2, 10).long()).flip(-1)[0], torch.eye(10).long()

    def trials(model, images, inference):
        counts = {0.0: [wrong, wrong, right], 1.0: [wrong, right, right]}
        return [
            tuning.Trial(
                "", {"above": weight}, replace(inference, relation_weights={"above": weight}), score, stack, weight == 0
            )
            for weight, score in ((1.0, 0.6), (0.0, 0.3))
            for stack in [torch.stack(counts[weight])]
        ]

    monkeypatch.setattr(tuning, "tune_relation_weights", trials)
    main(["tune", str(tmp_path / "model"), "--data", str(scenes), "--split", "val", "--limit", "3"])
    said = capsys.readouterr().out
    assert "All relation weights are 0, because the pairwise terms do not raise the mean IoU reliably." in said
    [uncertain] = [line for line in said.splitlines() if "<- before" in line]
    assert re.search(r"60\.00  \+\d+\.\d\d \[\+0\.00, \+\d+\.\d\d\] +above 1  <- before$", uncertain)
    assert "<- chosen" in next(line for line in said.splitlines() if "above 0" in line)
    assert load(tmp_path / "model").inference.relation_weights == {"above": 0.0}
    with pytest.raises(SystemExit):
        main(["tune", str(tmp_path / "model"), "--data", str(scenes), "--split", "val", "--limit", "1"])
    assert "at least 2 images are needed for an interval" in capsys.readouterr().err


def test_learned_relation_weights_cannot_be_tuned(scenes, tmp_path, capsys):
    learned = tiny(open_dataset(scenes, "val").classes, learned_weights=True)
    save(learned, tmp_path / "model")
    with pytest.raises(SystemExit):
        main(["tune", str(tmp_path / "model"), "--data", str(scenes), "--split", "val"])
    assert "are learned, so they cannot be tuned" in capsys.readouterr().err


def test_a_dense_crf_that_is_switched_off_is_left_out(tiny_model, scenes, tmp_path, capsys):
    off = {"spatial_compat": 0, "bilateral_compat": 0}
    save(tiny_model, tmp_path / "model", inference=replace(tiny_model.inference, dense=off))
    command = [
        "evaluate",
        str(tmp_path / "model"),
        "--data",
        str(scenes),
        "--pictures",
        "0",
        "--out",
        str(tmp_path / "o"),
    ]
    for systems in ([], ["--systems", "[unary, unary+pairwise, unary+pairwise+dense]"]):
        main([*command, *systems])
        said = capsys.readouterr()
        assert "Systems with it are not evaluated" in said.out + said.err
        stored = json.loads((tmp_path / "o" / "results.json").read_text())
        assert "unary+pairwise+dense" not in [system["name"] for system in stored["systems"]]
        assert [gain["second"] for gain in stored["gains"]] == ["unary+pairwise"]
    with pytest.raises(SystemExit):
        main([*command, "--systems", "[unary+dense]"])
    assert "Add unary+pairwise" in capsys.readouterr().err
    image = next((scenes / "images").iterdir())
    for name, dense in (("plain", []), ("same", ["--dense"])):
        main(["predict", str(tmp_path / "model"), str(image), *dense, "--out", str(tmp_path / name)])
        said = capsys.readouterr()
        assert ("The labels are those without it" in said.out + said.err) == bool(dense)
    plain, same = (np.array(Image.open(tmp_path / name / f"{image.stem}.png")) for name in ("plain", "same"))
    assert np.array_equal(plain, same)


def test_dense_parameters_keep_their_types():
    options = ["fit", "--data", "d", "--out", "o", "--inference.dense", '{"iterations": 5, "bilateral_sxy": 2.5}']
    parser = build_parser()
    assert parser.instantiate(parser.parse_args(options)).fit.inference.dense == {"iterations": 5, "bilateral_sxy": 2.5}


def test_explain_draws_a_column_for_every_relation(tiny_model, scenes, tmp_path, capsys):
    save(tiny_model, tmp_path / "model")
    image = next((scenes / "images").iterdir())
    out = tmp_path / "new" / "why.png"
    place = ["--row", "40", "--column", "50"]
    main(["explain", str(tmp_path / "model"), str(image), *place, "--out", str(out)])
    with Image.open(out) as picture:
        assert picture.width > 3 * 96
    place[1] = "400"
    with pytest.raises(SystemExit):
        main(["explain", str(tmp_path / "model"), str(image), *place, "--out", str(out)])
    assert "Expected a row in 0..63" in capsys.readouterr().err


def test_explain_says_why_there_is_nothing_to_see(tiny_model, scenes, tmp_path, capsys):
    off = replace(tiny_model.inference, relation_weights=dict.fromkeys(tiny_model.pairwise, 0.0))
    save(tiny_model, tmp_path / "off", inference=off)
    command = ["explain", str(tmp_path / "off"), str(next((scenes / "images").iterdir()))]
    command += ["--row", "40", "--column", "50", "--out", str(tmp_path / "why.png")]
    with pytest.raises(SystemExit):
        main(command)
    assert "their weights are 0" in capsys.readouterr().err
    main([*command, "--relation-weights", '{"above": 1}'])
    assert (tmp_path / "why.png").exists()
    with pytest.raises(SystemExit):
        main([*command, "--relation-weights", '{"below": 1}'])
    assert "'below'" in capsys.readouterr().err
    broken = tmp_path / "broken.png"
    broken.write_bytes(next((scenes / "images").iterdir()).read_bytes()[:200])
    command[2] = str(broken)
    with pytest.raises(SystemExit):
        main(command)
    assert str(broken) in capsys.readouterr().err


def test_relations_of_a_config_file_may_be_lists_and_have_holes(tmp_path):
    box = "{top: 0.2, bottom: 0.2, left: 0.3, right: 0}"
    holed = f"{{top: 0.4, bottom: 0, left: 0.3, right: 0.1, hole: {box}}}"
    text = f"model:\n  relations:\n    two: [{box}, {box}]\n    holed: {holed}\n"
    (tmp_path / "c.yaml").write_text(text)
    parser = build_parser()
    options = parser.parse_args(["fit", "--config", str(tmp_path / "c.yaml"), "--data", "d", "--out", "o"])
    relations = parser.instantiate(options).fit.model.relations
    assert relations["two"] == (RangeBox(0.2, 0.2, 0.3, 0),) * 2
    assert relations["holed"].hole == RangeBox(0.2, 0.2, 0.3, 0)


def test_a_model_of_other_classes_is_not_evaluated(tiny_model, tmp_path, capsys):
    for folder in ("images", "masks", "splits"):
        (tmp_path / folder).mkdir()
    for folder in ("images", "masks"):
        Image.new("L", (8, 8)).save(tmp_path / folder / "a.png")
    (tmp_path / "splits" / "val.txt").write_text("a\n")
    (tmp_path / "classes.yaml").write_text("classes: [{name: x}, {name: y}]\n")
    save(tiny_model, tmp_path / "model")
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path / "model"), "--data", str(tmp_path), "--out", str(tmp_path / "o")])
    assert "x, y" in capsys.readouterr().err


def test_the_quickstart_runs_and_its_crf_is_evaluated(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quickstart, "RELATION_WEIGHTS", (0.0, 4.0))
    monkeypatch.setattr(quickstart, "TUNING_IMAGES", 1)
    main(["quickstart", "--out", str(tmp_path), "--epochs", "1", "--train-images", "12", "--val-images", "2"])
    stored = json.loads((tmp_path / "results" / "results.json").read_text())
    names = ["unary", "surrounding", "above", "unary+pairwise", "unary+pairwise+dense"]
    assert [system["name"] for system in stored["systems"]] == names
    assert (tmp_path / "results" / "examples.png").exists()
    assert (tmp_path / "results" / "report.html").exists()
    assert load(tmp_path / "model").metadata["fit"]["training"]["epochs"] == 1
    assert "figures:" in capsys.readouterr().out.replace("\n", "")


def test_messages_of_the_library_are_printed_while_a_command_runs(trained, scenes, capsys):
    """And not after it: a program that uses the library configures its own logging."""
    main(["fit", "--data", str(scenes), "--out", str(trained), *FIT])
    assert "already trained" in capsys.readouterr().out
    assert not logging.getLogger("contextcrf").handlers


def test_asking_for_bfloat16_where_it_is_slow_is_a_warning(trained, scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("contextcrf.utils.runtime.has_bfloat16", lambda *_: False)
    command = ["evaluate", str(trained), "--data", str(scenes), "--pictures", "0", "--out"]
    main([*command, str(tmp_path / "slow"), "--precision", "bf16-mixed"])
    assert "warning: This machine has no bfloat16 hardware" in capsys.readouterr().out
    main([*command, str(tmp_path / "auto")])
    assert "warning" not in capsys.readouterr().out
    stored = json.loads((tmp_path / "auto" / "results.json").read_text())
    assert stored["metadata"]["precision"] == "32-true"


def test_make_folds_writes_a_data_set(scenes, tmp_path, capsys):
    main(["make-folds", str(scenes), "--out", str(tmp_path / "folds"), "--folds", "3", "--splits", '["train"]'])
    assert "3 folds of 6 images" in capsys.readouterr().out
    assert len(open_dataset(tmp_path / "folds", "fold2-train")) == 4


def test_prepare_voc_names_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["prepare-voc", str(tmp_path)])
    assert stop.value.code == 2
    assert f"{tmp_path} does not contain" in (said := capsys.readouterr().err)
    assert "--download" in said
    (tmp_path / "VOC2012" / "ImageSets" / "Segmentation").mkdir(parents=True)
    main(["prepare-voc", str(tmp_path)])
    assert f"PASCAL VOC 2012 is in {tmp_path / 'VOC2012'}" in capsys.readouterr().out


def test_wrong_values_are_refused_before_anything_is_lost(tiny_model, scenes, tmp_path, capsys):
    save(tiny_model, tmp_path / "model")
    (tmp_path / "out").mkdir()
    before = (tmp_path / "model" / "config.json").read_bytes()
    labels = tmp_path / "out" / "val_0000.png"
    labels.touch()
    for command, message in (
        (
            ["tune", "--data", str(scenes), "--split", "val", "--limit", "0"],
            "--limit is 0, but at least 2 images are needed",
        ),
        (
            ["evaluate", "--data", str(scenes), "--out", str(tmp_path / "out"), "--pictures", "-1"],
            "--pictures is -1, but a number of images is expected. Give 0 to draw none.",
        ),
        (
            ["evaluate", "--data", str(scenes), "--out", str(tmp_path / "out"), "--systems", "[unary, unary]"],
            "--systems has the system unary twice.",
        ),
        (
            ["explain", str(labels), "--row", "1", "--column", "1", "--out", "why"],
            "--out why has no suffix, but the suffix of an image file is expected. Choose --out why.png.",
        ),
        (
            ["explain", str(labels), "--row", "1", "--column", "1", "--out", "why.txt"],
            "--out why.txt has the suffix .txt, but",
        ),
        (
            ["predict", str(scenes / "images"), "--out", str(labels.parent), "--opacity", "2"],
            "a value from 0 to 1 is expected",
        ),
    ):
        with pytest.raises(SystemExit):
            main([command[0], str(tmp_path / "model"), *command[1:]])
        assert message in capsys.readouterr().err
    assert labels.exists()
    assert (tmp_path / "model" / "config.json").read_bytes() == before


def test_the_settings_of_later_stages_are_options(tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text("heads: {lr: 0.5}\nend_to_end: null\n")
    values = read_command(["fit", "--data", "d", "--out", "o", "--config", str(file), "--heads.epochs", "7"])[1]
    assert (values["heads"].lr, values["heads"].epochs, values["end_to_end"]) == (0.5, 7, None)
    values = read_command(["fit", "--data", "d", "--out", "o", "--end-to-end.objective", "end-to-end"])[1]
    assert (values["heads"], values["end_to_end"].objective) == (None, "end-to-end")
    mistakes = {
        "heads: {epocs: 3}": "recipe.yaml contains heads.epocs, but fit has no such option. Did you mean heads.epochs?",
        "heads: {lr: [1]}": "recipe.yaml: heads.lr is [1], but a number is expected.",
        "end_to_end: {objective: most}": "end_to_end.objective is 'most', but piecewise, pseudo-likelihood",
        "end_to_end: {patience: 0}": "patience is 0, but must be 1 or greater, or null.",
        "heads: 3": "recipe.yaml has 3 under heads, but options with their values are expected",
    }
    for text, sentence in mistakes.items():
        file.write_text(text)
        with pytest.raises(SystemExit):
            main(["fit", "--data", "d", "--out", "o", "--config", str(file)])
        assert sentence in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["fit", "--data", "d", "--out", "o", "--heads", "some.yaml"])
    assert "--heads is 'some.yaml', but a mapping of settings or null is expected." in capsys.readouterr().err


def test_results_on_images_that_a_model_was_trained_or_tuned_on_have_a_caveat(tiny_model, scenes, tmp_path, capsys):
    for name, metadata, words in (
        ("trained", {"fit": {"data": scenes.name, "split": "val"}}, "was trained on the split val"),
        ("tuned", {"tune-dense": {"data": scenes.name, "split": "val"}}, "was tuned on the split val"),
        ("other", {"fit": {"data": scenes.name, "split": "train"}, "tune": {"data": "another", "split": "val"}}, None),
    ):
        save(tiny_model, tmp_path / name, metadata)
        out = tmp_path / f"{name}-val"
        main(["evaluate", str(tmp_path / name), "--data", str(scenes), "--out", str(out), "--pictures", "0"])
        error = "".join(capsys.readouterr())
        results = json.loads((out / "results.json").read_text())["metadata"]
        if words is None:
            assert "too good" not in error
            assert "caveat" not in results
            continue
        assert words in error
        assert words in results["caveat"]
        assert words in (out / "results.md").read_text()
        assert words in (out / "report.html").read_text()
        model = load(tmp_path / name)
        model.metadata["measured"] = [measured(model, out)]
        assert words in str(model_card(model))


def test_a_dense_crf_that_was_not_tuned_is_a_warning(tiny_model, tmp_path, capsys):
    save(tiny_model, tmp_path / "model", {})
    Image.new("RGB", (64, 48)).save(tmp_path / "photo.png")
    main(["predict", str(tmp_path / "model"), str(tmp_path / "photo.png"), "--out", str(tmp_path / "out"), "--dense"])
    assert "has not been tuned, so it has the default parameters of pydensecrf" in capsys.readouterr().out


def test_potentials_that_are_not_trained_cannot_be_tuned(tiny_model, scenes, tmp_path, capsys):
    for potential in tiny_model.pairwise.values():
        potential.last.zero_()
    save(tiny_model, tmp_path / "model", {})
    with pytest.raises(SystemExit):
        main(["tune", str(tmp_path / "model"), "--data", str(scenes), "--split", "val"])
    assert "contextcrf fit-heads" in capsys.readouterr().err


def test_a_config_for_another_command_is_refused(scenes, tmp_path, capsys):
    project.start(scenes, tmp_path / "recipe.yaml")
    for arguments, message in (
        (["fit", "--config", "recipe-heads.yaml"], "copies is 2, but it is a setting of the stage heads"),
        (["fit-heads", "model", "--config", "recipe.yaml"], "The file is for another command, such as fit"),
    ):
        command = [str(tmp_path / part) if part.endswith(".yaml") else part for part in arguments]
        with pytest.raises(SystemExit):
            main([*command, "--data", str(scenes), "--out", str(tmp_path / "out")])
        assert message in capsys.readouterr().err


def test_an_argument_that_is_no_known_format_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["import", "yolo", str(tmp_path), str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert "FORMAT has a value that is not valid" in error
    assert "coco" in error


def test_corrected_masks_are_another_data_set(trained, data, capsys):
    """The names of the files are the same, but the weights would be others."""
    path = next((data / "masks").iterdir())
    with Image.open(path) as mask:
        changed = mask.copy()
    changed.putpixel((0, 0), 1 - min(1, changed.getpixel((0, 0))))
    changed.save(path)
    (data / "splits" / "train.txt").write_text(path.stem)
    fresh = data.parent / "out"
    main(["fit", "--data", str(data), "--out", str(fresh), *FIT, "--val-split", "null"])
    changed.putpixel((1, 1), 1 - min(1, changed.getpixel((1, 1))))
    changed.save(path)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", "--data", str(data), "--out", str(fresh), *FIT, "--val-split", "null"])
    assert "was trained with masks with the digest" in capsys.readouterr().err
