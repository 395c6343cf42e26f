"""Models on the Hugging Face Hub: what `ContextCRF` has from `huggingface_hub`'s mixin."""

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelHubMixin, snapshot_download

# What a model is; a repository may hold more.
_FILES = ("config.json", "model.safetensors")


class HubModel(ModelHubMixin):
    """`save_pretrained` and `push_to_hub` write what `storage.save` writes and a card; `from_pretrained` reads it."""

    def _save_pretrained(self, save_directory: Path) -> None:
        from contextcrf.modeling.model import ContextCRF
        from contextcrf.modeling.model_card import model_card
        from contextcrf.modeling.serialization import save

        assert isinstance(self, ContextCRF)
        save(self, save_directory)
        (save_directory / "README.md").write_text(model_card(self), encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> Self:
        """A model from a folder, a bundled one by its name, or one of the hub, "owner/name".

        Args:
            pretrained_model_name_or_path: the model.
            force_download: even if it is in the hub's cache.
            token: for private repositories; None is that of `hf auth login`.
            cache_dir: the hub's cache.
            local_files_only: take it from the cache, ask no network.
            revision: a branch, a tag or a commit.
            model_kwargs: none; a model is what it was saved as.

        Raises:
            ModelError: the model is damaged, or there is no such folder and the name is none of the hub's form.
            TypeError: other arguments.
        """
        from contextcrf.modeling.serialization import load

        if model_kwargs:
            raise TypeError(f"from_pretrained: unexpected {', '.join(model_kwargs)}: a model is what it was saved as")
        name = str(pretrained_model_name_or_path)
        if name.count("/") == 1 and not Path(name).exists():
            name = snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=list(_FILES),
            )
        return load(name)  # type: ignore[return-value]  # there is but one class of models
