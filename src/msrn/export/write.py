"""Writing a bundle as an ONNX file or a package of `torch.export`."""

import io
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import msrn
from msrn.bundle import Bundle
from msrn.errors import MissingDependencyError, ModelError, MSRNError, is_out_of_memory
from msrn.files import replace_file
from msrn.metrics.calibration import PiecewiseLinear, ScaledLogits
from msrn.models import MSRN, ExportableMSRN, InferenceMSRN

PRECISIONS = ("fp32", "fp16", "int8")
SUFFIXES = (".onnx", ".pt2")
_OPSET = 18
# A protocol buffer, which an ONNX file is, holds no more.
_MOST_BYTES = 2**31 - 2**20


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: The file.
        size: Height and width of the images it takes; other sizes work too where `is_dynamic`.
        is_dynamic: Whether any size is taken.
        is_folded: Whether attention and classifier are one linear layer; None for heads without attention.
        plain_stages: Stages whose attention is written in the plain formulation, which takes the most memory.
        num_bytes: Of the file.
    """

    path: Path
    size: tuple[int, int]
    is_dynamic: bool
    is_folded: bool | None
    plain_stages: tuple[int, ...]
    num_bytes: int


class Exportable(nn.Module):
    """A bundle's model with its calibration, of standard operators only.

    Args:
        bundle: The model, on the CPU.
        images: Calibration images, preprocessed, as varied as those to come: they fix the nodes of MSRN's attention.

    Raises:
        ModelError: The model's attention cannot be written in standard operators.
    """

    def __init__(self, bundle: Bundle, images: Float[Tensor, "B 3 H W"]) -> None:
        super().__init__()
        model = bundle.model.eval()
        if isinstance(model, MSRN):
            try:
                self.model: nn.Module = ExportableMSRN(InferenceMSRN(model), images)
            except ValueError as error:
                raise ModelError(f"{error} Give more varied calibration images, or another model.") from error
        else:
            self.model = model
        self.calibration = _calibration(bundle)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        """Probabilities, calibrated where the bundle is, and logits."""
        logits = self.model(images)
        return self.calibration(logits), logits


def export_model(
    bundle: Bundle,
    out: str | Path,
    images: Float[Tensor, "B 3 H W"],
    *,
    precision: str = "fp32",
) -> Export:
    """Write a model as one file that other programs run.

    An ONNX file has the input `images` (B, 3, H, W), float32 and preprocessed, the outputs `probabilities` and `logits` (B, L),
    and the metadata `labels`, `thresholds`, `preprocessing` and `version`, each JSON. Batch, height and width are open where the
    backbone takes any size. A `.pt2` file is read by `torch.export.load` and has the same metadata in its extra file `msrn.json`.

    Args:
        bundle: The model.
        out: Ending in .onnx or .pt2.
        images: Calibration images, preprocessed; they fix the nodes of MSRN's attention, and the ranges of int8.
        precision: "fp32"; for ONNX also "fp16" (half the size, for GPUs) and "int8" (smaller, for processors).

    Raises:
        MSRNError: Another ending or precision, or the file cannot be written.
        ModelError: The model cannot be exported.
        MissingDependencyError: onnx, onnxscript or onnxruntime is not installed.
    """
    out = Path(out)
    check_request(out, precision)
    exportable = Exportable(bundle, images.cpu()).eval()
    metadata = {
        "labels": json.dumps(list(bundle.label_names), ensure_ascii=False),
        "thresholds": json.dumps(bundle.label_thresholds.tolist()),
        "preprocessing": json.dumps(bundle.preprocessing.to_dict()),
        "version": json.dumps(msrn.__version__),
    }
    with torch.no_grad(), _quiet():
        program, is_dynamic = _trace(exportable, images[:2].cpu())
        if out.suffix == ".pt2":
            with replace_file(out) as temporary:
                content = io.BytesIO()
                torch.export.save(program, content, extra_files={"msrn.json": json.dumps(metadata)})
                temporary.write_bytes(content.getvalue())
        else:
            _write_onnx(program, out, metadata, precision, images.cpu())
    inner = exportable.model
    return Export(
        out,
        bundle.preprocessing.size,
        is_dynamic,
        inner.is_folded if isinstance(inner, ExportableMSRN) else None,
        inner.plain_stages if isinstance(inner, ExportableMSRN) else (),
        out.stat().st_size,
    )


def check_request(out: Path, precision: str) -> None:
    """Refuse what cannot be written, before any work is done for it.

    Raises:
        MSRNError: Another ending or precision.
        MissingDependencyError: A package is not installed.
    """
    if out.suffix not in SUFFIXES:
        raise MSRNError(f"--out {out}: expected an ending of {' or '.join(SUFFIXES)}. Give such a name.")
    if precision not in PRECISIONS:
        raise MSRNError(f"there is no precision '{precision}'. Choose one of {', '.join(PRECISIONS)}.")
    if out.suffix == ".pt2":
        if precision != "fp32":
            raise MSRNError(f"a .pt2 file is written in fp32 only, got {precision}. Give a name that ends in .onnx.")
        return
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"an ONNX file needs {error.name}: pip install 'msrn[export]'.") from error


def _trace(exportable: Exportable, images: Float[Tensor, "B 3 H W"]) -> tuple[torch.export.ExportedProgram, bool]:
    """The graph, with any size of images if the backbone takes it."""
    if len(images) < 2:  # a batch of one would be taken for a constant
        images = images.expand(2, *images.shape[1:]).contiguous()
    auto = torch.export.Dim.AUTO
    for dims in ({0: auto, 2: auto, 3: auto}, {0: auto}):
        try:
            program = torch.export.export(exportable, (images,), dynamic_shapes=(dims,))
        except Exception as error:  # the exporter raises nearly anything
            reason = error
            continue
        # The exporter may have found that only one size works.
        shape = (
            next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
            .meta["val"]
            .shape
        )
        if isinstance(shape[0], int):
            reason = ModelError("the batch size is fixed")
            continue
        return program, not any(isinstance(side, int) for side in shape[2:])
    raise ModelError(
        f"this backbone cannot be exported: {' '.join(str(reason).split())[:300]}. Train with another one."
    )


def _write_onnx(
    program: torch.export.ExportedProgram,
    out: Path,
    metadata: dict[str, str],
    precision: str,
    images: Float[Tensor, "B 3 H W"],
) -> None:
    import onnx

    try:
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=_OPSET,
            input_names=["images"],
            output_names=["probabilities", "logits"],
            verbose=False,
        )
    except Exception as error:  # the exporter raises nearly anything
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"this model cannot be written as ONNX: {' '.join(str(error).split())[:300]}. Give a name that ends in .pt2."
        ) from error
    assert written is not None
    model = written.model_proto
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        half = OnnxModel(convert_float_to_float16(model, keep_io_types=True))
        half.topological_sort()
        model = half.model
    elif precision == "int8":
        model = _quantize(model, images)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata)
    if model.ByteSize() > _MOST_BYTES:
        raise ModelError(
            f"the model has {model.ByteSize() / 2**30:.1f} GB, an ONNX file holds 2. Give a name that ends in .pt2, or "
            "--precision fp16."
        )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"what the exporter wrote is no whole ONNX model: {' '.join(str(error).split())[:300]}. Give another --precision."
        ) from error
    with replace_file(out) as temporary:
        onnx.save_model(model, temporary)


def _quantize(model: Any, images: Float[Tensor, "B 3 H W"]) -> Any:
    """8-bit convolutions and matrix products, with ranges from the calibration images."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(images.split(8))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        whole, prepared, quantized = (str(Path(folder, f"{name}.onnx")) for name in ("whole", "prepared", "quantized"))
        onnx.save_model(model, whole)
        quant_pre_process(whole, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["Conv"],
        )
        return onnx.load_model(quantized)


