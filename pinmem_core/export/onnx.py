"""Write ONNX files; `inference/onnx_runner.py` runs them."""

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram

from pinmem_core.errors import ConfigError, MachineError, PinMemError
from pinmem_core.inference.onnx_runner import INPUT, PREFIX, Signature, first_line

if TYPE_CHECKING:
    import onnx

OPSET = 18
"""Default ONNX opset version: the oldest that torch writes, which most runtimes support."""
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Raise MachineError if a library for writing and running ONNX files is missing.

    Raises:
        MachineError: A library is not installed.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MachineError(
            f"ONNX files need {missing[0]}, which is missing.", "pip install 'pinmem[export]'"
        )


def check_opset(opset: int) -> None:
    """Raise ConfigError if an opset version is not supported.

    Raises:
        ConfigError: The opset is too old or too new.
    """
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise ConfigError(
            f"ONNX files of opset {opset} cannot be written.",
            f"Choose one from {OPSET} to {newest}; the default is {OPSET}.",
        )


def write_onnx(
    program: ExportedProgram,
    signature: Signature,
    metadata: Mapping[str, str],
    path: Path,
    opset: int,
) -> None:
    """Write a program as an ONNX file, with its metadata in `metadata_props`.

    Args:
        program: Program returned by `trace`.
        signature: Signature that the program was traced with.
        metadata: Metadata for users of the file.
        path: Path of the file.
        opset: Opset version accepted by `check_opset`.

    Raises:
        ConfigError: The program cannot be expressed in that opset.
        PinMemError: The resulting model is not valid ONNX.
    """
    model = _converted(program, signature, opset)
    for value in (*model.graph.input, *model.graph.output):
        _name_axes(value, signature)
    save_onnx(model, metadata, path)


def save_onnx(model: "onnx.ModelProto", metadata: Mapping[str, str], path: Path) -> None:
    """Check an ONNX model and write it with its metadata.

    What torch notes of each node is left out: the traces of its stack name paths of this machine,
    and can be larger than the weights.

    Raises:
        PinMemError: The model is not valid.
    """
    import onnx

    for noted in (*model.graph.node, *model.graph.value_info, model.graph):
        noted.ClearField("metadata_props")
    onnx.helper.set_model_props(model, {f"{PREFIX}{key}": value for key, value in metadata.items()})
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise PinMemError(f"the ONNX file would be invalid: {first_line(error)}") from error
    onnx.save(model, path)


def _converted(program: ExportedProgram, signature: Signature, opset: int) -> "onnx.ModelProto":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=[signature.output],
            opset_version=opset,
            verbose=False,
        )
    assert exported is not None
    model: onnx.ModelProto = exported.model_proto
    versions = {known.domain: known.version for known in model.opset_import}
    if versions[""] != opset:  # torch only warns
        raise ConfigError(
            f"this network cannot be written in ONNX opset {opset}.", f"The default is {OPSET}."
        )
    return model


def _name_axes(value: "onnx.ValueInfoProto", signature: Signature) -> None:
    """Name the dynamic axes of an input or output."""
    names = signature.input_axes if value.name == INPUT else signature.output_axes
    for name, axis in zip(names, value.type.tensor_type.shape.dim, strict=True):
        if axis.dim_param:
            axis.dim_param = name
