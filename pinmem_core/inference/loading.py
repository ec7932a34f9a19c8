"""Load a model by name, as a predictor."""

from pathlib import Path

from pinmem_core.checkpoints.hub import checkpoint_of, onnx_file
from pinmem_core.errors import ConfigError
from pinmem_core.events import Listener, ignore
from pinmem_core.inference.onnx_runner import OnnxPredictor
from pinmem_core.inference.predictor import Precision, Predictor, TiledPredictor
from pinmem_core.inference.protocols import Protocol, get_protocol, protocol_of
from pinmem_core.models import load_checkpoint


def load(
    name: str | Path,
    *,
    device: str = "auto",
    protocol: Protocol | str | None = None,
    precision: Precision = "float32",
    compile: bool = False,
    memory: int | None = None,
    on_event: Listener = ignore,
) -> TiledPredictor:
    """Return a predictor for a run or model by name.

    Args:
        name: Folder or name of a run, folder of a checkpoint, "starter", "last" for the newest
            finished run, or `user/name[@revision]` on the Hub; or path of an ONNX file, which
            onnxruntime runs on the CPU as it was exported.
        device: Device name, as for `Predictor`.
        protocol: Inference protocol, or its name with changes, such as "fast+flip"; None for the
            checkpoint's own, or else "fast".
        precision: Floating-point type of the network's convolutions.
        compile: Whether torch compiles the network.
        memory: Memory budget of one prediction in bytes, as for `Predictor`.
        on_event: Callback for notices.

    Raises:
        ConfigError: The protocol or precision does not exist, the memory budget is not above 0, or
            an option does not apply to ONNX files.
        DataError: The run or model does not exist, or its checkpoint is damaged.
        MachineError: The Hub cannot be reached.
    """
    name = str(name)
    if isinstance(protocol, str):
        protocol = get_protocol(protocol)
    if file := onnx_file(name):
        odd = {"compile": compile, "precision": precision != "float32"}
        odd["device"] = device not in ("auto", "cpu")
        for option in (option for option, given in odd.items() if given):
            raise ConfigError(
                f"{name} runs in onnxruntime on the CPU, as it was exported: --{option} would do "
                "nothing.",
                f"Leave out --{option}.",
            )
        return OnnxPredictor(file, protocol=protocol, memory=memory, on_event=on_event)
    segmenter, config = load_checkpoint(checkpoint_of(name, on_event=on_event))
    return Predictor(
        segmenter,
        device=device,
        protocol=protocol or get_protocol(protocol_of(config, "fast")),
        precision=precision,
        compile=compile,
        memory=memory,
        on_event=on_event,
    )
