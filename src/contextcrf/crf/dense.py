"""Dense CRF: a fully connected CRF over pixels with Gaussian edges and its mean-field inference.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011; the
refinement step of Lin et al. 2015 (their reference [21]). Conventions and results are those of pydensecrf.
"""

import math

import torch
from torch import Tensor, nn

from contextcrf.crf.lattice import Lattice


class DenseCRF(nn.Module):
    """Refine the logits of a segmentation network with a fully connected CRF guided by the image.

    Two pixels p, q with different labels pay w1 k1(p, q) + w2 k2(p, q), where k = exp(-|f_p - f_q|^2 / 2) with f =
    (x / sxy, y / sxy) for the spatial kernel and f = (x / sxy, y / sxy, colour / srgb) for the bilateral one, each
    kernel matrix normalised symmetrically to D^-1/2 K D^-1/2 (D the row sums). Inference is parallel mean field,
    started at softmax(logits):

        Q_p = softmax(logits_p + sum over kernels m of w_m sum over q of k_m(p, q) Q_q)

    The result equals that of ``pydensecrf.densecrf.DenseCRF2D`` with ``addPairwiseGaussian`` and
    ``addPairwiseBilateral``, a number as ``compat`` (Potts) and NORMALIZE_SYMMETRIC; there too q = p is in the sum.
    The defaults can do harm to small or thin objects: tune them on held-out images.

    Args:
        spatial_sxy: standard deviation of the spatial kernel, pixels.
        spatial_compat: weight w1 of the spatial kernel.
        bilateral_sxy: standard deviation of the bilateral kernel in the image plane, pixels.
        bilateral_srgb: standard deviation of the bilateral kernel in colour, in units of 0..255.
        bilateral_compat: weight w2 of the bilateral kernel.
        iterations: mean-field iterations, >= 0.

    Raises:
        ValueError: if a standard deviation is not positive and finite, a weight is not finite, or ``iterations`` is not
            a whole number >= 0.
    """

    def __init__(
        self,
        spatial_sxy: float = 3,
        spatial_compat: float = 3,
        bilateral_sxy: float = 80,
        bilateral_srgb: float = 13,
        bilateral_compat: float = 10,
        iterations: int = 10,
    ) -> None:
        super().__init__()
        sigmas = {"spatial_sxy": spatial_sxy, "bilateral_sxy": bilateral_sxy, "bilateral_srgb": bilateral_srgb}
        for name, value in sigmas.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is a standard deviation and must be positive and finite, got {value}")
        for name, value in {"spatial_compat": spatial_compat, "bilateral_compat": bilateral_compat}.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        if not isinstance(iterations, int) or iterations < 0:
            raise ValueError(f"iterations must be a whole number >= 0, got {iterations}")
        self.spatial_sxy = spatial_sxy
        self.spatial_compat = spatial_compat
        self.bilateral_sxy = bilateral_sxy
        self.bilateral_srgb = bilateral_srgb
        self.bilateral_compat = bilateral_compat
        self.iterations = iterations

    def forward(self, logits: Tensor, images: Tensor) -> Tensor:
        """Run mean field; the images of a batch are independent.

        Args:
            logits: [B, K, H, W], finite, any floating dtype; negative unary energies up to a constant per pixel.
            images: [B, C, H, W], any number C of channels, values in 0..255, integer or floating. Constants: the
                gradient flows to the logits only.

        Returns:
            marginals, [B, K, H, W], summing to 1 over K; float64 if the logits are, else float32.

        Raises:
            ValueError: naming what is wrong with the shapes, dtypes, devices or values of the arguments, among them
                images in 0..1 (allowed only where harmless, in images without contrast).
        """
        _check_inputs(logits, images)
        batch, classes, height, width = logits.shape
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        # [B, N, K]: rows of pixels, as the lattice filters them.
        unary = logits.to(dtype).reshape(batch, classes, height * width).mT.contiguous()
        colours = images.detach().to(dtype).reshape(batch, -1, height * width).mT
        x = torch.arange(width, dtype=dtype, device=logits.device).repeat(height)
        y = torch.arange(height, dtype=dtype, device=logits.device).repeat_interleave(width)
        place = torch.stack([x, y], 1)

        spatial = _Kernel(place / self.spatial_sxy, self.spatial_compat)
        marginals = []
        for unary_b, colour in zip(unary, colours, strict=True):
            features = torch.cat([place / self.bilateral_sxy, colour / self.bilateral_srgb], 1)
            bilateral = _Kernel(features, self.bilateral_compat)
            q = unary_b.softmax(1)
            for _ in range(self.iterations):
                q = bilateral.add_to(spatial.add_to(unary_b, q), q).softmax(1)
            marginals.append(q)
        return torch.stack(marginals).mT.reshape(logits.shape)

    def extra_repr(self) -> str:
        names = ("spatial_sxy", "spatial_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat", "iterations")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


class _Kernel:
    """compat * D^-1/2 K D^-1/2 for the Gaussian kernel matrix K of ``features`` [N, d] and its row sums D."""

    def __init__(self, features: Tensor, compat: float) -> None:
        self.lattice = Lattice(features)
        self.scale = self.lattice.filter(features.new_ones(len(features), 1)).rsqrt()
        self.scale_out = compat * self.scale

    def add_to(self, logits: Tensor, q: Tensor) -> Tensor:
        """Add the messages from marginals ``q`` [N, K] to ``logits`` [N, K], in one pass as time goes into memory."""
        return torch.addcmul(logits, self.scale_out, self.lattice.filter(self.scale * q))


def _check_inputs(logits: Tensor, images: Tensor) -> None:
    shapes = f"logits {list(logits.shape)}, images {list(images.shape)}"
    if logits.ndim != 4 or images.ndim != 4:
        raise ValueError(f"logits must be [B, K, H, W] and images [B, C, H, W]; got {shapes}")
    if logits.shape[0] != images.shape[0] or logits.shape[2:] != images.shape[2:]:
        raise ValueError(f"logits and images must agree in batch size, height and width; got {shapes}")
    if logits.numel() == 0 or images.numel() == 0:
        raise ValueError(f"logits and images must not be empty; got {shapes}")
    if logits.device != images.device:
        raise ValueError(f"logits are on {logits.device} but images on {images.device}")
    if not logits.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
        raise ValueError(f"logits must be floating, images real numbers; got {logits.dtype} and {images.dtype}")
    if not logits.isfinite().all():
        raise ValueError("logits must be finite, got NaN or infinity (clamp probabilities before taking their log)")
    if images.dtype == torch.uint8:
        return
    low, high = images.amin((2, 3)), images.amax((2, 3))
    # Written so that NaN fails too.
    if not bool((low >= 0).all() and (high <= 255).all()):
        raise ValueError(
            f"images must be in 0..255, got {images.min():.4g} to {images.max():.4g}; undo any mean/std normalisation"
        )
    # Values in 0..1 would pass silently as an almost black image. One without contrast, say a black one, is harmless:
    # the kernels see differences of colours only.
    if images.is_floating_point() and bool((high <= 1).all()) and bool((high > low).any()):
        raise ValueError("images seem to be in 0..1, but the colour units are 0..255: multiply them by 255")
