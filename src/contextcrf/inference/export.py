"""Functions that export the predictor as a graph for other programs, with ONNX or torch.export.

The graph computes the marginals of an image. It is for images of one size, because the extents of the boxes, which are
fractions of the feature map, become fixed numbers of nodes when the graph is traced.
"""

# This module is in `inference` and not in `modeling`, because it exports the predictor.

import json
import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.network import ContextNetwork
from contextcrf.modeling.system import System
from contextcrf.utils.files import atomic_write
from contextcrf.utils.resizing import upsample

INPUT, OUTPUT = "image", "marginals"
ONNX_NEEDED = ("onnx", "onnxscript", "onnxruntime")


class PredictorGraph(nn.Module):
    """A predictor as a single module, which can be traced.

    The input is an image, float [1, C, H, W] with values in 0..255. The output is marginals [1, K, H, W], which are
    equal to the result of `Predictor.__call__`. The pair logits of the image are kept in a table. Potentials that were
    not trained send no messages and are left out.

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
        self.system = System(relations=tuple(predictor.model.trained_relations))

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
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx uses it
    except ModuleNotFoundError as error:
        raise ValueError(
            f'The export to ONNX needs {", ".join(ONNX_NEEDED)}. Install them with `pip install "contextcrf[export]"`.'
        ) from error
    # onnxscript logs a message for every operation that it does not fold.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    found = torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT])
    assert found is not None
    classes = model.classes.to_dict()
    found.model.metadata_props.update({key: json.dumps(value) for key, value in classes.items()})
    with atomic_write(path) as partial:
        found.save(partial, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = program.example_inputs[0][0]
    [marginals] = session.run([OUTPUT], {INPUT: image.cpu().numpy()})
    with torch.no_grad():
        return (torch.from_numpy(marginals) - _predictor(model)(image).cpu()).abs().max().item()


def _predictor(model: ContextNetwork) -> Predictor:
    """Return a predictor in single precision, since autocasts are not traced."""
    return Predictor(model, replace(model.inference, precision="32-true"))


def _image(model: ContextNetwork, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (255 * torch.rand(1, model.image_format.channels, height, width, generator=generator)).to(model.device)