class _Scaled(nn.Module):
    scales: Tensor
    offsets: Tensor

    def __init__(self, calibration: ScaledLogits) -> None:
        super().__init__()
        self.register_buffer("scales", torch.tensor(calibration.scales))
        self.register_buffer("offsets", torch.tensor(calibration.offsets))

    def forward(self, logits: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        return (logits * self.scales + self.offsets).sigmoid()


class _Piecewise(nn.Module):
    """Linear between knots: the first probability, and what each piece adds up to the logit."""

    starts: Tensor
    widths: Tensor
    slopes: Tensor
    first: Tensor

    def __init__(self, calibration: PiecewiseLinear) -> None:
        super().__init__()
        most = max(map(len, calibration.logits))
        starts = torch.zeros(len(calibration.logits), most - 1, dtype=torch.float64)
        widths, slopes = torch.ones_like(starts), torch.zeros_like(starts)
        for label, (logits, probs) in enumerate(zip(calibration.logits, calibration.probs, strict=True)):
            knots, values = torch.tensor(logits, dtype=torch.float64), torch.tensor(probs, dtype=torch.float64)
            count = len(knots) - 1
            starts[label, :count], widths[label, :count] = knots[:-1], knots.diff()
            slopes[label, :count] = values.diff() / knots.diff()
        self.register_buffer("starts", starts.float())
        self.register_buffer("widths", widths.float())
        self.register_buffer("slopes", slopes.float())
        self.register_buffer("first", torch.tensor([probs[0] for probs in calibration.probs]))

    def forward(self, logits: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        covered = torch.minimum((logits[:, :, None] - self.starts).clamp(min=0), self.widths)
        probs: Tensor = self.first + (covered * self.slopes).sum(dim=2)
        return probs


def _calibration(bundle: Bundle) -> nn.Module:
    if isinstance(bundle.calibration, ScaledLogits):
        return _Scaled(bundle.calibration)
    if isinstance(bundle.calibration, PiecewiseLinear):
        return _Piecewise(bundle.calibration)
    return nn.Sigmoid()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of their own calls."""
    import logging

    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx", "torch.fx.experimental.symbolic_shapes", "onnxscript", "root")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
