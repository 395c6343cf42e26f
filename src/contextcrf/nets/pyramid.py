"""Backbones whose body has maps of one or several strides, which are joined to one feature map."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from contextcrf.nets.base import Backbone
from contextcrf.nets.input_sizes import InputSizes, in_windows, join_windows, measure
from contextcrf.nets.neck import nominal, resample, upsampling
from contextcrf.utils.resizing import upsample

STRIDES = (4, 8, 16, 32)


class PyramidBackbone(Backbone):
    """A network with maps of one or several strides (the body), whose maps are joined to one feature map.

    Images are padded to a size that the body takes, by replicating their border. The maps are brought to strides that
    are powers of two. For example, a map of stride 14 is resampled to stride 16. Maps of strides that the body does not
    have are computed from its finest map (see `upsampling`), or are averages of a finer map. The maps from `stride` on
    are joined: each of them passes through a 1 x 1 convolution and is upsampled bilinearly, and a block 6 is applied to
    their sum.

    A subclass sets `body` and `own_steps` and defines `outputs` and `stage_modules`. Then it calls `build`.

    Attributes:
        body: the network.
        sizes: the image sizes that the body takes.
        own_steps: the number of pixels per node of each map in `outputs`.
        steps: the number of pixels per node of each map after it was made to cover the image from its first pixel on.
        taps: the strides of the maps that are joined.
    """

    body: Any
    sizes: InputSizes
    own_steps: list[int]
    steps: list[float]

    def outputs(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of the body, [B, C, h, w] each, from images of a size that the body takes."""
        raise NotImplementedError

    def stage_modules(self) -> list[str]:
        """Return the name of the last module of each stage of the body."""
        raise NotImplementedError

    def build(
        self,
        widths: Sequence[int],
        stride: int,
        output_stride: int,
        channels: int | None,
        local: bool,
        any_size: bool,
        image: Tensor,
    ) -> None:
        """Create the layers after the body.

        Args:
            widths: the number of channels of each map in `outputs`.
            stride: the number of pixels per node of the feature map.
            output_stride: the coarsest stride of `levels` if `channels` is None and the body has only one map.
            channels: the number of channels of the feature map. 0 concatenates the maps of the body without new layers,
                and None omits block 6, for networks that use `levels`.
            local: normalize each node separately.
            any_size: as for `measure`.
            image: an image of the size for which the body was made, [1, C, H, W].
        """
        mode, _ = self.body.training, self.body.eval()
        self.sizes = measure(self.outputs, self.own_steps, any_size, image)
        self.steps = [float(step) for step in self.own_steps]
        if self.sizes.window:
            # A whole number of nodes must cover a window. timm rounds the stride of a few networks.
            side = self.sizes.window[0]
            self.steps = [side / round(side / step) for step in self.own_steps]
        self.body.train(mode)
        single = len(self.steps) == 1
        # If several maps have the same stride, the last one is used, because it is the deepest.
        self.sources = {nominal(step): number for number, step in enumerate(self.steps)}
        self.widths = {reached: widths[number] for reached, number in self.sources.items()}
        wanted = [reached for reached in self.sources if reached >= stride]
        if channels is None:
            wanted = [reached for reached in STRIDES if reached <= output_stride] + ([] if single else wanted)
        self.neck = nn.ModuleDict({"norm": LayerNorm2d(widths[0])} if single else {})
        for missing in sorted({stride, *wanted} - set(self.sources)) if channels != 0 else ():
            self._add_level(missing)
        if single and channels is None:
            self.widths = {reached: width for reached, width in self.widths.items() if reached in wanted}
        self.widths = dict(sorted(self.widths.items()))
        # Without new layers, even a single map that is coarser than the stride or finer is only resampled.
        self.taps = [reached for reached in self.widths if reached >= stride] or [max(self.widths)]
        self.stride = stride
        self.joined = channels != 0
        self.out_channels = self.widths[max(self.widths)]
        if channels == 0:
            self.out_channels = sum(self.widths[tap] for tap in self.taps)
        elif channels is not None:
            self._join(channels, local)

    def _add_level(self, stride: int) -> None:
        """Add a stride that the body does not have to `widths`, and the layers that compute it to `neck`."""
        finer = [reached for reached in self.sources if reached < stride]
        if finer:
            self.widths[stride] = self.widths[max(finer)]
            return
        finest = min(self.sources)
        self.neck[str(stride)], self.widths[stride] = upsampling(self.widths[finest], finest // stride)

    def _join(self, channels: int, local: bool) -> None:
        """Create the layers that join the maps."""
        self.lateral = nn.ModuleList(nn.Conv2d(self.widths[tap], channels, 1) for tap in self.taps)
        self.block6 = nn.Sequential(
            norm(channels, local),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            norm(channels, local),
            nn.ReLU(),
        )
        self.out_channels = channels

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the body if they are pretrained."""
        return list(self.body.parameters()) if self.pretrained else []

    def freeze(self, stages: int, filters: bool = False) -> None:
        """Exclude parts of the body from training (see `Backbone.freeze`).

        These parts are the most expensive to train, and their weights change least.
        """
        names = self.stage_modules()
        if not 0 <= stages <= len(names):
            raise ValueError(f"frozen_stages={stages} is not valid. Expected 0 to {len(names)} for this backbone.")
        for module in self.body.modules() if filters else ():
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                module.weight.requires_grad_(False)
        if stages == 0:
            return
        # The modules are in the order of the forward pass. timm separates the parts of their names by "." or "_".
        last = names[stages - 1].replace(".", "_")
        modules = [(name.replace(".", "_") + "_", module) for name, module in self.body.named_modules()]
        starts = tuple(f"{wrapper}{last}_" for wrapper in ("", "model_", "model_encoder_", "body_"))
        within = [i for i, (name, _) in enumerate(modules) if name.startswith(starts)]
        if not within:
            raise ValueError(
                f"frozen_stages={stages} is not possible, because this backbone has no module {last!r}. Set "
                "frozen_stages to 0."
            )
        for _, module in modules[: within[-1] + 1]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "PyramidBackbone":
        """Set the training mode, but with `norm_eval` keep BatchNorm layers of a pretrained body in evaluation mode."""
        super().train(mode)
        if self.norm_eval and self.pretrained:
            for module in self.body.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def levels(self, images: Tensor) -> dict[int, Tensor]:
        """Compute the last map of each stride (see `Backbone.levels`)."""
        height, width = images.shape[-2:]
        return self._levels(images, list(self.widths), height, width)

    def maps(self, images: Tensor) -> Tensor:
        """Compute the input of block 6, which has the size of the feature map, from images [B, C, H, W]."""
        height, width = images.shape[-2:]
        if self.sizes.unit > 1 or self.sizes.window:
            # Whole nodes of the coarsest stride are computed, so that no map is stretched.
            coarsest = max(self.taps)
            height, width = (-(-side // coarsest) * coarsest for side in (height, width))
        if not self.joined:
            return self._concatenated(images, height, width)
        levels = self._levels(images, self.taps, height, width)
        total = self.lateral[0](levels[self.taps[0]])
        for tap, lateral in zip(self.taps[1:], self.lateral[1:], strict=True):
            total = total + upsample(lateral(levels[tap]), total.shape[-2:])
        return _crop(total, *(-(-side // self.stride) for side in images.shape[-2:]))

    def _concatenated(self, images: Tensor, height: int, width: int) -> Tensor:
        """Resample the maps of the body to the feature map's grid, and concatenate them."""
        found = self._outputs(self.sizes.pad(images))
        if "norm" in self.neck:
            found = [self.neck["norm"](found[0])]
        rows, columns = (-(-side // self.stride) for side in images.shape[-2:])
        numbers = [self.sources[tap] for tap in self.taps]
        return torch.cat([_on_grid(found[i], self.steps[i], self.stride, rows, columns) for i in numbers], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Compute a feature map [B, channels, ceil(H / stride), ceil(W / stride)] from images [B, C, H, W]."""
        if not self.joined:
            return self.maps(images)
        if hasattr(self, "block6"):
            return self.block6(self.maps(images))
        return self.levels(images)[max(self.widths)]

    def _levels(self, images: Tensor, strides: Sequence[int], height: int, width: int) -> dict[int, Tensor]:
        """Compute maps of the given strides that cover a height and a width in pixels."""
        found = self._outputs(self.sizes.pad(images))
        if "norm" in self.neck:
            found = [self.neck["norm"](found[0])]
        return {
            stride: _on_grid(*self._source(found, stride), stride, -(-height // stride), -(-width // stride))
            for stride in strides
        }

    def _source(self, found: list[Tensor], stride: int) -> tuple[Tensor, float]:
        """Return the map from which the map of a stride is resampled, and its number of pixels per node."""
        if str(stride) in self.neck:
            finest = min(self.sources)
            number = self.sources[finest]
            return self.neck[str(stride)](found[number]), self.steps[number] * stride / finest
        number = self.sources[max(reached for reached in self.sources if reached <= stride)]
        return found[number], self.steps[number]

    def _outputs(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of the body from padded images, in windows if the body takes only one size."""
        window = self.sizes.window
        parts = images if window is None else in_windows(images, window)
        height, width = parts.shape[-2:]
        found = [
            _whole(maps, own, step, height, width)
            for maps, own, step in zip(self.outputs(parts), self.own_steps, self.steps, strict=True)
        ]
        if window is None:
            return found
        rows, columns = (side // own for side, own in zip(images.shape[-2:], window, strict=True))
        return [join_windows(maps, rows, columns) for maps in found]


def norm(channels: int, local: bool) -> nn.Module:
    """Create a normalization layer, either for each node separately or for the whole map."""
    if local:
        return LayerNorm2d(channels)
    return MapGroupNorm(32 if channels % 32 == 0 else 1, channels)


class MapGroupNorm(nn.GroupNorm):
    """Group normalization that also takes a map with a single node and one channel per group.

    `nn.GroupNorm` raises an error in this case, also in prediction. Here, the result is the bias.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize maps, [B, C, h, w]."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def _whole(maps: Tensor, own_step: float, step: float, height: int, width: int) -> Tensor:
    """Resample maps whose nodes do not cover the image exactly from its first pixel on.

    Such maps come from convolutions without padding, so they are centered in the image.
    """
    size = [math.ceil(side / step) for side in (height, width)]
    if own_step == step and list(maps.shape[-2:]) == size:
        return maps
    starts = [(side - nodes * own_step) / 2 for side, nodes in zip((height, width), maps.shape[-2:], strict=True)]
    return resample(maps, own_step, step, size, starts)


def _on_grid(maps: Tensor, step: float, stride: int, rows: int, columns: int) -> Tensor:
    """Return maps with nodes of `stride` pixels, resampled only if it is necessary."""
    if step == stride and maps.shape[-2] >= rows and maps.shape[-1] >= columns:
        return _crop(maps, rows, columns)
    return resample(maps, step, stride, (rows, columns))


def _crop(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Omit the nodes of the padding."""
    return maps if maps.shape[-2:] == (rows, columns) else maps[..., :rows, :columns]
