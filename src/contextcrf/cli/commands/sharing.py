"""Commands that share models."""

from pathlib import Path


def publish(
    model: str,
    out: Path | None = None,
    repo: str | None = None,
    results: list[Path] | None = None,
    public: bool = False,
) -> None:
    """Write a model with a model card to a folder or to the Hugging Face Hub.

    At least one of --out and --repo is required.

    Args:
        model: Trained model: a folder, or the name of a bundled model.
        out: Folder for config.json, model.safetensors and the model card README.md. If null, no folder is written.
        repo: Repository on the hub, as OWNER/NAME. It requires `hf auth login`. If null, nothing is uploaded.
        results: Folders with results of `evaluate` for this model, whose tables are added to the card. If null, the
            card gets no new tables.
        public: Make a new repository public. Without this flag, it is private.

    Example:
        contextcrf publish runs/heads --out shared --results '[runs/heads/val]'
        contextcrf publish runs/heads --repo owner/name --public
    """
    from contextcrf.modeling.model import load
    from contextcrf.modeling.model_card import measured

    if out is None and repo is None:
        raise ValueError("The destination is missing. Give --out FOLDER, --repo OWNER/NAME, or both.")
    network = load(model)
    if results:
        network.metadata = {**network.metadata, "measured": [measured(network, folder) for folder in results]}
    if out is not None:
        network.save_pretrained(out)
        print(f"written to {out}")
    if repo is not None:
        print(f"pushed to {network.push_to_hub(repo, private=not public)}")


def export(
    model: str,
    height: int | None = None,
    width: int | None = None,
    onnx: Path | None = None,
    program: Path | None = None,
) -> None:
    """Write a model with its inference as an ONNX file or a torch program, and check the output.

    The file maps an image to marginals and runs without contextcrf. At least one of --onnx and --program is required.
    With --height and --width, the images have one size. Without them, an ONNX file takes images of any size. This is
    possible only if no pairwise potential sends messages.

    Args:
        model: Trained model: a folder, or the name of a bundled model.
        height: Height of the input images in pixels. If null, any height.
        width: Width of the input images in pixels. If null, any width.
        onnx: ONNX file to write. If null, none is written.
        program: File to write for `torch.export.load`, usually with the suffix .pt2. If null, none is written.

    Example:
        contextcrf export camvid --onnx camvid.onnx
        contextcrf export runs/heads --height 360 --width 480 --onnx heads.onnx --program heads.pt2
    """
    from contextcrf.inference.export import save_dynamic_onnx, save_onnx, save_program, trace
    from contextcrf.modeling.model import load

    wanted = [(path, write) for path, write in ((onnx, save_onnx), (program, save_program)) if path is not None]
    if not wanted:
        raise ValueError("The file to write is missing. Give --onnx FILE, --program FILE, or both.")
    if (height is None) != (width is None):
        raise ValueError("--height and --width belong together. Give both for one size, or none for any size.")
    if height is None and program is not None:
        raise ValueError("A program is for images of one size. Give --height and --width.")
    network = load(model)

    def report(path: Path, difference: float) -> None:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, largest difference of a marginal {difference:.1g}")

    if height is None or width is None:
        assert onnx is not None
        print(f"writing and checking {onnx} for images of any size")
        onnx.parent.mkdir(parents=True, exist_ok=True)
        report(onnx, save_dynamic_onnx(network, onnx))
        return
    print(f"tracing {model} for images of {height} x {width} pixels")
    traced = trace(network, height, width)
    for path, write in wanted:
        print(f"writing and checking {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        report(path, write(traced, network, path))
