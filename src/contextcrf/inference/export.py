"""The whole predictor, image to marginals, as a graph for other programs: ONNX, or torch.export's own form.

A graph is made for one size of image, since the relations' boxes are counted in nodes of its map. This module belongs
to `inference` and not to `modeling`, because the predictor is what is exported.
"""

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
    """A predictor as one function: image float [1, 3, H, W], RGB in 0..255, to marginals [1, K, H, W].

    The result is that of `Predictor.__call__`, with the pair logits of the image held in a table, which can be traced.
    Potentials that have not been trained send no messages and are left out.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model, self.predictor = predictor.model, predictor
        self.system = System(relations=tuple(predictor.model.trained_relations))

    def forward(self, image: Tensor) -> Tensor:
        features = self.predictor.extract_features(image, [self.system])
        return upsample(self.predictor.mean_field(features, self.system, tabulate=True), image.shape[-2:])


@torch.no_grad()
def trace(model: ContextNetwork, height: int, width: int) -> torch.export.ExportedProgram:
    """The graph of a model's predictor for images of one size, in single precision.

    Args:
        model: put into evaluation mode.
        height: of the images, pixels.
        width: of the images, pixels.

    Raises:
        ValueError: a height or width below 1.
    """
    if min(height, width) < 1:
        raise ValueError(f"size {height} x {width}: expected the height and width of the images")
    graph, image = PredictorGraph(_predictor(model.eval())), _image(model, height, width)
    graph(image)  # the relations' graphs are counted before the tracing, which cannot depend on counts
    return torch.export.export(graph, (image,))


def save_program(program: torch.export.ExportedProgram, model: ContextNetwork, path: Path) -> float:
    """Write a file for `torch.export.load`, with the classes as extra file "classes.json".

    Returns:
        The largest difference of a marginal from the model's, on an image of noise.
    """
    classes = json.dumps(model.classes.to_dict())
    with atomic_write(path) as partial:
        # torch insists on the suffix .pt2.
        pt2 = partial.with_suffix(".pt2")
        torch.export.save(program, pt2, extra_files={"classes.json": classes})
        pt2.replace(partial)
    run = torch.export.load(path).module()
    image = program.example_inputs[0][0]
    with torch.no_grad():
        return (run(image) - _predictor(model)(image)).abs().max().item()


def save_onnx(program: torch.export.ExportedProgram, model: ContextNetwork, path: Path) -> float:
    """Write an ONNX file, weights within, classes among its metadata, and run it once with onnxruntime.

    Input "image", float32 [1, 3, H, W] in 0..255; output "marginals", float32 [1, K, H, W].

    Returns:
        As `save_program`.

    Raises:
        ValueError: a package that is needed is not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx works with it
    except ModuleNotFoundError as error:
        raise ValueError(f'ONNX needs {", ".join(ONNX_NEEDED)}: pip install "contextcrf[export]"') from error
    # It logs every operation that it does not fold.
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
    """Autocasts are not traced: the graph computes in single precision."""
    return Predictor(model, replace(model.inference, precision="32-true"))


def _image(model: ContextNetwork, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (255 * torch.rand(1, 3, height, width, generator=generator)).to(model.device)
