"""The typed configuration of a run."""

from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler

from pinmem_core.label_space import CITYSCAPES, LabelSpace, first_classes, label_spaces


def _split_at_commas(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(filter(None, (name.strip() for name in value.split(","))))


Names = Annotated[tuple[str, ...], BeforeValidator(_split_at_commas)]
"""Names, also as one text with commas."""
Parts = Annotated[tuple[Literal["backbone", "decoder"], ...], BeforeValidator(_split_at_commas)]
"""Parts of a network, also as one text with commas."""
Momentum = Annotated[float, Field(ge=0, lt=1)]
"""Weight of the past in a moving average."""


class Settings(BaseModel):
    """Base of all sections: immutable, finite numbers only, unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _none_as_text(cls, values: Any) -> Any:
        """Take the text "none" for None, which TOML lacks, and None for a choice named "none"."""
        if not isinstance(values, Mapping):
            return values
        return {key: cls._value_of(key, value) for key, value in values.items()}

    @classmethod
    def _value_of(cls, key: str, value: Any) -> Any:
        field = cls.model_fields.get(key)
        choices = get_args(field.annotation) if field else ()
        if isinstance(value, bool) and field and {int, float} & {field.annotation, *choices}:
            return str(value).lower()  # pydantic would take true for the number 1
        numbers = field and get_origin(field.annotation) is tuple and str not in choices
        if numbers and isinstance(value, list | tuple):
            return [str(each).lower() if isinstance(each, bool) else each for each in value]
        if value is None and "none" in choices:
            return "none"
        return None if value == "none" and NoneType in choices else value


class MemoryConfig(Settings):
    """The categorical memory (docs/method.md, section 3)."""

    read: Literal["gumbel", "softmax"] = "gumbel"
    """Attention to the slots in training; evaluation always uses softmax."""
    momentum: float = Field(0.8, ge=0, le=1)
    """Weight of the old slot in a write."""
    temperature: float = Field(1.0, gt=0)
    """Divisor of the scores in the read loss, not in the attention."""
    attention_temperature: float = Field(1.0, gt=0)
    """Divisor of the scores in the attention. At 1, as published, the attention is almost uniform:
    of 19 unit slots, the right one has a weight of at most 0.13."""
    residual: bool = False
    """Add the feature to the value that is read; the published method passes on the value only."""
    gate: float = Field(0.0, ge=0)
    """Initial scale of what is added to the feature with `residual`. At 0 the network starts
    without a memory; `optim.gate_lr_scale` has the learning rate of the scales."""
    mask_empty: bool = False
    """Give slots that were never written, which are zero, no attention. As published, they take as
    much as orthogonal ones: of 19 slots at temperature 1, each has about a twentieth."""
    init_batches: int = Field(1486, ge=0)
    """Batches whose class means initialise the memory; 0 keeps random slots. The original uses 1486
    batches: two passes over an epoch of 2975 indices with batch size 4."""


def _known_space(value: Any) -> Any:
    """Return the known label space of a name, and any other value unchanged."""
    if not isinstance(value, str):
        return value
    if value not in label_spaces():
        raise ValueError(f"'{value}' is none of {', '.join(label_spaces())}")
    return label_spaces()[value]


class ModelConfig(Settings):
    """The architecture: everything that defines a segmenter except its weights.

    JSON holds `num_classes`, and `label_space` unless it is cityscapes-19. Checkpoints of earlier
    versions hold `num_classes` alone; their K classes are the first of Cityscapes.
    """

    backbone: str = "resnet50"
    """Network for the features: "resnet50", "mobilenet_v2", "timm:NAME", ..."""
    backbone_options: dict[str, JsonValue] = {}
    """Arguments of the backbone's constructor; for `timm:NAME`, those of `timm.create_model`."""
    decoder: str = "deeplabv3plus"
    """Network from the features to the logits: "deeplabv3plus", "deeplabv2", "fpn", "linear",
    "mask", "segformer", ..."""
    output_stride: Literal[8, 16, 32] = 16
    """Input pixels per position of the feature that the memory reads."""
    feature_dim: int = Field(256, ge=8, lt=2**31)
    """Channels of that feature and of a memory slot; `linear` takes those of the backbone."""
    label_space: Annotated[LabelSpace, BeforeValidator(_known_space)] = CITYSCAPES
    """Classes of the network: the name of a known label space, or a whole definition. A run sets it
    to its own classes (`classes`)."""
    test_time_bn: float = Field(0.0, ge=0, le=1)
    """Test-time batch norm (alpha-BN): weight of the mean and variance of the test image in
    prediction. 0 uses the running statistics of training only."""
    memory: MemoryConfig | None = MemoryConfig()
    adapters: Mapping[str, Mapping[str, Any]] = {}
    """Modules inserted into the backbone: the settings of each adapter, by its name."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.label_space.names

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.label_space)

    @model_validator(mode="wrap")
    @classmethod
    def _accept_num_classes(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(values, Mapping) or "num_classes" not in values:
            return validate(values)
        values = {**values}
        count = values.pop("num_classes")
        if type(count) is int and 2 <= count < len(CITYSCAPES):
            values.setdefault("label_space", first_classes(count))
        model = validate(values)
        if count != model.num_classes:
            raise ValueError(
                f"num_classes is {count!r}, but the label space '{model.label_space.name}' has "
                f"{model.num_classes} classes"
            )
        return model

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        if not self.adapters:
            del fields["adapters"]
        items = [*fields.items()]
        number = list(fields).index("label_space")
        counted = [("num_classes", self.num_classes)]
        return dict(
            [*items[:number], *counted, *items[number + (self.label_space == CITYSCAPES) :]]
        )


class LossConfig(Settings):
    """Weights of the loss terms other than the segmentation loss (docs/method.md, section 3)."""

    auxiliary: float = Field(0.4, ge=0)
    """Weight of the auxiliary head's segmentation loss."""
    read: float = Field(0.02, ge=0)
    """Weight of the cohesion of each feature with the slot of its class."""
    divergence: float = Field(0.4, ge=0)
    """Weight of the cosines between different slots."""
    classification: float = Field(0.2, ge=0)
    """Weight of the classification of the slots."""
    balance: float = Field(0.0, ge=0, le=1)
    """Weight of a pixel in the segmentation loss: (pixels of its class in the batch)^-balance. At
    0, as published, all pixels have equal weight; at 1, all classes have equal weight."""


class MetaConfig(Settings):
    """The meta step of `pinmem` and `mldg` (docs/method.md, section 4)."""

    inner: Literal["meta-train", "all"] = "meta-train"
    """Domains of the inner losses and of the memory refresh. With "all", the outer step sees the
    meta-test domains a second time, with a memory (if any) that was written without them."""
    outer_weight: float = Field(1.0, ge=0)
    """Weight of the outer losses."""


class OptimConfig(Settings):
    """The optimizer, its schedule, and the inner step of the meta methods."""

    name: str = "sgd"
    """"sgd", as in the paper, "adamw", or another optimizer of `training/optimizers`."""
    lr: float = Field(0.01, gt=0)
    """Learning rate at the start of the schedule."""
    momentum: Momentum = 0.9
    """Momentum of SGD."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Decay rates of the moments of AdamW."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay of the optimizer."""
    decay_vectors: bool = True
    """Also apply weight decay to biases, the scales and shifts of norms, tokens and positions."""
    backbone_lr_scale: float = Field(1.0, gt=0)
    """Factor of `lr` for the backbone."""
    gate_lr_scale: float | None = Field(None, gt=0)
    """Factor of `lr` for the scales of the memory's output (`model.memory.gate`), which then have
    no weight decay. None: as the other parameters."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Further factor of `lr` from each stage of the backbone to the one before it; the last stage
    has it once."""
    clip: float | None = Field(None, gt=0)
    """Maximum norm of the gradient of all parameters; None: unlimited."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, e.g. 0.999, which validation and
    checkpoints then use; the memory keeps its slots. None: no average."""
    initial_share: float = Field(0.0, ge=0, lt=1)
    """Share of the initial weights, those of `init_from`, in the network that validation and
    checkpoints use (WiSE-FT); the rest are the trained ones. It keeps what the model knows of
    domains that the sources lack."""
    ema_batches: int = Field(50, ge=1)
    """Batches of the sources that re-estimate the batch-norm statistics of the average."""
    warmup: int = Field(0, ge=0)
    """Iterations in which the learning rate rises linearly to that of the schedule."""
    schedule: Literal["exponential", "polynomial"] = "exponential"
    """Course of the learning rate; "polynomial" ends at 0 with the run."""
    decay: float = Field(9.0, ge=0)
    """exponential: lr * exp(-decay * iteration / decay_span)."""
    decay_span: int = Field(120_000, gt=0)
    """exponential: a constant of the schedule, not the length of the run."""
    power: float = Field(0.9, gt=0)
    """polynomial: lr * (1 - iteration / iterations) ** power."""
    inner_lr: float = Field(0.001, gt=0)
    """Inner step size of the first iteration; later iterations use lr(iteration) * inner_share."""
    inner_share: float = Field(0.25, gt=0)
    """Inner step size as a share of the learning rate."""
    freeze: Parts = ()
    """Parts that are not trained, "backbone" and "decoder": their weights and their batch-norm
    statistics stay those of `init_from` or `init_weights`."""


_Factor = Annotated[float, Field(gt=0, le=100)]


def _in_order(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError("the first value should not exceed the second")
    return values


class AugmentationConfig(Settings):
    """Augmentation of training images (docs/method.md, section 5)."""

    crop: int = Field(768, ge=32)
    """Side of the square crop, in pixels."""
    scale: Annotated[tuple[_Factor, _Factor], AfterValidator(_in_order)] = (0.5, 2.0)
    """Smallest and largest factor of the random scaling."""
    strong: Literal["meta-test", "first-source", "all", "none"] = "meta-test"
    """Domains of a step with strong colour jitter."""
    rare_classes: float | None = Field(None, ge=1e-6)
    """Temperature of rare-class sampling, e.g. 0.01 as in DAFormer: the lower, the more often an
    image is drawn for a rare class. None: images are drawn uniformly."""
    jitter: Literal["paper", "distort"] = "paper"
    """Colour jitter of the other domains: the paper's with probability 0.5; or "distort", SSD's
    photometric distortion, as in the recipes of foundation models."""
    views: int | None = Field(None, ge=1, le=10_000)
    """Fixed augmented crops of each image that training draws from; None: a new crop each time."""


class EvaluationConfig(Settings):
    """Validation during a run."""

    every: int | None = Field(None, ge=1)
    """Iterations between two validations on the sources; None: only at the end."""
    max_images: int | None = Field(None, ge=1)
    """Maximum number of images per domain, evenly spaced; None: all."""


class CheckpointConfig(Settings):
    """When a run saves snapshots for resuming."""

    every: int = Field(1000, ge=1)
    """Iterations between two saves; a run also saves at the end."""
    minutes: float | None = Field(10.0, gt=0)
    """Minutes after which a run also saves; this changes no result. None: only by iterations."""
    keep: int = Field(2, ge=1)
    """Number of newest snapshots to keep."""
    adapter_only: bool = False
    """Leave out of the checkpoint the tensors that equal those of `init_weights` or `init_from`,
    and name these base weights by their SHA-256; loading needs them again. Not for tune=full."""


class ComputeConfig(Settings):
    """Computation of a step: speed, memory and precision."""

    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Precision of the convolutions; the memory and the losses are always float32."""
    tf32: bool = False
    """CUDA: round the factors of float32 convolutions and products to 10 bits (TF32)."""
    channels_last: bool = False
    """Use the channels-last memory format, which speeds up many convolutions."""
    compile: bool = False
    """Compile the network with torch; the first iterations take minutes."""
    graph: bool = False
    """CUDA: capture the whole iteration as a CUDA graph and replay it, so that the host does not
    limit the speed. Requires float32 or bf16, one process, and no `recompute`; ignored on a CPU."""
    deterministic: bool = False
    """CUDA: use deterministic algorithms only, so that two runs are bit-equal; slower. On a CPU two
    runs are always bit-equal."""
    accumulate: int = Field(1, ge=1)
    """Number of steps that an iteration's images are split into; their gradients are averaged."""
    shard: bool = False
    """Split the backbone's parameters, gradients and optimizer state over the processes (FSDP2,
    `fully_shard`), for a backbone that one GPU cannot train. No effect in one process. Requires
    float32 or bf16, and neither `compile` nor `channels_last`."""
    recompute: bool | Literal["finest"] = False
    """Recompute the backbone's activations in the backward pass instead of storing them. "finest"
    recomputes the first stage only, which needs much memory and little compute."""
    cache_features: Literal["float16", "float32"] | None = None
    """Run a frozen backbone once over the `augmentation.views` of each image, keep its outputs in
    this precision in the run's folder, and train the rest of the network from them."""


class TrainConfig(Settings):
    """All settings of a run."""

    method: str = "pinmem"
    """Training method: "pinmem", "mldg", "aggregate", ..."""
    method_config: Mapping[str, Any] = {}
    """Settings of the method's own (`Method.Config`)."""
    use_memory: bool | None = None
    """Use a memory; None: as in the method's paper. It is optional for "aggregate"."""
    sources: Names = ()
    """Domains to train on: `dataset` or `dataset:domain`."""
    classes: str | None = None
    """Label space of the run: the name of a known one, or of that of a source. None: the finest one
    that the labels of all sources can be mapped to."""
    targets: Names = ()
    """Unseen domains to evaluate on after training."""
    allow_seen_targets: bool = False
    """Accept targets that a source holds images of; their scores are marked as seen."""
    iterations: int = Field(30_463, ge=1)
    """Number of optimizer steps."""
    minutes: float | None = Field(None, gt=0, le=10_000_000)
    """Wall-clock minutes of the whole run: from the measured speed it plans at most as many
    iterations as fit, with initial memory and scoring. None: no limit."""
    batch: int = Field(4, ge=1)
    """Images per domain per iteration."""
    pseudo_domains: int = Field(2, ge=2)
    """Number of pseudo-domains that a single source is split into for the meta methods."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of all randomness."""
    device: str = "auto"
    """Device: auto, cpu, mps, cuda or cuda:N."""
    workers: int = Field(0, ge=0)
    """Number of processes that load images; 0 loads in the training process."""
    init_weights: str | None = None
    """Weights of the backbone: file, name in torchvision or timm, or None for random weights."""
    tune: Literal["full", "frozen", "lora", "rein", "bias"] = "full"
    """Training of the backbone's pretrained weights, with any method: all of them; none; low-rank
    updates; learned tokens; biases only. `model.adapters.lora` and `.rein` have the settings."""
    init_from: str | None = None
    """Model whose weights the run starts from: "starter", a run, a folder, or a name on the Hub.
    Classes are matched by name; what the model lacks is initialised as usual."""
    log_every: int = Field(10, ge=1)
    """Iterations between two lines of metrics."""
    logger: Names = ()
    """Loggers of metrics and some predictions: "tensorboard", "wandb", "mlflow"."""
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
