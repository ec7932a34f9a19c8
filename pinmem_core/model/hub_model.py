"""What a network gets from `huggingface_hub`: `from_pretrained`, `save_pretrained`, `push_to_hub`.

The mixin by itself loads weights that do not fit, knows no configuration but dataclasses, and
asks for no version of the format. Here a folder is read and written by `checkpoint` alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import PyTorchModelHubMixin

if TYPE_CHECKING:
    from pinmem_core.model.segmenter import Segmenter


class HubModel(PyTorchModelHubMixin, library_name="pinmem"):
    """Makes a `Segmenter` one that comes from the Hub and goes there."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> "Segmenter":
        """Return the network of a checkpoint, strictly loaded, in evaluation mode, on the CPU.

        Args:
            pretrained_model_name_or_path: `user/name[@revision]` on the Hub, or what else a model
                may be called: a run's folder or name, or a checkpoint folder.
            force_download: Fetch also what is in the cache.
            token: For the Hub; None for that of the login.
            cache_dir: In place of the Hub's cache.
            local_files_only: Take from the cache, and ask nobody.
            revision: Branch, tag or commit, where the name has none.

        Raises:
            DataError: There is no such model, or it is damaged.
            MachineError: The Hub cannot be reached.
        """
        from pinmem_core.model.checkpoint import load_checkpoint
        from pinmem_core.model.found import checkpoint_of

        folder = checkpoint_of(
            str(pretrained_model_name_or_path),
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
        )
        return load_checkpoint(folder)[0]

    def _save_pretrained(self: "Segmenter", save_directory: Path) -> None:  # type: ignore[misc]
        from pinmem_core.model.checkpoint import write_checkpoint

        write_checkpoint(self, save_directory, self.about)
