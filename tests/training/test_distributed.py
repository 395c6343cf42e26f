"""One training on several processes, and several trainings under one launcher."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.evaluate import evaluate
from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.model import load
from contextcrf.modeling.system import UNARY_ONLY, UNARY_PAIRWISE
from contextcrf.training import SeededSampler, augmentation, fit, jobs, run
from contextcrf.training.jobs import trainer_of
from contextcrf.training.sharding import ShardedModelModule
from contextcrf.training.trainer import make_trainer
from trainings import MODEL, QUICK, fit_job, logged, losses, weights

# Run by each process: its validation images and its messages are kept in files named after its rank.
SCRIPT = """
import logging
import sys
from dataclasses import replace
from pathlib import Path

from trainings import QUICK, fit_job
from contextcrf.cli.commands.training import fit
from contextcrf.training import ModelModule
from contextcrf.training.jobs import trainer_of

data, out = Path(sys.argv[1]), Path(sys.argv[2])
validate = ModelModule.validation_step


def recorded(module, batch, batch_idx):
    with (out / f"validated-{module.global_rank}").open("a") as file:
        print(int(batch[0].long().sum()), file=file)
    validate(module, batch, batch_idx)


ModelModule.validation_step = recorded
job = fit_job(data, out, training=replace(QUICK, scale=(1.0, 1.0), max_edges=None), val_split="val", devices=2)
logger = logging.getLogger("contextcrf")
logger.setLevel(logging.INFO)
out.mkdir(exist_ok=True)
logger.addHandler(logging.FileHandler(out / f"messages-{trainer_of(job).global_rank}"))
fit(job)
"""


# Run by each process of a training with sharded weights: the number of weights that it keeps is written to a file.
SHARDED = """
import sys
from dataclasses import replace
from pathlib import Path

from trainings import QUICK, fit_job
from contextcrf.training import ModelModule, run

data, out = Path(sys.argv[1]), Path(sys.argv[2])
start = ModelModule.on_train_batch_start


def recorded(module, batch, batch_idx):
    kept = sum(parameter.to_local().numel() for parameter in module.parameters())
    (out / f"kept-{module.global_rank}").write_text(str(kept))
    start(module, batch, batch_idx)


ModelModule.on_train_batch_start = recorded
training = replace(QUICK, scale=(1.0, 1.0), max_edges=None, ema=0.9)
run(fit_job(data, out, training=training, val_split="val", devices=2, strategy="fsdp"))
"""


@pytest.fixture(autouse=True)
def _launcher(monkeypatch):
    """No variables of a launcher, and Lightning's rank as it was after the test."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name.endswith("RANK") or name == "WORLD_SIZE":
            monkeypatch.delenv(name)
    monkeypatch.setattr(rank_zero_only, "rank", rank_zero_only.rank)


@pytest.fixture(scope="module")
def two_processes(scenes, tmp_path_factory):
    """The folder of a training on two processes."""
    return launched(SCRIPT, scenes, tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def sharded(scenes, tmp_path_factory):
    """The folder of a training on two processes with sharded weights."""
    return launched(SHARDED, scenes, tmp_path_factory.mktemp("fsdp"))


def launched(script: str, data: Path, folder: Path) -> Path:
    """Run a script, which starts the second process itself, and return the folder of its training."""
    (folder / "script.py").write_text(script)
    paths = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, folder / "script.py", data, folder / "out"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "printed").write_text(done.stdout)
    return folder / "out"


def test_one_of_two_processes_prints_the_folder_of_the_model(two_processes):
    printed = (two_processes.parent / "printed").read_text()
    assert printed == f"model written to {two_processes / 'model'}\n"


def test_two_processes_train_to_the_losses_of_one(two_processes, scenes, tmp_path):
    run(fit_job(scenes, tmp_path, training=replace(QUICK, scale=(1.0, 1.0), max_edges=None)))
    found, expected = (losses(load(folder / "model"), scenes) for folder in (two_processes, tmp_path))
    assert set(expected) == {"unary", "surrounding", "above"}
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=2e-5, atol=0)


def test_every_image_is_validated_by_one_of_two_processes(two_processes, scenes):
    shares = [(two_processes / f"validated-{rank}").read_text().split() for rank in (0, 1)]
    images = [str(int(image.long().sum())) for image, _ in open_dataset(scenes, "val")]
    assert len(set(images)) == 3
    assert shares == [[images[0], images[2]], [images[1]]]


