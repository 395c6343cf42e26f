"""Backbones of the library transformers, such as DINOv2."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from contextcrf.nets.pyramid import PyramidBackbone
from contextcrf.nets.weights import WeightsNotFoundError

logger = logging.getLogger(__name__)

PREFIX = "hf:"
IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


class HuggingFaceBackbone(PyramidBackbone):
    """An `AutoBackbone` of transformers (the body), followed by a block 6 (see `PyramidBackbone`).

    If all maps of the model have the same stride, as in a vision transformer, only the last one is used.

    Args:
        name: the name of a model on the Hugging Face Hub, or a folder with a saved model. Its `config.json` is read
            even if no weights are loaded.
        stride: the number of pixels per node of the feature map: 4, 8, 16 or 32.
        channels: the number of channels of the feature map. None omits all layers after the body.
        pretrained: True loads the weights of the model. A path loads the weights in this folder. False initializes all
            weights randomly.
        in_chans: the number of channels of the images. Pretrained weights need 3.

    Raises:
        ValueError: if transformers is not installed or has no backbone for this model, or if the stride is not valid.
        WeightsNotFoundError: if the model is neither on this machine nor on the hub.

    Example:
        >>> import torch
        >>> from transformers import Dinov2Config
        >>> from contextcrf.nets.hugging_face import HuggingFaceBackbone
        >>> small = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28)
        >>> small.save_pretrained("tiny-dinov2")
        >>> HuggingFaceBackbone("tiny-dinov2", channels=8, pretrained=False)(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 8, 8, 12])
    """

    def __init__(
        self,
        name: str,
        stride: int = 8,
        channels: int | None = 256,
        pretrained: bool | str | Path = True,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        if stride not in (4, 8, 16, 32):
            raise ValueError(f"stride={stride} is not valid. Expected 4, 8, 16 or 32.")
        if pretrained and in_chans != 3:
            raise ValueError(
                f"The images have {in_chans} channels, but the pretrained weights of {PREFIX}{name} are for 3 channels."
                " Choose a timm model, whose first layer is adapted, or set pretrained to false."
            )
        try:
            from transformers import AutoBackbone, AutoConfig
        except ModuleNotFoundError as error:
            raise ValueError(
                f"The backbone {PREFIX}{name} needs the package transformers, which is not installed. Run pip install "
                '"contextcrf[transformers]".'
            ) from error
        source = name if isinstance(pretrained, bool) else str(pretrained)
        try:
            config = AutoConfig.from_pretrained(name)
            stages = list(getattr(config, "stage_names", ()))
            if not stages:
                raise ValueError(
                    f"The model {name} of type {config.model_type} has no backbone in transformers. Choose a model "
                    "that AutoBackbone supports, such as facebook/dinov2-small, or a timm model."
                )
            config.out_indices = list(range(len(stages)))
            config.num_channels = in_chans
            network: Any = AutoBackbone.from_config(config)
            side = config.image_size if isinstance(getattr(config, "image_size", None), int) else 224
            image = next(network.parameters()).new_zeros(1, in_chans, side, side)
            steps = [side / maps.shape[-1] for maps in network(image).feature_maps]
            if len(set(steps)) == 1:
                config.out_indices, steps = [len(stages) - 1], steps[-1:]
            if pretrained:
                # AutoBackbone.from_pretrained would take neither a folder nor a model in the cache without the hub.
                self.body, loading = type(network).from_pretrained(source, config=config, output_loading_info=True)
                _check_complete(source, loading["missing_keys"])
            else:
                self.body = AutoBackbone.from_config(config)
        except OSError as error:
            raise WeightsNotFoundError(
                f"The model {source} is neither a folder with a saved model nor available from the Hugging Face Hub: "
                f"{str(error).splitlines()[0].rstrip('.')}."
            ) from error
        self.own_steps = [round(step) for step in steps]
        self.pretrained = bool(pretrained)
        self.norm_eval = True
        self.mean, self.std = _normalization(name)
        self.build(self.body.channels, stride, stride, channels, local=False, any_size=False, image=image)

    def outputs(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of the body (see `PyramidBackbone.outputs`)."""
        return list(self.body(images).feature_maps)

    def stage_modules(self) -> list[str]:
        """Return the name of the last module of each stage of the body, without the stem."""
        count = len(self.body.stage_names) - 1
        for name, module in self.body.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return [f"{name}.{stage}" for stage in range(count)]
        return []


def _check_complete(source: str, missing: Iterable[str]) -> None:
    """Raise WeightsNotFoundError if weights are missing, except for the layers that only backbones have."""
    if lost := sorted(key for key in missing if "hidden_states_norms" not in key):
        raise WeightsNotFoundError(
            f"The weights in {source} do not belong to this model, because {len(lost)} of its tensors are missing, "
            f"such as {lost[0]}."
        )


def _normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation with which a model was trained, or those of ImageNet."""
    from transformers import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        logger.warning("%s has no preprocessor_config.json. The mean and deviation of ImageNet are used.", name)
        settings = {}
    values = {**IMAGENET, **{key: settings[key] for key in IMAGENET if settings.get(key)}}
    return tuple(map(float, values["image_mean"])), tuple(map(float, values["image_std"]))
