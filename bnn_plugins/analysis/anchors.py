"""What one would take in the place of a binary network on a CPU: the float twin in OpenVINO and in ONNX Runtime, also in int8.

Neither is a dependency: ``pip install 'bnn_plugins[baselines]'`` has both, and NNCF, with which OpenVINO quantizes.
"""

import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

PACKAGES = {'openvino': ('openvino', 'nncf'), 'onnxruntime': ('onnxruntime', 'onnx')}


def missing(engine: str) -> list[str]:
    """Packages of an engine that are not installed."""
    return [package for package in PACKAGES[engine] if find_spec(package) is None]


class Flat(nn.Module):
    """A module of one tensor whose results are a flat tuple; ``spec`` is their structure after the first call."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module, self.spec = module, None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        leaves, self.spec = pytree.tree_flatten(self.module(x))
        return tuple(leaves)


@torch.no_grad()
def compiled(engine: str, precision: str, module: nn.Module, x: Tensor, calibration: Sequence[Tensor],
             threads: int, save: Path | None = None) -> Callable[[Tensor], object]:
    """``module`` in an engine: takes and returns what the module does, for inputs of the shape of ``x``.

    Args:
        engine: a key of :data:`PACKAGES`. precision: ``'float32'``, ``'bfloat16'`` (OpenVINO) or ``'int8'``, by the engine's
            own post-training flow with its defaults.
        calibration: of int8. save: a folder that takes the files of the model as the engine writes it.

    Raises:
        RuntimeError: a package is not installed. ValueError: int8 without calibration.
    """
    if lacking := missing(engine):
        raise RuntimeError(f"{', '.join(lacking)} not installed: pip install 'bnn_plugins[baselines]'")
    if precision == 'int8' and not calibration:
        raise ValueError(f'{engine} in int8 needs images to calibrate with')
    flat = Flat(module).eval()
    flat(x)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of tracers, about numbers that stay what they are
        run = ENGINES[engine](flat, x.contiguous(), precision, [image.contiguous() for image in calibration], threads,
                              save)
    return lambda x: pytree.tree_unflatten([torch.from_numpy(value) for value in run(x.contiguous().numpy())], flat.spec)


def openvino_options(precision: str, threads: int) -> dict[str, object]:
    """In int8 it chooses itself what its other layers compute in, as for its users: bfloat16 where that is fast."""
    hints = {'float32': {'INFERENCE_PRECISION_HINT': 'f32'}, 'bfloat16': {'INFERENCE_PRECISION_HINT': 'bf16'}, 'int8': {}}
    return {'INFERENCE_NUM_THREADS': threads, 'NUM_STREAMS': 1, 'PERFORMANCE_HINT': 'LATENCY', **hints[precision]}


def openvino(flat: Flat, x: Tensor, precision: str, calibration: Sequence[Tensor], threads: int,
             save: Path | None) -> Callable:
    import nncf
    import openvino as ov
    nncf.set_log_level(logging.ERROR)
    model = ov.convert_model(flat, example_input=x, input=[tuple(x.shape)])
    if precision == 'int8':
        model = nncf.quantize(model, nncf.Dataset([image.numpy() for image in calibration]), subset_size=len(calibration))
    if save is not None:
        ov.save_model(model, save / 'model.xml', compress_to_fp16=False)
    request = ov.Core().compile_model(model, 'CPU', openvino_options(precision, threads)).create_infer_request()

    def run(x) -> list:
        request.set_input_tensor(ov.Tensor(x, shared_memory=True))
        request.infer()
        return [tensor.data for tensor in request.output_tensors]

    return run


def onnxruntime(flat: Flat, x: Tensor, precision: str, calibration: Sequence[Tensor], threads: int,
                save: Path | None) -> Callable:
    import onnxruntime as ort
    exported = io.BytesIO()
    torch.onnx.export(flat, (x,), exported, dynamo=False, opset_version=17, input_names=['x'])
    model = exported.getvalue() if precision == 'float32' else quantized_onnx(exported.getvalue(), calibration)
    if save is not None:
        (save / 'model.onnx').write_bytes(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = ort.InferenceSession(model, options)
    return lambda x: session.run(None, {'x': x})


def quantized_onnx(model: bytes, calibration: Sequence[Tensor]) -> bytes:
    """Static quantization: weights per channel, activations uint8."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.images = iter(calibration)

        def get_next(self) -> dict | None:
            return next(({'x': image.numpy()} for image in self.images), None)

    with tempfile.TemporaryDirectory() as folder:
        first, ready, result = (Path(folder) / f'{name}.onnx' for name in ('first', 'ready', 'result'))
        first.write_bytes(model)
        quant_pre_process(first, ready)
        quantize_static(ready, result, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
        return result.read_bytes()


ENGINES = {'openvino': openvino, 'onnxruntime': onnxruntime}