def test_the_scores_of_two_processes_are_those_of_one(two_processes, scenes):
    model = load(two_processes / "model").to(memory_format=torch.channels_last)
    results = evaluate(Predictor(model), open_dataset(scenes, "val"), [UNARY_ONLY, UNARY_PAIRWISE])
    [row] = [row for row in logged(two_processes) if row["val/unary"]]
    for result in results:
        # Lightning logs single precision.
        assert float(row[f"val/{result.name}"]) == torch.tensor(result.matrix.mean_iou()).item()


def test_the_first_of_two_processes_logs_the_progress(two_processes):
    first, second = ((two_processes / f"messages-{rank}").read_text().splitlines() for rank in (0, 1))
    assert [line.partition(":")[0] for line in first] == ["Epoch 1 of 3", "Epoch 2 of 3", "Epoch 3 of 3"]
    assert second == []


def test_sharded_weights_train_to_the_losses_of_one_process(sharded, scenes, tmp_path):
    training = replace(QUICK, scale=(1.0, 1.0), max_edges=None, ema=0.9)
    run(fit_job(scenes, tmp_path, training=training, val_split="val"))
    found, expected = (losses(load(folder / "model"), scenes) for folder in (sharded, tmp_path))
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=2e-5, atol=0)
    [row], [wanted] = ([row for row in logged(folder) if row["val/unary"]] for folder in (sharded, tmp_path))
    for name in ("val/unary", "val/unary+pairwise"):
        assert float(row[name]) == pytest.approx(float(wanted[name]), abs=1e-3)


def test_each_process_keeps_a_part_of_the_sharded_weights(sharded):
    whole = sum(parameter.numel() for parameter in load(sharded / "model").parameters())
    kept = [int((sharded / f"kept-{rank}").read_text()) for rank in (0, 1)]
    assert sum(kept) == whole
    assert max(kept) < 0.6 * whole


@pytest.mark.parametrize("epoch", [1, 2], ids=["before the last epoch", "after the last epoch"])
def test_a_sharded_training_resumes_exactly(sharded, scenes, tmp_path, epoch):
    out = tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    shutil.copy(sharded / "checkpoints" / f"epoch={epoch}.ckpt", out / "checkpoints")
    shutil.copy(sharded / "provenance.json", out)
    launched(SHARDED, scenes, tmp_path)
    torch.testing.assert_close(weights(load(out / "model")), weights(load(sharded / "model")), rtol=0, atol=0)


def test_one_process_goes_on_with_a_sharded_training(sharded, scenes, tmp_path):
    training = replace(QUICK, scale=(1.0, 1.0), max_edges=None, ema=0.9)
    checkpoint = str(sharded / "checkpoints" / "epoch=1.ckpt")
    run(fit_job(scenes, tmp_path, training=training, checkpoint=checkpoint))
    torch.testing.assert_close(weights(load(tmp_path / "model")), weights(load(sharded / "model")))


def test_a_resumed_sharded_training_has_the_learning_rates_of_its_config(tiny_model):
    """The strategy restores the optimizer with the rates of the checkpoint, before Lightning calls the hook."""
    stored, wanted = (
        ShardedModelModule(tiny_model, replace(QUICK, lr=lr), steps=10).configure_optimizers() for lr in (0.01, 0.003)
    )
    ([restored], [schedule]), ([fresh], _) = stored, wanted
    module = ShardedModelModule(tiny_model, replace(QUICK, lr=0.003), steps=10)
    module.trainer = SimpleNamespace(optimizers=[restored])
    module.on_load_checkpoint(
        {"optimizer_states": [restored.state_dict()], "lr_schedulers": [schedule["scheduler"].state_dict()]}
    )
    for found, expected in zip(restored.param_groups, fresh.param_groups, strict=True):
        for name in ("lr", "initial_lr", "max_lr", "min_lr"):
            assert found[name] == pytest.approx(expected[name])


def test_what_cannot_be_sharded_is_refused(scenes, tmp_path):
    with pytest.raises(ValueError, match=r'patience is 2, .* Set patience to null, or use the strategy "ddp"'):
        make_trainer(replace(QUICK, patience=2), tmp_path, devices=2, strategy="fsdp")
    job = fit_job(scenes, tmp_path, model=replace(MODEL, learned_dense=True), devices=2, strategy="fsdp")
    with pytest.raises(ValueError, match=r'strategy is "fsdp", but a learned dense CRF cannot be sharded'):
        run(job)
    with pytest.raises(ValueError, match="strategy is 'dp', but must be one of ddp, fsdp"):
        fit_job(scenes, tmp_path, strategy="dp")


