"""Three networks of the DeepLab family: DeepLab-LargeFOV, DeepLab-MSc-LargeFOV and DeepLabV3+."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contextcrf.nets.base import Backbone
from contextcrf.nets.baselines.base import Baseline, deep_layers


class LargeFOV(Baseline):
    """DeepLab-LargeFOV, which applies a convolution of dilation 12 to a map of stride 8.

    The stages of the backbone are dilated, so that the last map has stride 8. A 3 x 3 convolution with dilation 12 and
    a 1 x 1 convolution follow. The source is Chen, Papandreou, Kokkinos, Murphy, Yuille, "Semantic Image Segmentation
    with Deep Convolutional Nets and Fully Connected CRFs", ICLR 2015. In the paper, these layers have 1024 channels.

    Args:
        backbone: as for `Baseline`, with `output_stride` 8.
        channels: as for `Baseline`.

    Example:
        >>> import torch
        >>> from contextcrf.nets.backbones import create_backbone
        >>> from contextcrf.nets.baselines.deeplab import LargeFOV
        >>> backbone = create_backbone("resnet18", 8, None, channels=None, pretrained=False)
        >>> LargeFOV(backbone, channels=16).eval()(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 16, 8, 12])
    """

    stride, output_stride, width = 8, 8, 512

    def __init__(self, backbone: Backbone, channels: int = 256) -> None:
        super().__init__(backbone, channels)
        self.deep = deep_layers(self.widths[8], channels, size=3, dilation=12)
        self.out_channels = channels

    def forward(self, images: Tensor) -> Tensor:
        """Compute features [B, out_channels, ceil(H / 8), ceil(W / 8)] from normalized images [B, C, H, W]."""
        return self.deep(self.levels(images)[8])


class MultiScaleLargeFOV(LargeFOV):
    """DeepLab-MSc-LargeFOV, which adds features of the image and of the maps before stride 8 to `LargeFOV`.

    Two convolutions with 128 channels compute these features from the image and from each map.

    Args:
        backbone: as for `Baseline`, with `output_stride` 8.
        channels: as for `Baseline`.

    Example:
        >>> import torch
        >>> from contextcrf.nets.backbones import create_backbone
        >>> from contextcrf.nets.baselines.deeplab import MultiScaleLargeFOV
        >>> backbone = create_backbone("resnet18", 8, None, channels=None, pretrained=False)
        >>> MultiScaleLargeFOV(backbone, channels=16).eval()(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 400, 8, 12])
    """

    def __init__(self, backbone: Backbone, channels: int = 256) -> None:
        super().__init__(backbone, channels)
        widths = [3, *(width for stride, width in self.widths.items() if stride < 8)]
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 1), nn.ReLU())
            for width in widths
        )
        self.out_channels = channels + 128 * len(widths)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features [B, out_channels, ceil(H / 8), ceil(W / 8)] from normalized images [B, C, H, W]."""
        levels = self.levels(images)
        last = self.deep(levels[8])
        # The maps are reduced to stride 8 before the layers, because 128 channels of a whole image need much memory.
        early = [images, *(maps for stride, maps in levels.items() if stride < 8)]
        small = [F.adaptive_avg_pool2d(maps, last.shape[-2:]) for maps in early]
        return torch.cat([last, *(branch(maps) for branch, maps in zip(self.branches, small, strict=True))], 1)


class DeepLabV3Plus(Baseline):
    """DeepLabV3+, with atrous spatial pyramid pooling at stride 16 and a decoder at stride 4.

    The source is Chen, Zhu, Papandreou, Schroff, Adam, "Encoder-Decoder with Atrous Separable Convolution", ECCV 2018.
    The decoder is the implementation of `segmentation_models_pytorch`.

    Args:
        backbone: as for `Baseline`, with `output_stride` 16.
        channels: as for `Baseline`.

    Raises:
        ValueError: if `segmentation_models_pytorch` is not installed.

    Example:
        >>> import torch
        >>> from contextcrf.nets.backbones import create_backbone
        >>> from contextcrf.nets.baselines.deeplab import DeepLabV3Plus
        >>> backbone = create_backbone("resnet10t", 16, None, channels=None, pretrained=False)
        >>> DeepLabV3Plus(backbone, channels=16).eval()(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 16, 16, 24])
    """

    stride, output_stride, width = 4, 16, 256
    least_batch = 2  # The statistics of the BatchNorm layer after the image pooling need two values per channel.

    def __init__(self, backbone: Backbone, channels: int = 256) -> None:
        super().__init__(backbone, channels)
        try:
            from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
        except ModuleNotFoundError as error:
            raise ValueError(
                "The network deeplabv3plus needs the package segmentation_models_pytorch, which is not installed. Run "
                'pip install "contextcrf[baselines]".'
            ) from error
        self.decoder = DeepLabV3PlusDecoder(
            encoder_channels=(0, self.widths.get(2, 0), *(self.widths[stride] for stride in (4, 8, 16))),
            encoder_depth=4,
            out_channels=channels,
            atrous_rates=(12, 24, 36),
            output_stride=16,
            aspp_separable=True,
            aspp_dropout=0.5,
        )
        self.out_channels = channels

    def forward(self, images: Tensor) -> Tensor:
        """Compute features [B, out_channels, ceil(H / 4), ceil(W / 4)] from normalized images [B, C, H, W]."""
        height, width = images.shape[-2:]
        # The decoder upsamples by integer factors, so height and width must be multiples of 16.
        padded = F.pad(images, (0, -width % 16, 0, -height % 16))
        levels = self.levels(padded)
        maps = self.decoder([padded, padded, levels[4], levels[8], levels[16]])
        return maps[..., : -(-height // 4), : -(-width // 4)]
