"""Training with sharded weights (FSDP): each process keeps a part of the weights, gradients and optimizer state.

Lightning's `ModelParallelStrategy` runs PyTorch's `fully_shard` (FSDP2), which also works on CPUs. Checkpoints contain
the whole weights, as those of other trainings do.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.optim.swa_utils import AveragedModel

from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.model import ContextCRF
from contextcrf.training.config import TrainingConfig
from contextcrf.training.modules import ModelModule


def sharded_strategy(processes: int) -> ModelParallelStrategy:
    """Return the Lightning strategy that shards the weights over a number of processes.

    Args:
        processes: number of processes on all machines.

    Example:
        >>> sharded_strategy(2).restore_checkpoint_after_setup
        True
    """
    return ModelParallelStrategy(processes, 1, save_distributed_checkpoint=False)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Gather the weights of a sharded model. All processes must call this function.

    Args:
        model: the model.

    Returns:
        The state dict of the model without sharding.
    """
    weights: dict[str, Any] = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return weights


class ShardedModelModule(ModelModule):
    """A `ModelModule` whose weights are sharded over the processes of a training with `sharded_strategy`.

    Args:
        model: model whose potentials are trained. Its weights become contiguous and are then replaced by their shards.
        config: config of the training.
        steps: number of optimizer steps of the whole training run, for the one-cycle schedule.
        class_weights: class weights [K] of the losses; None weights all classes equally.

    Raises:
        ValueError: the model has a learned dense CRF, whose standard deviations are scalars and cannot be sharded.
    """

    def __init__(
        self, model: ContextCRF, config: TrainingConfig, steps: int, class_weights: Tensor | None = None
    ) -> None:
        if model.dense is not None:
            raise ValueError(
                'The strategy is "fsdp", but a learned dense CRF cannot be sharded. Use the strategy "ddp", or set '
                "model.learned_dense to false."
            )
        super().__init__(model.to(memory_format=torch.contiguous_format), config, steps, class_weights)

    def configure_model(self) -> None:
        """Shard the weights. Lightning calls this method in each process."""
        if not isinstance(self, FSDPModule):
            _shard(self, _mesh(self))

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the weights with whole weights, of which each process keeps its part."""
        set_model_state_dict(self, dict(weights), options=StateDictOptions(full_state_dict=True))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Use the learning rates of the config. The strategy has already restored the optimizer."""
        super().on_load_checkpoint(checkpoint)
        (optimizer,) = self.trainer.optimizers
        for group, wanted in zip(
            optimizer.param_groups, checkpoint["optimizer_states"][0]["param_groups"], strict=True
        ):
            group |= {key: value for key, value in wanted.items() if key != "params"}

    def on_validation_epoch_start(self) -> None:
        """Gather the whole weights for the validation, in which the processes may have different numbers of images."""
        for buffer in self.model.buffers():
            # BatchNorm statistics differ between the processes. DDP uses those of the first process, too.
            distributed.broadcast(buffer, src=0)
        model = self.model
        whole = ContextCRF(model.config, model.classes, False, model.inference, model.image_format).to(self.device)
        whole.load_state_dict(whole_weights(model))
        self.predictor = Predictor(whole.eval(), self.predictor.inference)

    def on_validation_epoch_end(self) -> None:
        """Log the mean IoU of each system, and release the whole weights."""
        super().on_validation_epoch_end()
        self.predictor = Predictor(self.model, self.predictor.inference)


def _mesh(module: L.LightningModule) -> DeviceMesh:
    mesh = module.device_mesh
    assert mesh is not None
    return mesh["data_parallel"]


def _shard(module: ModelModule, mesh: DeviceMesh) -> None:
    """Shard each trunk and then the rest of a module, so that the whole weights of one part are gathered at a time."""
    for trunk in module.model.trunks.values():
        fully_shard(trunk, mesh=mesh)
    fully_shard(module, mesh=mesh)
    # The whole weights are gathered for this method.
    register_fsdp_forward_method(module, "losses")


class ShardedAveraging(EMAWeightAveraging):
    """A moving average of sharded weights, which is sharded in the same way.

    Lightning's callback copies the module, which is not possible once it is sharded.

    Args:
        decay: decay of the average per step.
    """

    @property
    def state_key(self) -> str:
        """The name in checkpoints, with which a training can go on with another strategy."""
        return EMAWeightAveraging.__qualname__

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Copy the module, and shard the copy."""
        assert isinstance(pl_module, ModelModule)
        average = AveragedModel(pl_module, trainer.strategy.root_device, use_buffers=True, **self._kwargs)
        copy = average.module
        assert isinstance(copy, ModelModule)
        _shard(copy, _mesh(pl_module))
        self._average_model = average

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the average into the checkpoint, as Lightning's callback does."""
        average = self._average()
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        checkpoint["state_dict"] = get_model_state_dict(average.module, options=options)
        checkpoint["averaging_state"] = {"n_averaged": average.n_averaged.cpu()}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: Mapping[str, Any]
    ) -> None:
        """Restore the average and the weights. The strategy has loaded the average into the module."""
        assert isinstance(pl_module, ModelModule)
        average = self._average()
        with torch.no_grad():
            for kept, loaded in zip(_values(average.module), _values(pl_module), strict=True):
                kept.copy_(loaded)
        average.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
        pl_module.load_weights(checkpoint["current_model_state"])

    def _average(self) -> AveragedModel:
        assert self._average_model is not None
        return self._average_model


def _values(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a module."""
    return list(chain(module.parameters(), module.buffers()))
