"""Maps of other strides are at the right places."""

import pytest
import torch

from contextcrf.nets.backbones import TimmBackbone, create_backbone
from contextcrf.nets.input_sizes import InputSizes, in_windows, join_windows, measure
from contextcrf.nets.neck import resample


def centers(step, count, start=0.0):
    """A map whose values are the coordinates of its nodes."""
    return (start + (torch.arange(count) + 0.5) * step).expand(1, 2, count, count)


@pytest.mark.parametrize(("step", "start", "stride"), [(14, 0, 8), (14, 0, 16), (8, 4, 8), (17.1, 0, 16), (7, 0, 32)])
def test_no_node_is_moved(step, start, stride):
    side, count = 224, round((224 - 2 * start) / step)
    found = resample(centers(step, count, start), step, stride, (side // stride, side // stride), (start, start))
    inner = slice(1, -1)
    # A weighted mean of finer nodes has its center within a pixel of the coarser node.
    apart = (found - centers(stride, side // stride))[..., inner].abs().max()
    assert apart < (1 if stride > step else 1e-4)


def test_windows_are_joined_in_the_order_in_which_they_were_cut():
    images = torch.randn(2, 3, 6, 8)
    torch.testing.assert_close(join_windows(in_windows(images, (3, 2)), 2, 4), images)


def test_a_network_with_windows_sees_each_window_alone():
    backbone = TimmBackbone("test_vit_relpos", 16, 32, 8, pretrained=False).eval()
    assert backbone.sizes == InputSizes(window=(160, 160))
    images = torch.randn(1, 3, 320, 480)
    with torch.inference_mode():
        whole = backbone.levels(images)[16]
        part = backbone.levels(images[..., 160:, 320:])[16]
    torch.testing.assert_close(whole[..., 10:, 20:], part)


@pytest.mark.parametrize(
    ("layer", "step", "found"),
    [
        (torch.nn.AvgPool2d(3, 2, 1), 2, InputSizes()),
        (torch.nn.AvgPool2d(4), 4, InputSizes(unit=4, least=4)),
        (torch.nn.Conv2d(3, 1, 3, stride=2), 2, InputSizes(unit=2, least=3, offset=1)),
    ],
)
def test_the_sizes_of_a_layer_are_measured(layer, step, found):
    assert measure(lambda images: [layer(images)], [step], True, torch.zeros(1, 3, 65, 65)) == found


def test_a_network_that_takes_no_size_is_refused():
    def refuse(images):
        raise RuntimeError("no")

    with pytest.raises(ValueError, match="neither images whose sides are multiples of 4 pixels nor images of 64 x 64"):
        measure(refuse, [4], True, torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(("name", "channels"), [("plain", 32), ("resnet10t", 32), ("vit_tiny_patch16_224", 32)])
def test_an_image_of_a_single_node_is_predicted(name, channels):
    backbone = create_backbone(name, 8, None, channels, pretrained=False).eval()
    with torch.inference_mode():
        assert backbone(torch.randn(1, 3, 8, 8)).isfinite().all()
