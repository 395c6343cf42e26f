"""The whole predictor, image to marginals, as a graph for other programs: ONNX, or torch.export's own form.

A graph is made for one size of image, since the relations' boxes are counted in nodes of its map.
"""

import json
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from contextcrf.modeling.config import UNARY
from contextcrf.modeling.model import ContextCRF
from contextcrf.utils.resizing import upsample

INPUT, OUTPUT = "image", "marginals"
ONNX_NEEDED = ("onnx", "onnxscript", "onnxruntime")


class Predictor(nn.Module):
    """A model as one function: image float [1, 3, H, W], RGB in 0..255, to marginals [1, K, H, W].

    It is `ContextCRF.forward` with the pair logits of the image held in a table, which can be traced. Potentials that
    have not been trained say nothing and are left out.
    """

    def __init__(self, model: ContextCRF) -> None:
        super().__init__()
        self.model, self.names = model, (UNARY, *model.trained_relations)

    def forward(self, image: Tensor) -> Tensor:
        features = self.model.features(image, self.names)
        return upsample(self.model.infer(features, self.names, tabulate=True), image.shape[-2:])


@torch.no_grad()
def trace(model: ContextCRF, height: int, width: int) -> torch.export.ExportedProgram:
    """The predictor for images of one size, in evaluation mode.

    Raises:
        ValueError: a size that is none.
    """
    if min(height, width) < 1:
        raise ValueError(f"size {height} x {width}: expected the height and width of the images")
    predictor, image = Predictor(model.eval()), _image(model, height, width)
    predictor(image)  # graphs of this size are counted before the tracing, which cannot branch on what it counts
    return torch.export.export(predictor, (image,))


def save_program(program: torch.export.ExportedProgram, model: ContextCRF, path: Path) -> float:
    """Write what `torch.export.load` reads, with the classes as extra file "classes.json".

    Returns:
        The largest difference of a marginal from the model's, on a picture of noise.
    """
    unfinished = path.with_name(f"{path.name}.part.pt2")
    torch.export.save(program, unfinished, extra_files={"classes.json": json.dumps(model.classes.to_dict())})
    unfinished.rename(path)
    run = torch.export.load(path).module()
    image = program.example_inputs[0][0]
    with torch.no_grad():
        return (run(image) - model(image)).abs().max().item()


def save_onnx(program: torch.export.ExportedProgram, model: ContextCRF, path: Path) -> float:
    """Write an ONNX file, weights within, classes among its metadata; it is run by onnxruntime once.

    Input "image", float32 [1, 3, H, W] in 0..255; output "marginals", float32 [1, K, H, W].

    Returns:
        As `save_program`.

    Raises:
        ValueError: what writes or runs it is not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx works with it
    except ModuleNotFoundError as error:
        raise ValueError(f'ONNX needs {", ".join(ONNX_NEEDED)}: pip install "contextcrf[export]"') from error
    # It tells of every operation that it does not fold.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    found = torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT])
    assert found is not None
    found.model.metadata_props.update({key: json.dumps(value) for key, value in model.classes.to_dict().items()})
    unfinished = path.with_name(f"{path.name}.part")
    found.save(unfinished, external_data=False)
    unfinished.rename(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = program.example_inputs[0][0]
    [marginals] = session.run([OUTPUT], {INPUT: image.cpu().numpy()})
    with torch.no_grad():
        return (torch.from_numpy(marginals) - model(image).cpu()).abs().max().item()


def _image(model: ContextCRF, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (255 * torch.rand(1, 3, height, width, generator=generator)).to(model.mean.device)