def test_a_step_of_two_processes_has_the_images_of_a_step_of_one():
    whole = list(SeededSampler(11, seed=3))
    parts = [list(SeededSampler(11, 3, rank, 2)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [len(SeededSampler(11, 3, 0, 2))] * 2 == [5, 5]
    for step in range(2):  # of four images, two each
        together = [sample for part in parts for sample in part[2 * step : 2 * step + 2]]
        assert sorted(together) == sorted(whole[4 * step : 4 * step + 4])


def test_images_are_divided_among_processes_or_refused(tiny_model, scenes, tmp_path):
    trainer = make_trainer(QUICK, tmp_path, devices=2)
    train, val = open_dataset(scenes, "train", augmentation(QUICK)), open_dataset(scenes, "val")
    with pytest.raises(ValueError, match="batch_size is 3, but must be a multiple of the 2 processes"):
        fit(tiny_model, train, val, replace(QUICK, batch_size=3), tmp_path, trainer=trainer)
    with pytest.raises(ValueError, match="training split has 1 image, but each of the 2 processes"):
        fit(tiny_model, train.spread(1), val, QUICK, tmp_path, trainer=trainer)
    with pytest.raises(ValueError, match="validation split has 1 image, but each of the 2 processes"):
        fit(tiny_model, train, val.spread(1), QUICK, tmp_path, trainer=trainer)


@pytest.mark.parametrize(
    ("environment", "num_nodes", "rank"),
    [
        ({}, 1, 0),
        ({"LOCAL_RANK": "1"}, 1, 1),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, 2, 2),
        ({"TORCHELASTIC_RUN_ID": "1", "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "4"}, 2, 3),
        (
            {
                "SLURM_NTASKS": "4",
                "SLURM_NTASKS_PER_NODE": "2",
                "SLURM_PROCID": "3",
                "SLURM_LOCALID": "1",
                "SLURM_NODEID": "1",
            },
            2,
            3,
        ),
    ],
    ids=["none", "Lightning", "Lightning on two machines", "torchrun", "SLURM"],
)
def test_the_rank_is_that_of_the_launcher(scenes, tmp_path, monkeypatch, environment, num_nodes, rank):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    trainer = trainer_of(fit_job(scenes, tmp_path, devices=2, num_nodes=num_nodes))
    assert (trainer.global_rank, trainer.world_size) == (rank, 2 * num_nodes)
    assert trainer.is_global_zero == (rank == 0)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "1"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_JOB_ID": "7"},
        {"LOCAL_RANK": "3", "NODE_RANK": "1"},
    ],
    ids=["torchrun", "SLURM", "LOCAL_RANK"],
)
def test_a_training_of_one_process_is_its_own_first_under_any_launcher(scenes, tmp_path, monkeypatch, environment):
    """One `srun` may start many trainings side by side."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 3)  # as Lightning sets it by these variables when it is imported
    job = fit_job(scenes, tmp_path, training=replace(QUICK, epochs=1))
    trainer = trainer_of(job)
    assert (trainer.global_rank, trainer.world_size) == (0, 1)
    run(job)
    load(tmp_path / "model")
    assert logged(tmp_path)
    monkeypatch.setattr(jobs, "_train", None)
    run(job)


def test_other_processes_train_with_the_first_and_leave_its_files_to_it(scenes, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(jobs, "_train", lambda job, checkpoint, trainer: trained.append((checkpoint, trainer)))
    monkeypatch.setenv("LOCAL_RANK", "1")
    job = fit_job(scenes, tmp_path, devices=2)
    run(job)
    run(replace(job, checkpoint="somewhere.ckpt"))
    (tmp_path / "checkpoints").mkdir()
    torch.save({}, tmp_path / "checkpoints" / "epoch=1.ckpt")
    run(job)
    assert [(checkpoint, trainer.global_rank) for checkpoint, trainer in trained] == [
        (None, 1),
        ("somewhere.ckpt", 1),
        ("last", 1),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    # Nothing is left to do where the training has ended.
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert run(job) == tmp_path / "model"
    assert len(trained) == 3
