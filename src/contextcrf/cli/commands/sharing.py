"""Commands that share models."""

from pathlib import Path


def publish(
    model: str,
    out: Path | None = None,
    repo: str | None = None,
    results: list[Path] | None = None,
    public: bool = False,
) -> None:
    """Write a model with its card into a folder, or put both on the Hugging Face Hub.

    Args:
        model: trained model: a folder, or the name of a bundled one.
        out: folder for config.json, model.safetensors and README.md, the card.
        repo: repository on the hub, "owner/name"; needs `hf auth login`.
        results: folders that `evaluate` wrote for this model: their tables go into the card.
        public: make a new repository public.
    """
    from contextcrf.modeling.model import load
    from contextcrf.modeling.model_card import measured

    if out is None and repo is None:
        raise ValueError("expected --out FOLDER, --repo OWNER/NAME, or both")
    network = load(model)
    if results:
        network.metadata = {**network.metadata, "measured": [measured(network, folder) for folder in results]}
    if out is not None:
        network.save_pretrained(out)
        print(f"written to {out}")
    if repo is not None:
        print(f"pushed to {network.push_to_hub(repo, private=not public)}")


def export(model: str, height: int, width: int, onnx: Path | None = None, program: Path | None = None) -> None:
    """Write the whole predictor, image to marginals, for programs without contextcrf, and check its output.

    Args:
        model: trained model: a folder, or the name of a bundled one.
        height: of the images that it will take, pixels.
        width: of the images, pixels.
        onnx: file for ONNX runtimes.
        program: file for `torch.export.load`, by custom with the suffix .pt2.
    """
    from contextcrf.inference.export import save_onnx, save_program, trace
    from contextcrf.modeling.model import load

    wanted = [(path, write) for path, write in ((onnx, save_onnx), (program, save_program)) if path is not None]
    if not wanted:
        raise ValueError("expected --onnx FILE, --program FILE, or both")
    network = load(model)
    print(f"tracing {model} for images of {height} x {width}")
    traced = trace(network, height, width)
    for path, write in wanted:
        print(f"writing and checking {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        difference = write(traced, network, path)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, marginals within {difference:.1g} of the model's")
