"""`distillation`: also learn the predictions of a trained model (Hinton et al., 2015)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pinmem_core.checkpoints.checkpoint import weights_sha256
from pinmem_core.checkpoints.hub import checkpoint_of, lasting_name
from pinmem_core.config import Settings, TrainConfig
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.methods.aggregate import Aggregate
from pinmem_core.methods.base import StepContext
from pinmem_core.methods.losses import Losses, training_pass
from pinmem_core.models import Segmenter, load_checkpoint
from pinmem_core.models.decoders.base import resize


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T²·KL(q ‖ p), the mean over all pixels in nats, for q of the teacher and p.

    q and p are the softmax of logits / T. The factor T² keeps the size of the gradients.

    Args:
        logits: Logits of p, (N, K, h, w).
        teacher: Logits of q, (N, K, h, w).
        temperature: Temperature T.
    """
    p = (logits / temperature).log_softmax(dim=1)
    q = (teacher / temperature).log_softmax(dim=1)
    divergence = F.kl_div(p, q, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * divergence.mean()


class Distillation(Aggregate):
    """Distillation: also learn the predictions of a trained model, the teacher.

    L = CE + λ·T²·KL(q ‖ p), with q the prediction of the teacher. The teacher is any trained model
    of pinmem whose classes include those of the run, such as a large backbone with LoRA. It
    predicts the same augmented crops, also pixels without a label.
    """

    cuda_graph = False
    cached_features = False

    class Config(Settings):
        """Settings of the method."""

        teacher: str | None = None
        """Model to learn from: a run, a folder, "starter", or `user/name` on the Hub; required."""
        weight: float = Field(1.0, ge=0)
        """Weight λ of the divergence."""
        temperature: float = Field(1.0, gt=0)
        """Temperature T of both predictions."""
        teacher_sha256: str | None = None
        """SHA-256 of the teacher's weights; a run records it, so that it resumes with the same."""

    @classmethod
    def read_settings(cls, config: TrainConfig) -> Settings:
        """Return the settings with the teacher by a name that stays, and its SHA-256.

        Raises:
            ConfigError: A setting is unknown or not allowed, or no teacher is named.
            DataError: The teacher does not exist, or has changed since the run began.
            MachineError: The Hub cannot be reached.
        """
        settings: Any = super().read_settings(config)
        if settings.teacher is None:
            raise ConfigError(
                "the method 'distillation' needs a model to learn from.",
                "Name one: '--set method_config.teacher=MODEL'. 'pinmem runs' lists the runs.",
            )
        digest = weights_sha256(checkpoint_of(settings.teacher))
        if settings.teacher_sha256 not in (None, digest):
            raise DataError(
                f"the model {settings.teacher} is not the one that the run began to learn from: "
                "its weights differ.",
                "Start a new run; to repeat the settings of this one, add "
                "'--set method_config.teacher_sha256=none'.",
            )
        name = lasting_name(settings.teacher)
        return settings.model_copy(update={"teacher": name, "teacher_sha256": digest})

    @classmethod
    def teachers(cls, settings: Any) -> Sequence[str]:
        """Return the teacher."""
        return (settings.teacher,)

    def setup(self, segmenter: Segmenter) -> None:
        """Load the teacher, and find the classes of the run among its own.

        Raises:
            ConfigError: The teacher lacks a class.
        """
        name = self.settings.teacher
        with torch.random.fork_rng(devices=[]):
            teacher, _ = load_checkpoint(checkpoint_of(name))
        theirs, names = teacher.config.class_names, segmenter.config.class_names
        if missing := [each for each in names if each not in theirs]:
            raise ConfigError(
                f"the model {name} cannot teach the classes {', '.join(missing)}: it has none of "
                "these names.",
                "Train with its classes ('--classes'), or choose another 'method_config.teacher'.",
            )
        first = next(segmenter.parameters())
        self.teacher = teacher.requires_grad_(False).to(first.device, first.dtype)
        self.classes = [theirs.index(each) for each in names]

    def losses(self, context: StepContext) -> Losses:
        """Return the losses of `aggregate`, and the divergence from the teacher."""
        segmenter = context.segmenter
        images, labels = context.batch.all()
        write = segmenter.memory is not None
        losses, output = training_pass(segmenter, images, labels, self.config.loss, write=write)
        wanted = self._predict(segmenter, images, output.logits.shape[-2:])
        term = distillation_loss(output.logits, wanted, self.settings.temperature)
        total = losses.total + self.settings.weight * term
        return Losses({**losses.terms, "distill": term}, total, losses.written)

    @torch.no_grad()
    def _predict(self, segmenter: Segmenter, images: Tensor, size: torch.Size) -> Tensor:
        """Return the teacher's logits of the classes of the run for images normalised for it."""
        own, theirs = segmenter.normalization, self.teacher.normalization
        if own != theirs:
            mean, std, their_mean, their_std = (
                images.new_tensor(values)[:, None, None] for values in (*own, *theirs)
            )
            images = (images * std + mean - their_mean) / their_std
        self.teacher.autocast = segmenter.autocast
        return resize(self.teacher.run(images).logits[:, self.classes], size)


METHODS = {"distillation": Distillation}
