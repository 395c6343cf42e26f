"""The class `ContextCRF`: a model that predicts, is saved and loaded, and is shared on the Hugging Face Hub.

This module imports `inference`, because the class combines the network, its predictor and its storage. The predictor
takes a `ContextNetwork`, so there are no circular imports.
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
    """A deep structured model: a CRF whose unary and pairwise terms are computed by multi-scale networks.

    Images are tensors [B, 3, H, W] in RGB with values in 0..255 and any dtype, or have the C channels of
    `image_format`. The model normalizes them. The names of the potentials are "unary" and the names of the relations.

    Args:
        config: the configuration of the weights.
        classes: the names and colors of the K classes.
        pretrained: True initializes the backbone with ImageNet weights, False initializes it randomly, and a path loads
            the weights of this file.
        inference: the default settings of prediction. None uses the default `InferenceConfig`.
        image_format: the channels of the images and the range of their values in files.

    Attributes:
        config: a copy of the argument.
        classes: the argument.
        image_format: the argument.
        inference: the settings of prediction.
        metadata: how the model was made and its evaluation results, as JSON values.
        dense: the learned dense CRF, or None.

    Raises:
        ValueError: If the inference settings name a relation that the model does not have.

    Example:
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.classes import Classes
        >>> classes = Classes(("sky", "sea"), ((0, 0, 255), (0, 128, 128)))
        >>> model = ContextCRF(ModelConfig(backbone="plain", channels=8, hidden=8), classes, pretrained=False)
        >>> model.potentials
        ('unary', 'surrounding', 'above')
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the marginals of the system "unary+pairwise", as `Predictor.__call__` does.

        Args:
            images: images [B, C, H, W] with values in 0..255.

        Returns:
            Marginals [B, K, H, W].
        """
        return self.predictor()(images)

    def segment(self, image: ImageLike, system: str | System | None = None) -> Segmentation:
        """Label one image.

        Args:
            image: a PIL image, an array [H, W, 3] or [H, W], or a tensor [3, H, W]. Arrays and tensors have the dtype
                uint8 or uint16 (see `as_pixels`). Pass the values as an image file stores them. The labels have the
                size of the upright image: the EXIF orientation of a PIL image is applied.
            system: "unary", "unary+pairwise", "unary+pairwise+dense", or another system (see `System`). None uses the
                system of the inference settings.

        Returns:
            The labels, the marginals and the overlay of the image.

        Raises:
            ValueError: If the image has a wrong type, shape or dtype, or if the model does not have a potential of the
                system.

        Example:
            >>> import torch
            >>> load("camvid").segment(torch.zeros(3, 48, 64, dtype=torch.uint8), system="unary").labels.shape
            torch.Size([48, 64])
        """
        return self.predictor().segment(image, system)

    def explain(self, image: ImageLike, pixel: tuple[int, int]) -> dict[str, Explanation]:
        """Return the messages that a node receives from its neighbors, by relation (see `Predictor.explain`)."""
        return self.predictor().explain(image, pixel)

    def predictor(self, inference: InferenceConfig | None = None) -> Predictor:
        """Return a predictor for this model. If `inference` is None, it uses the settings of the model."""
        return Predictor(self, inference)

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False, **options: Any
    ) -> str | None:
        """Write the model and its model card (README.md) into a folder. A previous model is replaced in a single step.

        Args:
            save_directory: the folder, which is created if necessary.
            repo_id: the repository on the hub, "owner/name". None uses the name of the folder.
            push_to_hub: also upload the model to the hub.
            options: options of `push_to_hub`.

        Returns:
            The address of the commit on the hub, or None if the model was not uploaded.

        Example:
            >>> from pathlib import Path
            >>> load("camvid").save_pretrained("shared")
            >>> sorted(path.name for path in Path("shared").iterdir())
            ['README.md', 'config.json', 'model.safetensors']
        """
        # The method of the mixin removes config.json before it writes, so a killed process would leave no model.
        folder = Path(save_directory)
        save(self, folder)
        write_text(folder / "README.md", self.generate_model_card().content)
        return self.push_to_hub(repo_id or folder.name, **options) if push_to_hub else None

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the model card. The mixin calls this method, and the arguments are ignored."""
        return model_card(self)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load a model from a folder, or from a repository "owner/name" on the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: the folder or the repository.
            options: options for the hub: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Returns:
            The model in evaluation mode on the CPU.

        Raises:
            ModelError: If there is no such folder or repository, or if the model is damaged.
            TypeError: If there are other options.

        Example:
            >>> load("camvid").save_pretrained("copy")
            >>> ContextCRF.from_pretrained("copy").num_classes
            11
        """
        name = str(pretrained_model_name_or_path)
        if unknown := sorted(set(options) - _HUB_OPTIONS):
            raise TypeError(
                f"The method from_pretrained does not accept {', '.join(unknown)}. A model is always loaded with its "
                "saved configuration."
            )
        if name in bundled_models() and not Path(name).is_dir():
            raise ModelError(f"The model {name!r} is bundled with the package. Load it with contextcrf.load({name!r}).")
        if Path(name).is_dir() or name.count("/") != 1:
            return load(name)  # type: ignore[return-value]  # there is one class of models
        try:
            return super().from_pretrained(name, **options)
        except (OSError, HFValidationError) as error:
            raise ModelError(
                f"There is no folder {name!r}, and no model of this name can be loaded from the hub: {error}"
            ) from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        # The mixin adds options from config.json, which are not needed, since `load` reads the whole file.
        hub_options = {name: options[name] for name in _HUB_OPTIONS}
        folder = snapshot_download(model_id, allow_patterns=["config.json", "*.safetensors"], **hub_options)
        return load(folder)  # type: ignore[return-value]


def load(name_or_path: str | Path) -> ContextCRF:
    """Load a model from a folder, or load a bundled model by its name.

    Args:
        name_or_path: the folder of a model, the folder of a finished training run, or the name of a bundled model such
            as "camvid".

    Returns:
        The model in evaluation mode on the CPU, with its classes and preprocessing.

    Raises:
        ModelError: If there is no such model, or if one of its files is damaged or has another format.

    Example:
        >>> load("camvid").classes.names[:3]
        ('sky', 'building', 'pole')
    """
    saved = read_model(find_model(name_or_path))
    try:
        model = ContextCRF(
            saved.config, saved.classes, pretrained=False, inference=saved.inference, image_format=saved.image_format
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{saved.path} is not a valid configuration of a model: {error}") from error
    model.metadata = saved.metadata
    saved.load_weights(model)
    return model.eval()
