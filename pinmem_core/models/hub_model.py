"""The `from_pretrained`, `save_pretrained` and `push_to_hub` of a network.

The mixin of `huggingface_hub` accepts weights that do not fit, supports only dataclasses as
configuration, and has no format version. Here `checkpoint` reads and writes every folder.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import PyTorchModelHubMixin

if TYPE_CHECKING:
    from pinmem_core.models.segmenter import Segmenter


class HubModel(PyTorchModelHubMixin, library_name="pinmem"):
    """Load a `Segmenter` from the Hub, and push it to the Hub."""

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
        """Load a checkpoint strictly; return its network in evaluation mode on the CPU.

        Args:
            pretrained_model_name_or_path: `user/name[@revision]` on the Hub, folder or name of a
                run, or folder of a checkpoint.
            force_download: Whether to download files that are already in the cache.
            token: Access token of the Hub; None for the token of the login.
            cache_dir: Cache folder; None for the Hub's default.
            local_files_only: Whether to use the cache only, without network access.
            revision: Branch, tag or commit, where the name contains none.

        Raises:
            DataError: The model does not exist or is damaged.
            MachineError: The Hub cannot be reached.
        """
        from pinmem_core.models.checkpoint import load_checkpoint
        from pinmem_core.models.found import checkpoint_of

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
        from pinmem_core.models.checkpoint import write_checkpoint

        write_checkpoint(self, save_directory, self.about)
