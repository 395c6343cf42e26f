"""Functions that export the predictor as a graph for other programs, with ONNX or torch.export.

The graph computes the marginals of an image. With pairwise potentials it is for images of one size, because the extents
of the boxes, which are fractions of the feature map, become fixed numbers of nodes when the graph is traced. Without
them, `save_dynamic_onnx` writes a graph for images of any size.
"""

# This module is in `inference` and not in `modeling`, because it exports the predictor.

import json
import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.network import ContextNetwork
from contextcrf.modeling.system import System
from contextcrf.utils.files import atomic_write
from contextcrf.utils.resizing import upsample

INPUT, OUTPUT = "image", "marginals"
ONNX_NEEDED = ("onnx", "onnxscript", "onnxruntime")
# The first version of ONNX whose operator Resize can smooth an image before it is shrunk.
_OPSET = 18
# The largest difference of a marginal from that of the model in a graph for any size.
_CLOSE = 1e-3


class PredictorGraph(nn.Module):
    """A predictor as a single module, which can be traced.

    The input is an image, float [1, C, H, W] with values in 0..255. The output is marginals [1, K, H, W], which are
    equal to the result of `Predictor.__call__`. The pair logits of the image are kept in a table. Potentials that send
    no messages, because they were not trained or have the relation weight 0, are left out.

    Args:
        predictor: the predictor.

    Example:
        >>> from contextcrf import load
        >>> graph = PredictorGraph(Predictor(load("camvid")))
        >>> with torch.no_grad():
        ...     graph(torch.zeros(1, 3, 32, 48)).shape
        torch.Size([1, 11, 32, 48])
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model, self.predictor = predictor.model, predictor
        with torch.no_grad():
            self.system = System(relations=tuple(filter(predictor.takes_part, predictor.model.pairwise)))

    def forward(self, image: Tensor) -> Tensor:
        """Return the marginals [1, K, H, W] of an image, float [1, C, H, W] with values in 0..255."""
        features = self.predictor.extract_features(image, [self.system])
        return upsample(self.predictor.mean_field(features, self.system, tabulate=True), image.shape[-2:])


@torch.no_grad()
def trace(model: ContextNetwork, height: int, width: int) -> torch.export.ExportedProgram:
    """Trace the predictor of a model for images of one size, in single precision.

    Args:
        model: the model, which is put into evaluation mode.
        height: the height of the images in pixels, at least 1.
        width: the width of the images in pixels, at least 1.

    Returns:
        The graph, for `save_program` and `save_onnx`.

    Raises:
        ValueError: If the height or the width is less than 1.

    Example:
        >>> from contextcrf import ContextCRF, ModelConfig
        >>> from contextcrf.data.classes import Classes
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> model = ContextCRF(ModelConfig(backbone="plain", channels=8, hidden=8), classes, pretrained=False)
        >>> program = trace(model, height=32, width=48)
        >>> program.module()(torch.zeros(1, 3, 32, 48)).shape
        torch.Size([1, 2, 32, 48])
    """
    if min(height, width) < 1:
        raise ValueError(f"The image size is {height} x {width}, but the height and the width must be 1 or more.")
    graph, image = PredictorGraph(_predictor(model.eval())), _image(model, height, width)
    graph(image)  # Tracing cannot depend on the number of edges, so the graphs of the relations are built before.
    return torch.export.export(graph, (image,))


def save_program(program: torch.export.ExportedProgram, model: ContextNetwork, path: Path) -> float:
    """Write a file for `torch.export.load`, with the classes in its extra file "classes.json".

    Args:
        program: the graph, which `trace` returned.
        model: the model of the graph.
        path: the file.

    Returns:
        The largest absolute difference between the marginals of the file and of the model, on an image of noise.

    Example:
        >>> from contextcrf import ContextCRF, ModelConfig
        >>> from contextcrf.data.classes import Classes
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> model = ContextCRF(ModelConfig(backbone="plain", channels=8, hidden=8), classes, pretrained=False)
        >>> save_program(trace(model, height=32, width=48), model, Path("model.pt2")) < 1e-5
        True
    """
    classes = json.dumps(model.classes.to_dict())
    with atomic_write(path) as partial:
        # torch.export.save accepts only the suffix .pt2.
        pt2 = partial.with_suffix(".pt2")
        torch.export.save(program, pt2, extra_files={"classes.json": classes})
        pt2.replace(partial)
    run = torch.export.load(path).module()
    image = program.example_inputs[0][0]
    with torch.no_grad():
        return (run(image) - _predictor(model)(image)).abs().max().item()


def save_onnx(program: torch.export.ExportedProgram, model: ContextNetwork, path: Path) -> float:
    """Write an ONNX file that contains the weights and the classes, and run it once with onnxruntime.

    The input "image" is float32 [1, C, H, W] with values in 0..255. The output "marginals" is float32 [1, K, H, W]. The
    metadata of the file contain the names and the palette of the classes as JSON.

    Args:
        program: the graph, which `trace` returned.
        model: the model of the graph.
        path: the file.

    Returns:
        The largest absolute difference between the marginals of the file and of the model, on an image of noise.

    Raises:
        ValueError: If onnx, onnxscript or onnxruntime is not installed.

    Example:
        >>> from contextcrf import load
        >>> model = load("camvid")
        >>> difference = save_onnx(trace(model, 64, 96), model, Path("camvid.onnx"))  # doctest: +SKIP
    """
    _require_onnx()
    # onnxscript logs a message for every operation that it does not fold.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    found = torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT])
    assert found is not None
    classes = model.classes.to_dict()
    found.model.metadata_props.update({key: json.dumps(value) for key, value in classes.items()})
    with atomic_write(path) as partial:
        found.save(partial, external_data=False)
    return _difference(model, path, program.example_inputs[0][0])


@torch.no_grad()
def save_dynamic_onnx(model: ContextNetwork, path: Path) -> float:
    """Write an ONNX file for images of any height and width, and run it on images of two sizes.

    The input and the output are those of `save_onnx`, without a fixed height and width.

    Args:
        model: the model, whose pairwise potentials must send no messages. It is put into evaluation mode.
        path: the file.

    Returns:
        The largest absolute difference between the marginals of the file and of the model, on two images of noise.

    Raises:
        ValueError: If onnx or onnxruntime is not installed, if pairwise potentials send messages, or if the marginals
            differ, because the backbone cannot be traced for any size.

    Example:
        >>> from contextcrf import load
        >>> save_dynamic_onnx(load("camvid"), Path("camvid.onnx")) < 1e-3  # doctest: +SKIP
        True
    """
    _require_onnx()
    # The exporter restores the mode of the module, which is training for a new module and all of its parts.
    graph, image = PredictorGraph(_predictor(model.eval())).eval(), _image(model, 96, 128)
    if graph.system.relations:
        raise ValueError(
            f"The relations {', '.join(graph.system.relations)} send messages, whose number depends on the size of the "
            "image. Export the model for one size with --height and --width, or set the relation weights to 0."
        )
    sizes = {2: "height", 3: "width"}
    torch.onnx.register_custom_op_symbolic("aten::_upsample_bilinear2d_aa", _shrink, _OPSET)
    with warnings.catch_warnings(), atomic_write(path) as partial:
        # This exporter is deprecated, but the new one does not finish with the sizes of TensorFlow's padding.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (image,),
            partial,
            dynamo=False,
            verbose=False,
            opset_version=_OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: sizes, OUTPUT: sizes},
        )
        _add_classes(partial, model)
        try:
            found = max(_difference(model, partial, each) for each in (image, _image(model, 131, 75)))
        except RuntimeError as error:
            raise ValueError(f"The graph for any size cannot be run: {error}. Export it for one size.") from error
        if not found < _CLOSE:
            raise ValueError(
                f"The graph for any size differs from the model by up to {found:.2g}, since the backbone "
                f"{model.config.backbone} cannot be traced for any size. Export it for one size with --height and "
                "--width."
            )
    return found


def _require_onnx() -> None:
    """Raise a ValueError if a package is missing that the export to ONNX needs."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 - torch.onnx uses it
    except ModuleNotFoundError as error:
        raise ValueError(
            f'The export to ONNX needs {", ".join(ONNX_NEEDED)}. Install them with `pip install "contextcrf[export]"`.'
        ) from error


