"""The whole configuration of a run, typed; and overrides such as `optim.lr=0.02`.

Unknown keys are errors, never ignored. Schedules count iterations and batches count images, so that
a configuration means the same on one device and on eight.
"""

import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pinmem_core.errors import ConfigError
from pinmem_core.labels import CLASSES


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MemoryConfig(_Strict):
    """The categorical memory (docs/method.md, section 3)."""

    read: Literal["gumbel", "softmax"] = "gumbel"
    """How a training forward attends to the slots; evaluation always uses softmax."""
    momentum: float = Field(0.8, ge=0, le=1)
    """Share of the old slot that a write keeps."""
    temperature: float = Field(1.0, gt=0)
    """Divides the scores in the read loss; never in the attention itself."""
    attention_temperature: float = Field(1.0, gt=0)
    """Divides the scores in the attention. At 1, as published, it is almost flat: of 19 unit slots
    the right one weighs 0.13 at most."""
    residual: bool = False
    """Add the feature to what is read; as published, only what is read is passed on."""
    init_batches: int = Field(1486, ge=0)
    """Batches whose class means make the first memory; 0 keeps random slots. The original's two
    passes over an epoch of 2975 indices at batch 4 are 1486 batches."""


class ModelConfig(_Strict):
    """The architecture: all that is needed to rebuild a segmenter without its weights."""

    trunk: str = "resnet50"
    head: str = "deeplabv3plus"
    output_stride: Literal[8, 16, 32] = 16
    """Input pixels per position of the feature that the memory sees."""
    feature_dim: int = Field(256, ge=8, lt=2**31)
    """Channels of that feature, and so the length of a memory slot."""
    num_classes: int = Field(len(CLASSES), ge=2, le=254)
    own_statistics: float = Field(0.0, ge=0, le=1)
    """Share of an image's own mean and variance in batch norm when predicting; the rest are the
    running ones of training, which alone are used by default."""
    memory: MemoryConfig | None = MemoryConfig()


class LossConfig(_Strict):
    """Weights of the loss terms beside the segmentation loss (docs/method.md, section 3)."""

    auxiliary: float = Field(0.4, ge=0)
    read: float = Field(0.02, ge=0)
    divergence: float = Field(0.4, ge=0)
    classification: float = Field(0.2, ge=0)
    balance: float = Field(0.0, ge=0, le=1)
    """A pixel weighs (pixels of its class in the batch)^-balance in the segmentation loss: at 0, as
    published, all weigh the same; at 1 all classes do."""


class MetaConfig(_Strict):
    """The meta step of `pinmem` and `mldg` (docs/method.md, section 4)."""

    inner: Literal["meta-train", "all"] = "meta-train"
    """Domains that the inner losses and the refresh of the memory go by. "all" makes of the outer
    step a second look at the meta-test domains, through a memory (if any) written without them."""
    outer_weight: float = Field(1.0, ge=0)
    """Of the outer losses."""


