"""The paper's "Network Part-1": the five convolution blocks of VGG-16 and a sixth block (Fig. 5)."""

from pathlib import Path

from timm.models import adapt_input_conv
from torch import Tensor, nn

from contextcrf.nets.base import Backbone
from contextcrf.nets.weights import read_vgg16

# The number of convolutions and the number of channels in each of the five blocks.
BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class VGG16Backbone(Backbone):
    """VGG-16 up to its first fully connected layer, followed by two new convolutions.

    The fully connected layer becomes a 7 x 7 convolution, which is the first layer of block 6. Block 6 is "7 x 7 conv
    4096, 3 x 3 conv 512, 3 x 3 conv 512". At strides below 32, the last pooling layers do not reduce the size of the
    map. The following layers of VGG-16 are then dilated, so that they keep the receptive fields for which they were
    trained. The two new layers are not dilated.

    Args:
        stride: the number of pixels per node of the feature map: 8, 16, or 32 as in Fig. 5.
        channels: the number of channels of the last two convolutions, 512 in the paper. None omits block 6, for
            networks that use the `levels` of the five blocks.
        pretrained: True loads torchvision's ImageNet weights for the five blocks and the 7 x 7 convolution. A path
            loads a file with weights of torchvision's `vgg16`. False initializes all weights randomly.
        in_chans: the number of channels of the images. Pretrained weights of the first layer are adapted as by timm
            (see `TimmBackbone`).

    Raises:
        ValueError: if the stride is not 8, 16 or 32.
        WeightsNotFoundError: if pretrained weights are requested but not available.

    Example:
        >>> import torch
        >>> from contextcrf.nets.vgg import VGG16Backbone
        >>> backbone = VGG16Backbone(stride=16, channels=None, pretrained=False)
        >>> backbone(torch.randn(1, 3, 32, 48)).shape
        torch.Size([1, 512, 2, 3])
    """

    def __init__(
        self, stride: int = 32, channels: int | None = 512, pretrained: bool | str | Path = True, in_chans: int = 3
    ) -> None:
        super().__init__()
        if stride not in (8, 16, 32):
            raise ValueError(f"stride={stride} is not valid for VGG-16. Expected 8, 16 or 32.")
        layers: list[nn.Module] = []
        inputs, reached, dilation = in_chans, 1, 1
        for convolutions, outputs in BLOCKS:
            for _ in range(convolutions):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
                inputs = outputs
            if reached < stride:
                # The size is rounded up, as in Caffe, so that ceil(size / stride) nodes cover the whole image.
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                reached *= 2
            else:
                layers.append(nn.MaxPool2d(3, stride=1, padding=1))
                dilation *= 2
        self.body = nn.Sequential(*layers)
        self.block6 = nn.Sequential()
        if channels is not None:
            self.block6 = nn.Sequential(
                nn.Conv2d(inputs, 4096, 7, padding=3 * dilation, dilation=dilation),
                nn.ReLU(inplace=True),
                nn.Conv2d(4096, channels, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(inplace=True),
            )
        self.out_channels = channels or inputs
        self.widths = {min(2**block, stride): width for block, (_, width) in enumerate(BLOCKS, 1)}
        self.mean, self.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.pretrained = bool(pretrained)
        self.norm_eval = False  # VGG-16 has no BatchNorm.
        if pretrained:
            features, fc6 = read_vgg16(None if pretrained is True else Path(pretrained))
            first = adapt_input_conv(in_chans, features["0.weight"])
            self.body.load_state_dict({**features, "0.weight": first})
            if channels is not None:
                self.block6[0].load_state_dict(fc6)

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the five blocks and of the 7 x 7 convolution if they are pretrained."""
        if not self.pretrained:
            return []
        return [*self.body.parameters(), *(p for layer in self.block6[:1] for p in layer.parameters())]

    def freeze(self, stages: int, filters: bool = False) -> None:
        """Freeze the first `stages` of the five blocks (see `Backbone.freeze`). VGG-16 has no depthwise filters."""
        if filters or not 0 <= stages <= len(BLOCKS):
            raise ValueError(
                f"VGG-16 has {len(BLOCKS)} blocks and no depthwise filters, but frozen_stages={stages} and "
                f"frozen_filters={str(filters).lower()}. Set frozen_stages to 0..{len(BLOCKS)} and frozen_filters to "
                "false."
            )
        left = stages
        for layer in self.body:
            if left:
                layer.requires_grad_(False)
            left -= bool(left) and isinstance(layer, nn.MaxPool2d)

    def levels(self, images: Tensor) -> dict[int, Tensor]:
        """Compute the maps of the five blocks (see `Backbone.levels`)."""
        strides, found = iter([2, 4, 8, 16, 32]), {}
        for layer in self.body:
            images = layer(images)
            if isinstance(layer, nn.MaxPool2d):
                found[min(next(strides), max(self.widths))] = images
        return found

    def maps(self, images: Tensor) -> Tensor:
        """Compute the input of block 6, [B, 512, ceil(H / stride), ceil(W / stride)], from images [B, C, H, W]."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """Compute a feature map [B, channels, ceil(H / stride), ceil(W / stride)] from images [B, C, H, W]."""
        return self.block6(self.maps(images))
