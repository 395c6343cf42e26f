"""The dense CRF: a fully connected CRF over pixels with Gaussian edge potentials, and its mean-field inference.

The method is from Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials",
NIPS 2011. Lin et al. 2015 use it as a refinement step (their reference [21]). The conventions and the results are the
same as in pydensecrf.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from contextcrf.crf.blocks import block_elements, slices
from contextcrf.crf.checks import Array, Values, returned, whole_number
from contextcrf.crf.colors import Range
from contextcrf.crf.dense_inputs import dense_inputs
from contextcrf.crf.lattice import Lattice, weighted_sums
from contextcrf.crf.unaries import bounded

Normalization = Literal["symmetric", "before", "after", "none"]
Sigma = float | Sequence[float]
Compat = float | Sequence[float] | Sequence[Sequence[float]] | Tensor


_SIGMAS = ("spatial_sxy", "bilateral_sxy", "bilateral_srgb")
_COMPATS = ("spatial_compat", "bilateral_compat")
# The number of elements that are sliced, summed and normalized at once on a CPU (a few MiB).
_PIECE_ELEMENTS = 1 << 19
# For rows with fewer elements than a vector register, torch's softmax takes ten times as long as for columns.
_SHORT = 16


class DenseCRF(nn.Module):
    """A fully connected CRF that refines the logits of a segmentation network with the colors of the image.

    Two pixels p and q with different labels have the energy w1 k1(p, q) + w2 k2(p, q). The kernels k are Gaussians
    exp(-|f_p - f_q|^2 / 2). The features f are (x / sxy, y / sxy) for the spatial kernel and
    (x / sxy, y / sxy, color / srgb) for the bilateral kernel. Each kernel matrix is normalized. Inference consists of
    parallel mean-field updates and starts at softmax(logits):

        Q_p = softmax(logits_p + sum over kernels m of w_m sum over q of k_m(p, q) Q_q)

    The result is the same as that of ``pydensecrf.densecrf.DenseCRF2D`` with ``addPairwiseGaussian`` and
    ``addPairwiseBilateral``. As in pydensecrf, the sum includes q = p. The default values may remove small or thin
    objects, so tune them on held-out images.

    Args:
        spatial_sxy: the standard deviation of the spatial kernel in pixels. A sequence has one value for each axis, x
            first: (x, y) or (x, y, z).
        spatial_compat: the weight w1 of the spatial kernel in a Potts model. Values of shape [K] or [K, K] are
            energies, as in pydensecrf. Entry k of [K] is the energy of two pixels that both have the label k. Entry (k,
            j) of [K, K] is the energy of the label k at a pixel if its neighbor has the label j. A number w is
            equivalent to the matrix -w I: an energy of -w for equal labels differs only by a constant from an energy of
            w for different labels. Unlike pydensecrf, this class does not symmetrize matrices.
        bilateral_sxy: the standard deviation of the bilateral kernel in the image plane in pixels, in the same form as
            ``spatial_sxy``.
        bilateral_srgb: the standard deviation of the bilateral kernel in color, where colors are in 0..255. A sequence
            has one value for each channel.
        bilateral_compat: the weight w2 of the bilateral kernel, in the same form as ``spatial_compat``.
        iterations: the number of mean-field iterations, >= 0.
        normalization: the normalization of a kernel matrix M with row sums D. "symmetric" is D^-1/2 M D^-1/2, "before"
            is M D^-1, "after" is D^-1 M, and "none" is M. The lattice multiplies M by a constant below 1, which cancels
            in all but "none" (`Lattice.filter`).
        learnable: turn the compatibilities and the logarithms of the standard deviations into parameters of the module.
        tolerance: the probability below which a label is skipped to save time, in [0, 1). A label is skipped in an
            image if its probability is below ``tolerance`` at every pixel and it is not the most probable label of any
            pixel. Its marginals are then 0. Without skipping, they would be below about ``tolerance``. If the kernels
            are normalized, no other marginal changes by more than about K (1 + w1 + w2) ``tolerance``. No label is
            skipped if a compatibility is a negative weight or has the shape [K] or [K, K], or if the tolerance is 0.
        stop_below: the largest change of a marginal in an iteration, in [0, 1), below which the iterations for an image
            end early. 0 runs all iterations, as pydensecrf does.

    A module with learnable values and a module with fixed values have the same entries in `state_dict`, so each can
    load the state dict of the other. A module with fixed values also accepts a state dict without any of these entries,
    and keeps its values.

    Attributes:
        iterations: as given.
        normalization: as given.
        learnable: as given.
        tolerance: as given.
        stop_below: as given.
        spatial_compat: as given, converted to a tensor.
        bilateral_compat: as given, converted to a tensor.

    Raises:
        ValueError: if a standard deviation is not positive and finite, a weight is not finite, ``iterations`` is not a
            whole number >= 0, ``tolerance`` or ``stop_below`` is not in [0, 1), or ``normalization`` is unknown.

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
        stop_below: float = 0.0,
    ) -> None:
        super().__init__()
        if normalization not in get_args(Normalization):
            raise ValueError(
                f"normalization must be one of {', '.join(get_args(Normalization))}, but is {normalization!r}."
            )
        for name, value in (("tolerance", tolerance), ("stop_below", stop_below)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be >= 0 and < 1, but is {value}.")
        self.iterations = whole_number("iterations", iterations, least=0)
        self.normalization, self.tolerance, self.stop_below = normalization, tolerance, stop_below
        self.learnable = learnable
        sigmas = {"spatial_sxy": spatial_sxy, "bilateral_sxy": bilateral_sxy, "bilateral_srgb": bilateral_srgb}
        for name, sigma in sigmas.items():
            # Take logarithms only if they are learned. They would change 10 to 10.000001, and points on the border of
            # two simplices of the lattice would be assigned to the other simplex.
            checked = _checked_sigma(name, sigma)
            self._keep(*((f"log_{name}", checked.log()) if learnable else (f"_{name}", checked)))
        for name, compat in {"spatial_compat": spatial_compat, "bilateral_compat": bilateral_compat}.items():
            self._keep(name, _checked_compat(name, compat))

    def _keep(self, name: str, value: Tensor) -> None:
        """Register a value as a parameter if it is learned, and as a buffer otherwise."""
        if self.learnable:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value, persistent=False)

    def _sigma(self, name: str) -> Tensor:
        """Return a standard deviation by its name."""
        return self.get_parameter(f"log_{name}").exp() if self.learnable else self.get_buffer(f"_{name}")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save the same entries for learned and fixed values: the logarithms of the deviations and the weights."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.learnable:
            for name in _SIGMAS:
                # In float64, the logarithm of a float32 number has an exact inverse. Not all devices have float64.
                destination[f"{prefix}log_{name}"] = self._sigma(name).detach().cpu().double().log()
            for name in _COMPATS:
                destination[f"{prefix}{name}"] = self.get_buffer(name).detach()

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: Any, strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Load the entries that `_save_to_state_dict` saved, if their shapes are those of this module."""
        own = {f"log_{name}": self._sigma(name) for name in _SIGMAS} | {name: getattr(self, name) for name in _COMPATS}
        given = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
        wrong = [name for name, value in given.items() if value.shape != own[name].shape]
        error_msgs += [_wrong_shape(name, given[name], own[name]) for name in wrong]
        if wrong:
            return
        if self.learnable:
            super()._load_from_state_dict(
                state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs
            )  # fmt: skip
            return
        if strict:
            # Without any entry, the module keeps its values: the file is of a network without a dense CRF.
            missing_keys += [prefix + name for name in own if given and name not in given]
            known = {prefix + name for name in own}
            unexpected_keys += [key for key in state_dict if key.startswith(prefix) and key not in known]
        with torch.no_grad():
            for name, value in given.items():
                if name in _COMPATS:
                    self.get_buffer(name).copy_(value)
                else:
                    self.get_buffer(name.replace("log_", "_")).copy_(value.exp())

    @property
    def spatial_sxy(self) -> Tensor:
        """The standard deviation of the spatial kernel in pixels, one number or one for each axis."""
        return self._sigma("spatial_sxy")

    @property
    def bilateral_sxy(self) -> Tensor:
        """The standard deviation of the bilateral kernel in pixels, one number or one for each axis."""
        return self._sigma("bilateral_sxy")

    @property
    def bilateral_srgb(self) -> Tensor:
        """The standard deviation of the bilateral kernel in color, one number or one for each channel."""
        return self._sigma("bilateral_srgb")

    def forward(
        self, logits: Values, images: Array, extra: Array | None = None, image_range: Range | None = None
    ) -> Values:
        """Run mean field. The images of a batch do not influence each other.

        The arguments are tensors or NumPy arrays. The result is an array if the logits are an array. Arrays are moved
        to the device of the other arguments, or of the module if there is no tensor.

        Args:
            logits: the negative unary energies up to a constant per pixel, [B, K, H, W] with any floating dtype, or [K,
                H, W] for one image. The other arguments then have no axis B either. Infinite logits are replaced by
                large finite ones. For a volume, the shape is [B, K, D, H, W], and the other arguments also have the
                axis D.
            images: the images, [B, C, H, W] with any number of channels C. Values are in 0..255, integer or floating.
                Values of the dtype uint16 are in 0..65535. RGB images of 8 or 16 bits may also be [B, H, W, 3]. If the
                last two axes equal H and W of the logits, the shape is read as [B, C, H, W].
            extra: additional features of the bilateral kernel, such as depth, [B, F, H, W] with F features. First
                divide each feature by a standard deviation of your choice, which has the same role for this feature as
                ``bilateral_srgb`` has for the colors.
            image_range: the values (low, high) of black and white, if the images do not have the range stated under
                `images`. The values are then mapped from this range to 0..255. Except for uint16, (0, 255) changes no
                values and only turns off the check of the value range (see Raises).

        Returns:
            Marginals [B, K, H, W], or [K, H, W] for one image, which sum to 1 over K. They are float64 if the logits
            are, and float32 otherwise. If the result is a tensor, it is differentiable with respect to the logits, to
            floating images, to ``extra`` and, if they are learnable, to the parameters.

        Raises:
            ValueError: if the shape, the dtype, the device or the values of an argument are wrong. The message names
                the reason. Without ``image_range``, this error is also raised if an image of the batch seems to have
                another value range and would be almost black: floating-point values that are all <= 1, integers that
                are all <= 2, values that are all <= 16 and not all whole numbers, or uint16 values that are all below
                16384. An image whose values are all equal is not checked for this.
        """
        return self._refine(logits, images, extra, image_range, self._mean_field)

    def log_marginals(
        self, logits: Values, images: Array, extra: Array | None = None, image_range: Range | None = None
    ) -> Values:
        """Compute the logarithms of the marginals, which a likelihood needs.

        They are exact even if the marginals underflow to 0. The method skips no label, so `tolerance` has no effect.

        Args:
            logits: as for `forward`.
            images: as for `forward`.
            extra: as for `forward`.
            image_range: as for `forward`.

        Returns:
            The logarithms, [B, K, H, W] or [K, H, W], with the same type and dtype as the marginals of `forward`.

        Raises:
            ValueError: in the same cases as `forward`.

        Example:
            >>> import torch
            >>> from contextcrf.crf import DenseCRF
            >>> crf = DenseCRF(iterations=2, learnable=True)
            >>> image, labels = torch.randint(256, (1, 3, 24, 32)), torch.randint(3, (1, 24, 32))
            >>> loss = torch.nn.functional.nll_loss(crf.log_marginals(torch.randn(1, 3, 24, 32), image), labels)
            >>> loss.backward()
        """
        return self._refine(logits, images, extra, image_range, self._log_mean_field)

    def _refine(
        self, logits: Values, images: Array, extra: Array | None, image_range: Range | None, infer: "_Infer"
    ) -> Values:
        """Apply `infer` to the given inputs, and return the result in their form."""
        inputs = dense_inputs(logits, images, extra, image_range, self.bilateral_srgb.device)
        found = self._inferred(inputs.logits, inputs.images, inputs.extra, infer)
        return returned(found if inputs.batched else found[0], logits)

    def _inferred(self, logits: Tensor, images: Tensor, extra: Tensor | None, infer: "_Infer") -> Tensor:
        """Apply `infer` to the logits and kernels of each image, and stack the results."""
        self._check_parameters(logits.shape[1], images.shape[1], logits.ndim - 2)
        # Half precision would be inaccurate, since messages are sums over hundreds of pixels.
        with torch.autocast(logits.device.type, enabled=False):
            dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
            size = logits.shape[2:]
            # A feature of all pixels is a row here, because the lattice reads one feature after the other.
            guides = images.to(dtype).flatten(2) / self.bilateral_srgb.to(dtype).view(-1, 1)
            if extra is not None:
                guides = torch.cat([guides, extra.to(dtype).flatten(2)], 1)
            axes = [torch.arange(n, dtype=dtype, device=logits.device) for n in size]
            # Features have x first, which is the last axis of the image.
            place = torch.stack([axis.flatten() for axis in reversed(torch.meshgrid(*axes, indexing="ij"))])

            spatial = self._kernels(self.spatial_compat, place / self.spatial_sxy.to(dtype).view(-1, 1))
            near = place / self.bilateral_sxy.to(dtype).view(-1, 1)
            found = []
            for image, guide in zip(logits.flatten(2), guides, strict=True):
                # The bilateral kernel is built first, because blurring its many vertices needs twice their memory.
                bilateral = self._kernels(self.bilateral_compat, torch.cat([near, guide]))
                found.append(infer(image.to(dtype), [*bilateral, *spatial]))
            return torch.stack(found).view(logits.shape) if len(found) > 1 else found[0].view(logits.shape)

    def _mean_field(self, logits: Tensor, kernels: Sequence["_Kernel"]) -> Tensor:
        """Compute the marginals [K, N] of one image from logits [K, N]."""
        shape, logits = logits.shape, bounded(logits)
        q = logits.softmax(0)
        active = self._active(q, kernels)
        if len(active) < len(q):
            logits = logits[active]
            q = logits.softmax(0)
        # The lattice filters one row of values per pixel, [N, K].
        q = _transposed(q)
        unary = _transposed(logits)
        del logits
        q = _transposed(self._iterate(q, unary, _Messages(kernels), self.iterations))
        return q if len(active) == shape[0] else q.new_zeros(shape).index_copy(0, active, q)

    def _active(self, start: Tensor, kernels: Sequence["_Kernel"]) -> Tensor:
        """Return the numbers of the labels that take part in mean field from the marginals `start` [K, N]."""
        if not all(kernel.attracts for kernel in kernels):
            return torch.arange(len(start), device=start.device)
        active = start.detach().amax(1) >= self.tolerance
        if not active.all():
            active[start.argmax(0)] = True
        return active.nonzero().flatten()

    def _log_mean_field(self, logits: Tensor, kernels: Sequence["_Kernel"]) -> Tensor:
        """Compute the logarithms of the marginals [K, N] of one image from logits [K, N]."""
        logits = bounded(logits)
        if kernels and self.iterations:
            messages = _Messages(kernels)
            q = self._iterate(_transposed(logits.softmax(0)), _transposed(logits), messages, self.iterations - 1)
            logits = logits + _transposed(messages(q))
        return logits.log_softmax(0)

    def _iterate(self, q: Tensor, unary: Tensor, messages: "_Messages", iterations: int) -> Tensor:
        """Run mean field from the marginals q [N, K], which may be overwritten, and return marginals [N, K]."""
        in_place = not (torch.is_grad_enabled() and (unary.requires_grad or messages.learned))
        for _ in range(iterations if messages.kernels else 0):
            if in_place:
                changed = messages.update(q, unary, self.stop_below)
            else:
                before, q = q, _softmax(messages(q).add_(unary))
                changed = not self.stop_below or _changed(before.detach(), q.detach(), self.stop_below)
            if not changed:
                break
        return q

    def _kernels(self, compat: Tensor, features: Tensor) -> list["_Kernel"]:
        """Return a list with the kernel of these features, or an empty list if its compatibility is a constant zero."""
        if not self.learnable and not compat.any():
            return []
        return [_Kernel(features, compat.to(features.dtype), self.normalization)]

    def _check_parameters(self, classes: int, channels: int, axes: int) -> None:
        """Raise ValueError if a parameter has a different number of classes, channels or axes."""
        for name in _COMPATS:
            compat = getattr(self, name)
            if compat.ndim and compat.shape[0] != classes:
                raise ValueError(
                    f"{name} has the shape {list(compat.shape)}, but the number of classes in the logits is {classes}."
                )
        for name, wanted, what in (
            ("spatial_sxy", axes, "axes"), ("bilateral_sxy", axes, "axes"), ("bilateral_srgb", channels, "channels")
        ):  # fmt: skip
            given = getattr(self, name)
            if given.ndim and len(given) != wanted:
                raise ValueError(
                    f"{name} needs one value, or one for each of the {wanted} {what} of images, but has {len(given)}."
                )

    def extra_repr(self) -> str:
        """Return the arguments for the representation of the module."""
        names = ("spatial_sxy", "spatial_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat")
        shown = [f"{name}={_shown(getattr(self, name))}" for name in names]
        return ", ".join([*shown, f"iterations={self.iterations}", f"normalization={self.normalization!r}"])


class _Kernel:
    """The normalized Gaussian kernel matrix of ``features`` [d, N] with the compatibility of labels."""

    def __init__(self, features: Tensor, compat: Tensor, normalization: Normalization) -> None:
        self.lattice = Lattice(features.T)
        # A fixed value is copied, since the backward pass needs it as it is now.
        self.compat = compat if compat.requires_grad else compat.clone()
        # True if a label at one pixel raises the probability of no other label at other pixels.
        self.attracts = compat.ndim == 0 and bool(compat >= 0)
        self.learned = compat.requires_grad or features.requires_grad
        self.before: Tensor | None = None
        self.after: Tensor | None = None
        if normalization != "none":
            ones = features.new_ones(features.shape[1], 1)
            sums = self.lattice.filter(ones) if features.requires_grad else self.lattice.sums()
            self.before = {"symmetric": sums.rsqrt(), "before": 1 / sums}.get(normalization)
            self.after = {"symmetric": sums.rsqrt(), "after": 1 / sums}.get(normalization)

    def messages(self, q: Tensor) -> Tensor:
        """Compute the messages [N, K], which are the negative expected energies, from marginals ``q`` [N, K]."""
        filtered = self.lattice.filter(q if self.before is None else self.before * q)
        return self.mixed(filtered if self.after is None else self.after * filtered)

    def weights(self, transpose: bool) -> tuple[Tensor, Tensor]:
        """Return the splat and slice weights of the lattice, multiplied by the normalization."""
        ends = (self.after, self.before) if transpose else (self.before, self.after)
        return self.lattice.splat_weights(ends[0]), self.lattice.slice_weights(ends[1])

    def mixed(self, values: Tensor, transpose: bool = False) -> Tensor:
        """Multiply values [M, K] of the labels by the compatibility."""
        if self.compat.ndim == 2:
            return -values @ (self.compat if transpose else self.compat.T)
        return values * (self.compat if self.compat.ndim == 0 else -self.compat)


def _changed(before: Tensor, after: Tensor, limit: float) -> bool:
    """Return whether a marginal changed by `limit` or more."""
    return bool((after - before).abs_().amax() >= limit)


# A function from the logits [K, N] of an image and its kernels to marginals [K, N] or their logarithms.
_Infer = Callable[[Tensor, Sequence[_Kernel]], Tensor]


class _Messages:
    """The sum of the messages of all kernels, which is a linear map of the marginals [N, K].

    If the kernels need no gradients, the normalization is merged into the weights of the lattice. The compatibility is
    then applied at the vertices of the lattice, since there are far fewer vertices than pixels.
    """

    def __init__(self, kernels: Sequence[_Kernel]) -> None:
        self.kernels = kernels
        self.learned = any(kernel.learned for kernel in kernels)
        self.weights: dict[bool, list[tuple[Tensor, Tensor]]] = {}
        self.changed_piece = 0  # a piece of the pixels with a large change in the last iteration (see `update`)

    def __call__(self, q: Tensor) -> Tensor:
        if self.learned:
            return torch.stack([kernel.messages(q) for kernel in self.kernels]).sum(0)
        return _Merged.apply(q, self, False)

    def update(self, q: Tensor, unary: Tensor, limit: float) -> bool:
        """Run one mean-field iteration in place, in pieces that fit into the cache of a CPU.

        Returns:
            Whether a marginal changed by `limit` or more, which is True if `limit` is 0.
        """
        vertex_values = self.splatted(q, False)
        pieces = list(slices(len(q), block_elements(q.device, on_cpu=_PIECE_ELEMENTS) // q.shape[1]))
        changed = limit == 0
        # After the first piece with such a change, the others are not compared. The next iteration begins with it.
        for number in (self.changed_piece, *(n for n in range(len(pieces)) if n != self.changed_piece)):
            rows = pieces[number]
            logits = self.sliced(vertex_values, rows, False).add_(unary[rows])
            if changed:
                _softmax(logits, out=q[rows])
                continue
            updated = _softmax(logits)
            if _changed(q[rows], updated, limit):
                changed, self.changed_piece = True, number
            q[rows] = updated
        return changed

    def merged(self, values: Tensor, transpose: bool) -> Tensor:
        """Apply the linear map or its transpose."""
        return self.sliced(self.splatted(values, transpose), slice(None), transpose)

    def splatted(self, values: Tensor, transpose: bool) -> list[Tensor]:
        """Apply the first half of the map, from pixels [N, K] to the vertices [V, K] of the lattice of each kernel."""
        if transpose not in self.weights:
            self.weights[transpose] = [kernel.weights(transpose) for kernel in self.kernels]
        return [
            kernel.mixed(kernel.lattice.splat(values, weights, transpose), transpose)
            for kernel, (weights, _) in zip(self.kernels, self.weights[transpose], strict=True)
        ]

    def sliced(self, vertex_values: Sequence[Tensor], rows: slice, transpose: bool) -> Tensor:
        """Apply the second half of the map, from the vertices to n of the pixels, [n, K]."""
        first, *others = (
            weighted_sums(values, kernel.lattice.vertices[rows], weights[rows])
            for kernel, values, (_, weights) in zip(self.kernels, vertex_values, self.weights[transpose], strict=True)
        )
        return sum(others, first)


class _Merged(torch.autograd.Function):
    """The function `_Messages.merged` with its gradient, which is the transposed map."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, messages: _Messages, transpose: bool) -> Tensor:
        ctx.messages, ctx.transpose = messages, transpose
        return messages.merged(values, transpose)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        with torch.autocast(grad.device.type, enabled=False):  # as in the forward pass
            return _Merged.apply(grad, ctx.messages, not ctx.transpose), None, None


