"""Creation of timm networks that compute feature maps (the body of a `TimmBackbone`)."""

import inspect
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Format
from timm.models import adapt_input_conv
from timm.models._features import FeatureDictNet, FeatureGetterNet, FeatureHookNet
from torch import Tensor, nn

from contextcrf.nets.weights import hub_arguments, load_package_weights

# The modules that timm names wrongly in `feature_info`, by class and first part of the name.
_RENAMED = {
    ("HighResolutionNetFeatures", "stem"): "bn2",
    ("HighResolutionNetFeatures", "stage1"): "layer1",
    ("MobileNetV5", "bn1"): "conv_stem",
    ("MultiScaleVit", "block"): "stages",
    ("Twins", "block"): "blocks",
}


def create_body(
    name: str,
    output_stride: int,
    pretrained: bool | str | Path = False,
    depth: int | None = None,
    in_chans: int = 3,
) -> nn.Module:
    """Create a timm network that computes feature maps, and load its weights.

    Three properties of the network decide how it is created. If it has dilated versions, the last map has the stride
    `output_stride`, and otherwise the maps have the strides of the network. If all maps have the same stride, as in a
    vision transformer, only the last one is computed. A transformer with a dynamic image size is created with it.

    Args:
        name: the name of a timm model.
        output_stride: the stride of the last map: 8, 16 or 32.
        pretrained: as for `TimmBackbone`.
        depth: the number of stages. None uses all stages.
        in_chans: as for `TimmBackbone`.

    Returns:
        A network with the attributes `feature_info` and `default_cfg`, whose result is a list of maps.

    Raises:
        ValueError: if timm has no feature maps for the model, or if it has fewer stages.
        WeightsNotFoundError: if pretrained weights are requested but not available.

    Example:
        >>> from contextcrf.nets.timm_body import create_body
        >>> create_body("resnet10t", output_stride=8).feature_info.reduction()
        [2, 4, 8, 8, 8]
        >>> create_body("vit_tiny_patch16_224", output_stride=8).feature_info.reduction()
        [16]
    """
    file = Path(pretrained) if isinstance(pretrained, str | Path) else None
    arguments = hub_arguments(name, file) if pretrained else {}
    options = {**_options(name), **(arguments or {}), "in_chans": in_chans}
    if has_output_stride(name) and (output_stride == 32 or _dilates(name, output_stride)):
        options["output_stride"] = output_stride
    strides = _strides(name)
    if depth is not None and depth < 1:
        raise ValueError(f"depth={depth} is not valid. Expected at least 1 stage of {name}.")
    if depth is not None and depth > len(strides):
        raise ValueError(f"depth={depth} is not valid, because {name} has fewer stages. It has {len(strides)} stages.")
    stages = depth or len(strides)
    if len(set(strides)) == 1:
        options["out_indices"] = (stages - 1,)
    elif depth is not None:
        options["out_indices"] = tuple(range(depth))
    body: Any = timm.create_model(name, features_only=True, **options)
    if depth is not None and hasattr(body, "blocks"):
        # timm would also compute the stages after the last requested map.
        last = body.feature_info.module_name(depth - 1)  # "blocks.3.2" for a stage, "bn1" for the stem
        body.blocks = body.blocks[: int(last.split(".")[1]) + 1] if "." in last else nn.Sequential()
    if pretrained and arguments is None:
        classifier = timm.create_model(name)
        load_package_weights(name, classifier)
        # The features-only network consists of the first layers of the classifier, with the same names.
        state = classifier.state_dict()
        first = f"{body.default_cfg['first_conv']}.weight"
        state[first] = adapt_input_conv(in_chans, state[first])
        body.load_state_dict({key: state[key] for key in body.state_dict()})
    return body


def feature_maps(body: nn.Module, images: Tensor) -> list[Tensor]:
    """Compute the maps of a network of `create_body`.

    Args:
        body: the network.
        images: images, [B, C, H, W], of a size that the network takes.

    Returns:
        The maps, [B, C, h, w] each.
    """
    maps = body(images)
    return [map_.permute(0, 3, 1, 2) for map_ in maps] if getattr(body, "output_fmt", None) == Format.NHWC else maps


def stage_modules(body: nn.Module) -> list[str]:
    """Return the name of the last module of each stage of a network of `create_body`.

    Args:
        body: the network.
    """
    info: Any = body.feature_info
    names = [stage["module"] for stage in info.info]
    kind = type(getattr(body, "model", body)).__name__
    parts = (name.partition(".") for name in names)
    return [_RENAMED.get((kind, first), first) + dot + rest for first, dot, rest in parts]


def has_output_stride(name: str) -> bool:
    """Return whether a timm model has the argument `output_stride`, with which some models can be dilated."""
    return "output_stride" in _inspect(name)[0]


@lru_cache
def _inspect(name: str) -> tuple[frozenset[str], tuple[int, ...]]:
    """Return the names of the arguments of a timm model, and the strides of its stages."""
    with torch.device("meta"):
        try:
            model: Any = timm.create_model(name, features_only=True)
        except RuntimeError as error:
            raise ValueError(
                f"The backbone {name!r} has no feature maps in timm {timm.__version__}, because timm does not support "
                f"features_only for it: {str(error).rstrip('.')}."
            ) from error
        strides = tuple(info["reduction"] for info in model.feature_info.info)
        if isinstance(model, FeatureDictNet | FeatureGetterNet | FeatureHookNet):
            model = timm.create_model(name)  # the wrapper hides the class
    kinds = (kind for kind in type(model).__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module)
    names = (inspect.signature(kind).parameters for kind in kinds)
    return frozenset(parameter for parameters in names for parameter in parameters), strides


def _strides(name: str) -> tuple[int, ...]:
    return _inspect(name)[1]


def _options(name: str) -> dict[str, Any]:
    """Return the arguments with which a model takes images of several sizes."""
    parameters = _inspect(name)[0]
    if "dynamic_img_size" in parameters:
        return {"dynamic_img_size": True}
    return {"strict_img_size": False} if "strict_img_size" in parameters else {}


@lru_cache
def _dilates(name: str, output_stride: int) -> bool:
    """Return whether a model with the argument `output_stride` supports a value.

    timm asserts that it is 32 where dilation is not implemented.
    """
    try:
        with torch.device("meta"):
            timm.create_model(name, features_only=True, output_stride=output_stride)
    except AssertionError:
        return False
    return True