class OptimConfig(_Strict):
    """SGD, its schedule, and the inner step of the meta methods."""

    lr: float = Field(0.01, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["exponential", "polynomial"] = "exponential"
    decay: float = Field(9.0, ge=0)
    """exponential: lr * exp(-decay * iteration / decay_span)."""
    decay_span: int = Field(120_000, gt=0)
    """exponential: a constant of the schedule, not the length of the run."""
    power: float = Field(0.9, gt=0)
    """polynomial: lr * (1 - iteration / iterations) ** power."""
    inner_lr: float = Field(0.001, gt=0)
    """Inner step size of the first iteration; later ones use lr(iteration) * inner_share."""
    inner_share: float = Field(0.25, gt=0)


class AugmentationConfig(_Strict):
    """What happens to a training image (docs/method.md, section 5)."""

    crop: int = Field(768, ge=32)
    """Side of the square crop, in pixels."""
    scale: tuple[float, float] = (0.5, 2.0)
    strong: Literal["meta-test", "first-source", "all", "none"] = "meta-test"
    """Which domains of a step get the strong colour jitter."""


class EvaluationConfig(_Strict):
    """How often a run looks at its validation images."""

    every: int | None = Field(None, ge=1)
    """Iterations between two looks at the source validation split; None: only at the end."""
    max_images: int | None = Field(None, ge=1)
    """At most so many images of each domain, evenly spread; None: all."""


class CheckpointConfig(_Strict):
    """When a run saves what it needs to go on."""

    every: int = Field(1000, ge=1)
    """Iterations from one save to the next; there is one at the end, too."""
    minutes: float | None = Field(10.0, gt=0)
    """Save after so many minutes as well, which changes no result; None: only by iterations."""
    keep: int = Field(2, ge=1)
    """Snapshots kept, the newest."""


class ComputeConfig(_Strict):
    """How the step is computed: its speed and memory, not what it means."""

    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Of the network's convolutions; the memory and the losses are always float32."""
    tf32: bool = False
    """CUDA: let float32 convolutions and products round their factors to 10 bits."""
    channels_last: bool = False
    """Keep the channels of a pixel side by side in memory, as fast convolutions like them."""
    compile: bool = False
    """Have torch compile the network; the first iterations take minutes."""
    graph: bool = False
    """CUDA: record the whole iteration as a CUDA graph and replay it, so that the host does not
    limit the speed. Takes float32 or bf16, one process, and no `recompute`; ignored on a CPU."""
    deterministic: bool = False
    """CUDA: use deterministic algorithms alone, so that two runs are equal to the last bit; slower.
    On a CPU they always are."""
    accumulate: int = Field(1, ge=1)
    """Split an iteration's images into so many steps whose gradients are averaged."""
    recompute: bool | Literal["finest"] = False
    """Compute the trunk's activations again in the backward pass instead of keeping them; "finest":
    those of its finest resolution alone, which take much memory and little work."""


class TrainConfig(_Strict):
    """Everything that determines a run."""

    method: str = "pinmem"
    use_memory: bool | None = None
    """None: as the method's paper has it. "aggregate" may be given a memory."""
    sources: tuple[str, ...] = ()
    """Domains to train on: `dataset` or `dataset:domain`."""
    targets: tuple[str, ...] = ()
    """Unseen domains to evaluate on when training has ended."""
    iterations: int = Field(30_463, ge=1)
    batch: int = Field(4, ge=1)
    """Images per domain and iteration."""
    pseudo_domains: int = Field(2, ge=2)
    """A single source is split into so many pseudo-domains for the meta methods."""
    seed: int = Field(0, ge=0)
    device: str = "auto"
    workers: int = Field(0, ge=0)
    """Processes that load images; 0 loads in the training process."""
    init_weights: str | None = None
    """Weights of the trunk: torchvision's enum name, a file, or None for random ones."""
    log_every: int = Field(10, ge=1)
    tensorboard: bool = False
    """Write the figures and some predictions for TensorBoard, too."""
    compute: ComputeConfig = ComputeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    meta: MetaConfig = MetaConfig()
    optim: OptimConfig = OptimConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _sources_are_not_repeated(self) -> Self:
        if len(set(self.sources)) != len(self.sources):
            raise ValueError("a source is named twice")
        return self


def nested(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` with each dotted key of `values` set.

    Raises:
        ConfigError: A key reaches into a value that is no section.
    """
    result: dict[str, Any] = {**settings}
    for key, value in values.items():
        _assign(result, key.split("."), value, key)
    return result


def with_overrides(settings: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return `settings` with each text `a.b=value` of `overrides` applied.

    Values are TOML (numbers, booleans, quoted strings, lists) or "none"; anything else is taken as
    a string.

    Raises:
        ConfigError: An override has no `=`, or reaches into a value that is no section.
    """
    values = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"'--set {override}' is not of the form a.b=value.")
        values[key.strip()] = _parse_value(text.strip())
    return nested(settings, values)


def _assign(section: dict[str, Any], path: list[str], value: object, key: str) -> None:
    for name in path[:-1]:
        inner = section.get(name, {})
        if not isinstance(inner, Mapping):
            raise ConfigError(f"'{key}' cannot be set: '{name}' is a value, not a section.")
        section[name] = {**inner}
        section = section[name]
    section[path[-1]] = value


def _parse_value(text: str) -> object:
    if text.lower() in ("none", "null"):
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def validate(settings: Mapping[str, Any]) -> TrainConfig:
    """Return the typed configuration.

    Raises:
        ConfigError: A key is unknown (the closest known one is suggested) or a value is not
            allowed; the message names the key.
    """
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        key = ".".join(path)
        if first["type"] == "extra_forbidden":
            hint = _suggest_key(path)
            raise ConfigError(f"unknown configuration key '{key}'.", hint) from None
        what = f"configuration key '{key}'" if key else "configuration"
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{what}: {reason[0].lower()}{reason[1:]}.") from None


def _suggest_key(path: list[str]) -> str:
    section: Any = TrainConfig().model_dump()
    for name in path[:-1]:
        section = section[name]
    close = get_close_matches(path[-1], section, n=1)
    hint = f"Did you mean '{'.'.join([*path[:-1], close[0]])}'? " if close else ""
    return f"{hint}Known here: {', '.join(sorted(section))}."
