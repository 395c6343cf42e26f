"""Dense CRF: a fully connected CRF over pixels with Gaussian edge potentials, and its mean-field inference.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011, which is
the refinement step of Lin et al. 2015 (their reference [21]). Conventions and results are those of pydensecrf.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from contextcrf.crf.checks import whole_number
from contextcrf.crf.lattice import Lattice, weighted_sums
from contextcrf.crf.unaries import bounded

Normalization = Literal["symmetric", "before", "after", "none"]
Sigma = float | Sequence[float]
Compat = float | Sequence[float] | Sequence[Sequence[float]] | Tensor


# How many numbers are sliced, added up and normalized at once: a few MiB.
_PIECE_ELEMENTS = 1 << 19
# Over rows with fewer numbers than a vector register holds, torch's softmax takes ten times as long as over columns.
_SHORT = 16


class DenseCRF(nn.Module):
    """Refine the logits of a segmentation network with a fully connected CRF guided by the image.

    The energy of two pixels p, q with different labels is w1 k1(p, q) + w2 k2(p, q), where k is the Gaussian
    exp(-|f_p - f_q|^2 / 2) of features f = (x / sxy, y / sxy) for the spatial kernel and
    f = (x / sxy, y / sxy, color / srgb) for the bilateral one, and each kernel matrix is normalized. Inference is
    parallel mean field, started at softmax(logits):

        Q_p = softmax(logits_p + sum over kernels m of w_m sum over q of k_m(p, q) Q_q)

    The result equals that of ``pydensecrf.densecrf.DenseCRF2D`` with ``addPairwiseGaussian`` and
    ``addPairwiseBilateral``; as there, q = p is in the sum. The defaults may remove small or thin objects: tune them on
    held-out images.

    Args:
        spatial_sxy: standard deviation of the spatial kernel in pixels; or one for each axis, x first: (x, y) or
            (x, y, z).
        spatial_compat: weight w1 of the spatial kernel in the Potts model. Or, as in pydensecrf, an energy: [K] of two
            pixels that both have the label k, or [K, K] of label k at a pixel whose neighbor has the label j. A number
            w is the matrix -w I. (pydensecrf makes matrices symmetric first, here they stay as they are.)
        bilateral_sxy: standard deviation of the bilateral kernel in the image plane in pixels, like ``spatial_sxy``.
        bilateral_srgb: standard deviation of the bilateral kernel in color, in units of 0..255; or one for each
            channel.
        bilateral_compat: weight w2 of the bilateral kernel, like ``spatial_compat``.
        iterations: mean-field iterations, >= 0.
        normalization: of a kernel matrix K with row sums D: "symmetric" is D^-1/2 K D^-1/2, "before" K D^-1, "after"
            D^-1 K, "none" K.
        learnable: make the compatibilities and the logarithms of the standard deviations parameters.
        tolerance: a label whose probability is below this at every pixel of an image, and the highest at none, is left
            out to save time: its marginals are 0. With weights w >= 0 they would stay below about ``tolerance``, and no
            other marginal changes by more than about K (1 + w1 + w2) ``tolerance`` (where kernels are normalized). With
            matrices or negative weights no label is left out; 0 keeps all labels.

    Attributes:
        iterations: as given.
        normalization: as given.
        learnable: as given.
        tolerance: as given.
        spatial_compat: as given, a tensor.
        bilateral_compat: as given, a tensor.

    Raises:
        ValueError: if a standard deviation is not positive and finite, a weight is not finite, ``iterations`` is not
            a whole number >= 0, ``tolerance`` is not in [0, 1), or ``normalization`` is unknown.

    Example:
        >>> import torch
        >>> from contextcrf.crf import DenseCRF
        >>> logits = torch.randn(1, 3, 24, 32)
        >>> image = torch.randint(256, (1, 3, 24, 32), dtype=torch.uint8)
        >>> DenseCRF(iterations=5)(logits, image).shape
        torch.Size([1, 3, 24, 32])
    """

    spatial_compat: Tensor
    bilateral_compat: Tensor

    def __init__(
        self,
        spatial_sxy: Sigma = 3,
        spatial_compat: Compat = 3,
        bilateral_sxy: Sigma = 80,
        bilateral_srgb: Sigma = 13,
        bilateral_compat: Compat = 10,
        iterations: int = 10,
        normalization: Normalization = "symmetric",
        learnable: bool = False,
        tolerance: float = 1e-7,
    ) -> None:
        super().__init__()
        if normalization not in get_args(Normalization):
            raise ValueError(f"normalization must be one of {get_args(Normalization)}, got {normalization!r}")
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance must be in [0, 1), got {tolerance}")
        self.iterations = whole_number("iterations", iterations, least=0)
        self.normalization, self.tolerance = normalization, tolerance
        self.learnable = learnable
        sigmas = {"spatial_sxy": spatial_sxy, "bilateral_sxy": bilateral_sxy, "bilateral_srgb": bilateral_srgb}
        for name, sigma in sigmas.items():
            # No logarithm where nothing is learned: it would turn 10 into 10.000001, and points on the border of two
            # simplices of the lattice would fall into the other one.
            value = _checked_sigma(name, sigma)
            self._keep(*((f"log_{name}", value.log()) if learnable else (f"_{name}", value)))
        for name, compat in {"spatial_compat": spatial_compat, "bilateral_compat": bilateral_compat}.items():
            self._keep(name, _checked_compat(name, compat))

    def _keep(self, name: str, value: Tensor) -> None:
        if self.learnable:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value, persistent=False)

    def _sigma(self, name: str) -> Tensor:
        return self.get_parameter(f"log_{name}").exp() if self.learnable else self.get_buffer(f"_{name}")

    @property
    def spatial_sxy(self) -> Tensor:
        """Standard deviation of the spatial kernel in pixels, a number or one for each axis."""
        return self._sigma("spatial_sxy")

    @property
    def bilateral_sxy(self) -> Tensor:
        """Standard deviation of the bilateral kernel in the image plane in pixels, a number or one for each axis."""
        return self._sigma("bilateral_sxy")

    @property
    def bilateral_srgb(self) -> Tensor:
        """Standard deviation of the bilateral kernel in color, a number or one for each channel."""
        return self._sigma("bilateral_srgb")

    def forward(self, logits: Tensor, images: Tensor, extra: Tensor | None = None) -> Tensor:
        """Run mean field; the images of a batch are independent.

        Args:
            logits: [B, K, H, W], any floating dtype; negative unary energies up to a constant per pixel. Infinite ones
                are taken as very large. For a volume [B, K, D, H, W], and the other arguments likewise.
            images: [B, C, H, W], any number C of channels, values in 0..255, integer or floating.
            extra: [B, E, H, W], further features of the bilateral kernel (such as depth), each in units of its own
                standard deviation.

        Returns:
            Marginals [B, K, H, W], summing to 1 over K; float64 if the logits are, else float32. Differentiable in the
            logits, in floating images, in ``extra`` and in the parameters if they are learnable.

        Raises:
            ValueError: naming what is wrong with the shapes, dtypes, devices or values of the arguments. Floating
                images in 0..1 are refused too, except images without contrast, where the unit makes no difference.
        """
        return self._refine(logits, images, extra, self._mean_field)

    def log_marginals(self, logits: Tensor, images: Tensor, extra: Tensor | None = None) -> Tensor:
        """The logarithms of the marginals, for a likelihood: exact even where the marginals underflow to 0.

        No label is left out, whatever the `tolerance`.

        Args:
            logits: as for `forward`.
            images: as for `forward`.
            extra: as for `forward`.

        Returns:
            [B, K, H, W], of the dtype that `forward` returns.

        Raises:
            ValueError: as `forward` does.
        """
        return self._refine(logits, images, extra, self._log_mean_field)

    def _refine(self, logits: Tensor, images: Tensor, extra: Tensor | None, infer: "_Infer") -> Tensor:
        """Apply `infer` to the logits and kernels of each image, and stack the results."""
        _check_inputs(logits, images, extra)
        self._check_parameters(logits.shape[1], images.shape[1], logits.ndim - 2)
        # No half precision: sums over a hundred pixels would lose their digits.
        with torch.autocast(logits.device.type, enabled=False):
            dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
            size = logits.shape[2:]
            guides = images.to(dtype).flatten(2).mT / self.bilateral_srgb.to(dtype)
            if extra is not None:
                guides = torch.cat([guides, extra.to(dtype).flatten(2).mT], 2)
            axes = [torch.arange(n, dtype=dtype, device=logits.device) for n in size]
            # x first: the last axis runs along a row.
            place = torch.stack([axis.flatten() for axis in reversed(torch.meshgrid(*axes, indexing="ij"))], 1)

            spatial = self._kernels(self.spatial_compat, place / self.spatial_sxy.to(dtype))
            near = place / self.bilateral_sxy.to(dtype)
            found = []
            for image, guide in zip(logits.flatten(2), guides, strict=True):
                # The bilateral kernel comes first: it has many vertices, and its blur takes twice their memory.
                bilateral = self._kernels(self.bilateral_compat, torch.cat([near, guide], 1))
                # [N, K]: the lattice filters rows of pixels.
                unary = bounded(image.to(dtype)).T.contiguous()
                found.append(infer(unary, [*bilateral, *spatial]))
            return torch.stack(found).view(logits.shape) if len(found) > 1 else found[0].view(logits.shape)

    def _mean_field(self, unary: Tensor, kernels: Sequence["_Kernel"]) -> Tensor:
        """Marginals [K, N] of one image with logits [N, K]."""
        q = _softmax(unary)
        if all(kernel.attracts for kernel in kernels):
            active = q.detach().amax(0) >= self.tolerance
            active[q.argmax(1)] = True
            if not active.all():
                few = unary[:, active]
                q = self._iterate(_softmax(few), few, _Messages(kernels), self.iterations)
                return unary.new_zeros(unary.shape[::-1]).index_copy(0, active.nonzero().flatten(), q.T)
        return self._iterate(q, unary, _Messages(kernels), self.iterations).T.contiguous()

    def _log_mean_field(self, unary: Tensor, kernels: Sequence["_Kernel"]) -> Tensor:
        """Logarithms of the marginals [K, N] of one image with logits [N, K]."""
        if kernels and self.iterations:
            messages = _Messages(kernels)
            unary = unary + messages(self._iterate(_softmax(unary), unary, messages, self.iterations - 1))
        return unary.log_softmax(1).T.contiguous()

    def _iterate(self, q: Tensor, unary: Tensor, messages: "_Messages", iterations: int) -> Tensor:
        """Run mean field from the marginals q [N, K], whose memory may be overwritten. Returns marginals [N, K]."""
        in_place = not (torch.is_grad_enabled() and (unary.requires_grad or messages.learned))
        for _ in range(iterations if messages.kernels else 0):
            if in_place:
                messages.update(q, unary)
            else:
                q = _softmax(messages(q).add_(unary))
        return q

    def _kernels(self, compat: Tensor, features: Tensor) -> list["_Kernel"]:
        """The kernel of these features in a list, which is empty if the compatibility is zero and stays so."""
        if not self.learnable and not compat.any():
            return []
        return [_Kernel(features, compat.to(features.dtype), self.normalization)]

    def _check_parameters(self, classes: int, channels: int, axes: int) -> None:
        """Raise ValueError where a parameter is for another number of classes, channels or axes."""
        for name in ("spatial_compat", "bilateral_compat"):
            compat = getattr(self, name)
            if compat.ndim and compat.shape[0] != classes:
                raise ValueError(f"{name} is for {compat.shape[0]} classes, the logits have {classes}")
        for name, wanted, what in (
            ("spatial_sxy", axes, "axes"), ("bilateral_sxy", axes, "axes"), ("bilateral_srgb", channels, "channels")
        ):  # fmt: skip
            given = getattr(self, name)
            if given.ndim and len(given) != wanted:
                raise ValueError(f"{name} has {len(given)} values, the images have {wanted} {what}")

    def extra_repr(self) -> str:
        names = ("spatial_sxy", "spatial_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat")
        shown = [f"{name}={_shown(getattr(self, name))}" for name in names]
        return ", ".join([*shown, f"iterations={self.iterations}", f"normalization={self.normalization!r}"])


class _Kernel:
    """The normalized Gaussian kernel matrix of ``features`` [N, d], with a compatibility of labels."""

    def __init__(self, features: Tensor, compat: Tensor, normalization: Normalization) -> None:
        self.lattice = Lattice(features)
        self.compat = compat
        # Whether a label at one pixel makes only the same label more probable at others.
        self.attracts = compat.ndim == 0 and bool(compat >= 0)
        self.learned = compat.requires_grad or features.requires_grad
        self.before: Tensor | None = None
        self.after: Tensor | None = None
        if normalization != "none":
            ones = features.new_ones(len(features), 1)
            sums = self.lattice.filter(ones) if features.requires_grad else self.lattice.sums()
            self.before = {"symmetric": sums.rsqrt(), "before": 1 / sums}.get(normalization)
            self.after = {"symmetric": sums.rsqrt(), "after": 1 / sums}.get(normalization)

    def messages(self, q: Tensor) -> Tensor:
        """The messages [N, K], minus the expected energies of the labels, of marginals ``q`` [N, K]."""
        filtered = self.lattice.filter(q if self.before is None else self.before * q)
        return self.mixed(filtered if self.after is None else self.after * filtered)

    def weights(self, transpose: bool) -> tuple[Tensor, Tensor]:
        """The splat and slice weights of the lattice, with the normalization multiplied in."""
        ends = (self.after, self.before) if transpose else (self.before, self.after)
        return self.lattice.splat_weights(ends[0]), self.lattice.slice_weights(ends[1])

    def mixed(self, values: Tensor, transpose: bool = False) -> Tensor:
        """Values [M, K] of the labels, multiplied by the compatibility."""
        if self.compat.ndim == 2:
            return -values @ (self.compat if transpose else self.compat.T)
        return values * (self.compat if self.compat.ndim == 0 else -self.compat)


# From the logits [N, K] of an image and its kernels to marginals [K, N], or to their logarithms.
_Infer = Callable[[Tensor, Sequence[_Kernel]], Tensor]


class _Messages:
    """The sum of the kernels' messages, a linear map of the marginals [N, K].

    Unless the kernels need gradients, the factors of the normalization are merged into the weights of the lattice, and
    the compatibility is applied at the vertices of the lattice, of which there are far fewer than pixels.
    """

    def __init__(self, kernels: Sequence[_Kernel]) -> None:
        self.kernels = kernels
        self.learned = any(kernel.learned for kernel in kernels)
        self.weights: dict[bool, list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, q: Tensor) -> Tensor:
        if self.learned:
            return torch.stack([kernel.messages(q) for kernel in self.kernels]).sum(0)
        return _Merged.apply(q, self, False)

    def update(self, q: Tensor, unary: Tensor) -> None:
        """One iteration of mean field in place, in pieces that stay in a processor's cache."""
        vertex_values = self.splatted(q, False)
        step = max(1, _PIECE_ELEMENTS // q.shape[1])
        for start in range(0, len(q), step):
            rows = slice(start, start + step)
            _softmax(self.sliced(vertex_values, rows, False).add_(unary[rows]), out=q[rows])

    def merged(self, values: Tensor, transpose: bool) -> Tensor:
        """The linear map, or its transpose."""
        return self.sliced(self.splatted(values, transpose), slice(None), transpose)

    def splatted(self, values: Tensor, transpose: bool) -> list[Tensor]:
        """The first half of the map, from pixels [N, K] to the vertices [V, K] of the lattice of each kernel."""
        if transpose not in self.weights:
            self.weights[transpose] = [kernel.weights(transpose) for kernel in self.kernels]
        return [
            kernel.mixed(kernel.lattice.splat(values, weights, transpose), transpose)
            for kernel, (weights, _) in zip(self.kernels, self.weights[transpose], strict=True)
        ]

    def sliced(self, vertex_values: Sequence[Tensor], rows: slice, transpose: bool) -> Tensor:
        """The second half of the map, from the vertices to some of the pixels, [n, K]."""
        first, *others = (
            weighted_sums(values, kernel.lattice.vertices[rows], weights[rows])
            for kernel, values, (_, weights) in zip(self.kernels, vertex_values, self.weights[transpose], strict=True)
        )
        return sum(others, first)


class _Merged(torch.autograd.Function):
    """`_Messages.merged` with its gradient, which is the transposed map."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, messages: _Messages, transpose: bool) -> Tensor:
        ctx.messages, ctx.transpose = messages, transpose
        return messages.merged(values, transpose)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Merged.apply(grad, ctx.messages, not ctx.transpose), None, None


def _softmax(logits: Tensor, out: Tensor | None = None) -> Tensor:
    """Softmax over the labels of [N, K]."""
    if logits.shape[1] >= _SHORT:
        return torch.softmax(logits, 1, out=out)
    return torch.softmax(logits.T, 0, out=None if out is None else out.T).T.contiguous()


def _own(value: Sigma | Compat) -> Tensor:
    """A copy of the value, so that learning it does not change the caller's tensor."""
    return torch.as_tensor(value, dtype=torch.float32).detach().clone()


def _checked_sigma(name: str, value: Sigma) -> Tensor:
    tensor = _own(value)
    if tensor.ndim > 1 or not bool((tensor.isfinite() & (tensor > 0)).all()):
        raise ValueError(f"{name} is a standard deviation and must be positive and finite, got {value}")
    return tensor


def _checked_compat(name: str, value: Compat) -> Tensor:
    tensor = _own(value)
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {value}")
    if tensor.ndim > 2 or (tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1]):
        raise ValueError(f"{name} must be a number, [K] or [K, K], got {list(tensor.shape)}")
    return tensor


