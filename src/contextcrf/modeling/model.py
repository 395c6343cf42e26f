"""ContextCRF: the model with its ways to predict, to be saved and loaded, on disk and on the Hugging Face Hub.

This module stands above `inference`: it joins the network, its predictor and its storage in one class. The predictor
works on a `ContextNetwork`, so that no import makes a circle.
"""

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor

from contextcrf.crf import Explanation
from contextcrf.data.images import ImageLike
from contextcrf.inference.predictor import Predictor
from contextcrf.inference.segmentation import Segmentation
from contextcrf.modeling.config import InferenceConfig
from contextcrf.modeling.model_card import model_card
from contextcrf.modeling.network import ContextNetwork
from contextcrf.modeling.serialization import ModelError, bundled_models, find_model, read_model, save
from contextcrf.modeling.system import System
from contextcrf.utils.files import write_text

_HUB_OPTIONS = {"revision", "token", "cache_dir", "force_download", "local_files_only"}


class ContextCRF(ContextNetwork, ModelHubMixin):
    """A deep structured model: multi-scale networks give the unary and the pairwise terms of a CRF.

    Images are RGB, [B, 3, H, W], values 0..255 of any dtype; normalization belongs to the model. The potentials are
    "unary" and the names of the relations.

    Args:
        config: what defines the weights.
        classes: names and colors of the K classes.
        pretrained: ImageNet weights for the backbone, or a file of them.
        inference: how the model predicts unless other settings are given; None takes the defaults.

    Attributes:
        config: the argument.
        inference: the argument.
        metadata: where the model comes from and what was measured, any JSON values.
        dense: the learned dense CRF, or None.

    Raises:
        ValueError: the inference settings name a relation that the model does not have.

    Example:
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.classes import Classes
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> model = ContextCRF(ModelConfig(backbone="plain", channels=8, hidden=8), classes, pretrained=False)
        >>> model.potentials
        ('unary', 'surrounding', 'above')
    """

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..255 to marginals [B, K, H, W] of the system "unary+pairwise".

        This is `Predictor.__call__` with the model's own settings.
        """
        return self.predictor()(images)

    def segment(self, image: ImageLike, system: str | System | None = None) -> Segmentation:
        """Label one image.

        Args:
            image: a PIL image of any mode, an array uint8 [H, W, 3] or [H, W], or a tensor uint8 [3, H, W].
            system: "unary", "unary+pairwise", "unary+pairwise+dense", or another one (see `System`); None is the one
                that the model is configured with.

        Raises:
            ValueError: another type, number of axes or dtype of the image, or a system that the model does not have.
        """
        return self.predictor().segment(image, system)

    def explain(self, image: ImageLike, pixel: tuple[int, int]) -> dict[str, Explanation]:
        """The messages that one node gets from each neighbor, by relation; see `Predictor.explain`."""
        return self.predictor().explain(image, pixel)

    def predictor(self, inference: InferenceConfig | None = None) -> Predictor:
        """The predictor of this model, with its own settings or with others."""
        return Predictor(self, inference)

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False, **options: Any
    ) -> str | None:
        """Write the model and its card, README.md, into a folder; an earlier model there is replaced in one step.

        The mixin's own method removes config.json before it writes, so that a killed process would leave no model.

        Args:
            save_directory: made if missing.
            repo_id: repository on the hub, "owner/name"; None is the name of the folder.
            push_to_hub: put the model on the hub too.
            options: as for `push_to_hub`.

        Returns:
            The address of the commit on the hub if the model was put there.
        """
        folder = Path(save_directory)
        save(self, folder)
        write_text(folder / "README.md", self.generate_model_card().content)
        return self.push_to_hub(repo_id or folder.name, **options) if push_to_hub else None

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card of the model."""
        return model_card(self)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load a model from a folder, or from a repository of the hub, "owner/name".

        Args:
            pretrained_model_name_or_path: the folder or the repository.
            options: for the hub: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Returns:
            The model in evaluation mode on the CPU.

        Raises:
            ModelError: there is no such folder or repository, or the model in it is damaged.
            TypeError: other options.
        """
        name = str(pretrained_model_name_or_path)
        if unknown := sorted(set(options) - _HUB_OPTIONS):
            raise TypeError(f"from_pretrained: unexpected {', '.join(unknown)}: a model is loaded as it was saved")
        if name in bundled_models() and not Path(name).is_dir():
            raise ModelError(f"{name!r} is a model that comes with the package: use contextcrf.load({name!r})")
        if Path(name).is_dir() or name.count("/") != 1:
            return load(name)  # type: ignore[return-value]  # there is one class of models
        try:
            return super().from_pretrained(name, **options)
        except (OSError, HFValidationError) as error:
            raise ModelError(f"model {name!r}: no such folder, and not found on the hub: {error}") from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        # The mixin adds what it reads from config.json by itself; `load` reads all of it.
        hub_options = {name: options[name] for name in _HUB_OPTIONS}
        folder = snapshot_download(model_id, allow_patterns=["config.json", "*.safetensors"], **hub_options)
        return load(folder)  # type: ignore[return-value]


def load(name_or_path: str | Path) -> ContextCRF:
    """Load a model: a folder that `save` or a training wrote, or the name of a bundled model such as "camvid".

    Args:
        name_or_path: the folder or the name.

    Returns:
        The model in evaluation mode on the CPU, with its classes and preprocessing.

    Raises:
        ModelError: there is no such model, or a file of it is damaged or of another format.

    Example:
        >>> load("camvid").classes.names[:3]
        ('sky', 'building', 'pole')
    """
    saved = read_model(find_model(name_or_path))
    try:
        model = ContextCRF(saved.config, saved.classes, pretrained=False, inference=saved.inference)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{saved.path}: not the configuration of a model: {error}") from error
    model.metadata = saved.metadata
    saved.load_weights(model)
    return model.eval()