def _difference(model: ContextNetwork, path: Path, image: Tensor) -> float:
    """Return the largest difference between the marginals of an ONNX file and of the model."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [marginals] = session.run([OUTPUT], {INPUT: image.cpu().numpy()})
    with torch.no_grad():
        return (torch.from_numpy(marginals) - _predictor(model)(image).cpu()).abs().max().item()


def _add_classes(path: Path, model: ContextNetwork) -> None:
    """Add the classes to the metadata of an ONNX file."""
    import onnx

    found = onnx.load(path)
    onnx.helper.set_model_props(found, {key: json.dumps(value) for key, value in model.classes.to_dict().items()})
    onnx.save(found, path)


def _shrink(graph: Any, images: Any, size: Any, corners: Any, *scales: Any) -> Any:
    """Return the ONNX operator for `F.interpolate` with `antialias=True`, which torch.onnx does not translate."""
    from torch.onnx import symbolic_helper

    zero = graph.op("Constant", value_t=torch.tensor([0]))
    if symbolic_helper._is_packed_list(size):
        sides = [graph.op("Unsqueeze", side, zero) for side in symbolic_helper._unpack_list(size)]
        size = graph.op("Concat", *sides, axis_i=0)
    kept = graph.op("Shape", images, start_i=0, end_i=2)
    shape = graph.op("Concat", kept, graph.op("Cast", size, to_i=7), axis_i=0)  # 7 is int64
    none = graph.op("Constant", value_t=torch.tensor([], dtype=torch.float32))
    options = {"mode_s": "linear", "coordinate_transformation_mode_s": "half_pixel"}
    return graph.op("Resize", images, none, none, shape, antialias_i=1, exclude_outside_i=1, **options)


def _predictor(model: ContextNetwork) -> Predictor:
    """Return a predictor in single precision, since autocasts are not traced."""
    return Predictor(model, replace(model.inference, precision="32-true"))


def _image(model: ContextNetwork, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (255 * torch.rand(1, model.image_format.channels, height, width, generator=generator)).to(model.device)