def _softmax(logits: Tensor, out: Tensor | None = None) -> Tensor:
    """Compute the softmax over the labels of logits [N, K]."""
    if logits.shape[1] >= _SHORT:
        return torch.softmax(logits, 1, out=out)
    return torch.softmax(logits.T, 0, out=None if out is None else out.T).T.contiguous()


def _transposed(values: Tensor) -> Tensor:
    """Transpose a matrix of labels and pixels, and store it row by row, in pieces that fit into the cache of a CPU."""
    pixels = int(values.shape[1] > values.shape[0])
    step = block_elements(values.device, on_cpu=_PIECE_ELEMENTS // 4) // values.shape[1 - pixels]
    return torch.cat([piece.T for piece in values.split(max(1, step), pixels)], 1 - pixels)


def _own(value: Sigma | Compat) -> Tensor:
    """Copy a value, so that training does not change the tensor of the caller."""
    return torch.as_tensor(value, dtype=torch.float32).detach().clone()


def _checked_sigma(name: str, value: Sigma) -> Tensor:
    """Convert a standard deviation to a tensor, or raise ValueError if it is invalid."""
    tensor = _own(value)
    if tensor.ndim > 1 or not bool((tensor.isfinite() & (tensor > 0)).all()):
        raise ValueError(
            f"{name} must be one positive finite standard deviation or a sequence of them, but is {value}."
        )
    return tensor


def _checked_compat(name: str, value: Compat) -> Tensor:
    """Convert a compatibility to a tensor, or raise ValueError if it is invalid."""
    tensor = _own(value)
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} must be finite, but is {value}.")
    if tensor.ndim > 2 or (tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1]):
        raise ValueError(f"{name} must be a number or have the shape [K] or [K, K], but has {list(tensor.shape)}.")
    return tensor


def _wrong_shape(name: str, given: Tensor, own: Tensor) -> str:
    """Return the message about an entry of a state dict whose shape is not that of the module."""
    shapes = [f"the shape {list(value.shape)}" if value.ndim else "one number" for value in (given, own)]
    argument = name.removeprefix("log_")
    return (
        f"{name} has {shapes[0]} in the state dict, but {shapes[1]} in this DenseCRF. Create the DenseCRF with a value "
        f"of {argument} that has {shapes[0]}."
    )


def _shown(value: Tensor) -> str:
    """Format the values of a parameter, or the shape of a matrix."""
    value = value.detach()
    if value.ndim == 0:
        return f"{float(value):.6g}"
    return f"({', '.join(f'{number:.6g}' for number in value.tolist())})" if value.ndim == 1 else f"{list(value.shape)}"
