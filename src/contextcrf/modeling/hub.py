"""Models on the Hugging Face Hub: the methods of `huggingface_hub`'s mixin, which write and read a `ContextCRF`."""

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError

from contextcrf.utils.files import write_text


class HubModel(ModelHubMixin):
    """`save_pretrained`, `push_to_hub` and `from_pretrained` for a model.

    The mixin's own `save_pretrained` removes an earlier config.json before it writes, and its `from_pretrained` hands
    the entries of config.json to the constructor. Both are replaced: a model is written as `save` writes it and read as
    `load` reads it.
    """

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False, **options: Any
    ) -> str | None:
        """Write the model and its card, README.md, into a folder; an earlier model there is replaced in one step.

        Args:
            save_directory: made if missing.
            repo_id: repository on the hub, "owner/name"; None is the name of the folder.
            push_to_hub: put the model on the hub too.
            options: as for `push_to_hub`.

        Returns:
            The address of the commit on the hub if the model was put there.
        """
        from contextcrf.modeling.model import ContextCRF
        from contextcrf.modeling.serialization import save

        assert isinstance(self, ContextCRF)
        folder = Path(save_directory)
        save(self, folder)
        write_text(folder / "README.md", self.generate_model_card().content)
        return self.push_to_hub(repo_id or folder.name, **options) if push_to_hub else None

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """The card of the model, a `huggingface_hub.ModelCard`."""
        from contextcrf.modeling.model import ContextCRF
        from contextcrf.modeling.model_card import model_card

        assert isinstance(self, ContextCRF)
        return model_card(self)

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
        """Load a model from a folder, or from a repository of the hub, "owner/name".

        Args:
            pretrained_model_name_or_path: the folder or the repository.
            force_download: download the files even if they are in the hub's cache.
            token: for private repositories; None is that of `hf auth login`.
            cache_dir: the hub's cache.
            local_files_only: take the files from the cache, without network.
            revision: a branch, a tag or a commit.
            model_kwargs: refused; a model is loaded as it was saved.

        Returns:
            The model in evaluation mode on the CPU.

        Raises:
            ModelError: there is no such folder or repository, or the model in it is damaged.
            TypeError: other arguments.
        """
        from contextcrf.modeling.serialization import ModelError, bundled_models, load

        if model_kwargs:
            raise TypeError(f"from_pretrained: unexpected {', '.join(model_kwargs)}: a model is loaded as it was saved")
        name = str(pretrained_model_name_or_path)
        if not Path(name).is_dir():
            if name in bundled_models():
                raise ModelError(f"{name!r} is a model that comes with the package: use contextcrf.load({name!r})")
            if name.count("/") != 1:
                raise ModelError(f"model {name!r}: no such folder, and not the name of a repository, OWNER/NAME")
            try:
                name = snapshot_download(
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=["config.json", "*.safetensors"],
                )
            except (OSError, HFValidationError) as error:
                raise ModelError(f"model {name!r}: no such folder, and not found on the hub: {error}") from error
        return load(name)  # type: ignore[return-value]  # there is one class of models
