"""Models on the Hugging Face Hub: the hooks of `huggingface_hub`'s mixin that read and write a `ContextCRF`."""

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelHubMixin, snapshot_download

# What the mixin reads from config.json by itself and passes on.
_FROM_CONFIG = {"config", "classes", "inference"}


class HubModel(ModelHubMixin):
    """`save_pretrained` and `push_to_hub` write a model and its card; `from_pretrained` reads a folder or a repository."""

    def _save_pretrained(self, save_directory: Path) -> None:
        from contextcrf.modeling.model import ContextCRF
        from contextcrf.modeling.serialization import save

        assert isinstance(self, ContextCRF)
        save(self, save_directory)
        (save_directory / "README.md").unlink(missing_ok=True)  # an older card; the mixin writes the new one

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """The card of the model, a `huggingface_hub.ModelCard`."""
        from contextcrf.modeling.model import ContextCRF
        from contextcrf.modeling.model_card import model_card

        assert isinstance(self, ContextCRF)
        return model_card(self)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> Self:
        from contextcrf.modeling.serialization import load

        if unknown := sorted(set(model_kwargs) - _FROM_CONFIG):
            raise TypeError(f"from_pretrained: unexpected {', '.join(unknown)}: a model is loaded as it was saved")
        if not Path(model_id).is_dir():
            model_id = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=["config.json", "*.safetensors"],
            )
        return load(model_id)  # type: ignore[return-value]  # there is one class of models