def _shown(value: Tensor) -> str:
    value = value.detach()
    if value.ndim == 0:
        return f"{float(value):.6g}"
    return f"({', '.join(f'{number:.6g}' for number in value.tolist())})" if value.ndim == 1 else f"{list(value.shape)}"


def _check_inputs(logits: Tensor, images: Tensor, extra: Tensor | None) -> None:
    shapes = f"logits {list(logits.shape)}, images {list(images.shape)}"
    if logits.ndim not in (4, 5) or images.ndim != logits.ndim:
        raise ValueError(f"logits must be [B, K, H, W] and images [B, C, H, W]; got {shapes}")
    if logits.shape[0] != images.shape[0] or logits.shape[2:] != images.shape[2:]:
        raise ValueError(f"logits and images must agree in batch size, height and width; got {shapes}")
    if logits.numel() == 0 or images.numel() == 0:
        raise ValueError(f"logits and images must not be empty; got {shapes}")
    if logits.device != images.device:
        raise ValueError(f"logits are on {logits.device} but images on {images.device}")
    if not logits.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
        raise ValueError(f"logits must be floating, images real numbers; got {logits.dtype} and {images.dtype}")
    if logits.isnan().any():
        raise ValueError("logits must not be NaN")
    if extra is not None:
        if extra.device != logits.device:
            raise ValueError(f"logits are on {logits.device} but extra on {extra.device}")
        if extra.ndim != logits.ndim or extra.shape[0] != logits.shape[0] or extra.shape[2:] != logits.shape[2:]:
            raise ValueError(f"extra must be [B, E, H, W] like the logits; got {shapes}, extra {list(extra.shape)}")
        if not extra.is_floating_point() or not extra.isfinite().all():
            raise ValueError(f"extra must be floating and finite, in units of standard deviations; got {extra.dtype}")
    if images.dtype == torch.uint8:
        return
    spatial = tuple(range(2, images.ndim))
    low, high = images.detach().amin(spatial), images.detach().amax(spatial)
    # Written so that NaN fails too.
    if not bool((low >= 0).all() and (high <= 255).all()):
        raise ValueError(
            f"images must be in 0..255, got {images.min():.4g} to {images.max():.4g}; undo any mean/std normalization"
        )
    # Values in 0..1 would be taken for an almost black image. Without contrast the unit makes no difference, since the
    # kernels depend on differences of colors alone; a black image is valid.
    if images.is_floating_point() and bool((high <= 1).all()) and bool((high > low).any()):
        raise ValueError("images seem to be in 0..1, but the color units are 0..255: multiply them by 255")
