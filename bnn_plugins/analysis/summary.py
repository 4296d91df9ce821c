"""What a model costs: parameters, operations, memory, layer by layer.

Convention of the binary literature (Bi-Real Net, ReActNet): ``OPs = FLOPs + BOPs / 64``, where FLOPs are the real
multiply-accumulates (one each, not two) of convolutions and linear layers, and BOPs the binary ones; a layer with w-bit
weights and a-bit activations counts ``w * a`` BOPs per multiply-accumulate, a layer with real activations counts FLOPs. A
binary attention counts those of its scores and, for each plane of its probabilities, those of its values; real probabilities
make the latter FLOPs.
Norms, activations and resizing are not counted there; what they multiply and what layers move stands in columns of its own,
for that is where a network with wider streams (expanding-and-shrinking) pays. All per image.
"""

import copy
import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import bnn_kernels

from ..convert.layer_counts import LayerCounts, count_layers, macs_per_output
from ..convert.tables import report_table
from ..deploy import PackedLayer
from ..deploy.file import same_tensors, serialize
from ..deploy.pack import packed_forms, replace_
from ..deploy.packed_attention import PackedAttention
from ..layers import BinaryLayer
from ..layers.attention import BinaryAttention

COUNTED = (_ConvNd, nn.Linear, BinaryLayer, PackedLayer, BinaryAttention, PackedAttention)
BOPS_PER_OP = 64


@dataclass
class SummaryRow:
    """One layer, or all layers together in :attr:`Summary.totals`.

    Attributes:
        name: its dotted name.
        kind: the name of its class.
        output: shape of the last output, ``''`` where the layer did not run.
        bits: ``'1x1'`` (weights x activations), ``'32x32'`` for real layers.
        params_binary, params_float: quantized weights, and real numbers beside them in the packed file (scales, biases, ...).
        macs: multiply-accumulates of any kind.
        flops, bops, ops: see the module's convention. All per image.
        muls: elementwise multiplies, one per value of a norm or PReLU (a norm takes over the scale of the binary layer in
            front of it). Products of feature maps, as in squeeze-excite, are not seen.
        bytes_in, bytes_out: activations that the layer reads, one bit each (or k) where it is binary, and writes, in float32.
        bytes_float: of all its parameters and buffers in float32 (the float twin's memory).
        bytes_latent: as they are in training.
        bytes_packed: as they are in the packed file (without its header).
    """

    name: str
    kind: str
    output: str = ''
    bits: str = '32x32'
    params_binary: int = 0
    params_float: int = 0
    macs: int = 0
    flops: int = 0
    bops: int = 0
    ops: float = 0.0
    muls: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_float: int = 0
    bytes_latent: int = 0
    bytes_packed: int = 0


@dataclass
class Summary:
    """The result of :func:`bnn_plugins.summarize`; rich shows it as a table.

    Attributes:
        rows: convolutions and linear layers in the order of the model, and ``(others)``: norms, activations, scales.
        totals: their sum.
        bytes_file: predicted size of the packed file, header included.
        backend: the backend that ran packed layers, or ``'latent'``.
    """

    rows: list[SummaryRow]
    totals: SummaryRow
    bytes_file: int
    backend: str

    @property
    def binary_share(self) -> float:
        """Share of the multiply-accumulates that are binary."""
        return 1 - self.totals.flops / self.totals.macs if self.totals.macs else 0.0

    @property
    def compression(self) -> float:
        """Float bytes over packed bytes, of the whole model."""
        return self.totals.bytes_float / self.totals.bytes_packed

    @property
    def layer_compression(self) -> float:
        """The same of the binarized layers alone."""
        binary = [row for row in self.rows if row.params_binary]
        packed = sum(row.bytes_packed for row in binary)
        return sum(row.bytes_float for row in binary) / packed if packed else 1.0

    def to_csv(self, path: str | Path) -> Path:
        """One line per layer and one for the totals."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('w', newline='') as file:
            writer = csv.DictWriter(file, [f.name for f in fields(SummaryRow)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in [*self.rows, self.totals])
        return path

    def __rich__(self):
        numbers = ('bits', 'output', 'binary weights', 'float params', 'BOPs (M)', 'FLOPs (M)', 'OPs (M)', 'muls (M)', 'read',
                   'written', 'latent', 'packed')
        return report_table('Summary', ('layer', 'type', *numbers), map(cells, self.rows), self.caption(), numbers,
                            cells(self.totals), no_wrap=True)

    def caption(self) -> str:
        return (f'OPs = FLOPs + BOPs / {BOPS_PER_OP}, per image; one FLOP is one real multiply-accumulate. '
                f'{self.binary_share:.1%} of the multiply-accumulates are binary. Binarized layers: '
                f'{self.layer_compression:.1f}x smaller; whole model: {size(self.totals.bytes_float)} float, '
                f'{size(self.totals.bytes_packed)} packed ({self.compression:.1f}x), file of {self.bytes_file:,} bytes. '
                f'Ran: {self.backend}.')


def cells(row: SummaryRow) -> list[str]:
    """A row of the table for people."""
    millions = [f'{count / 1e6:,.2f}' for count in (row.bops, row.flops, row.ops, row.muls)]
    return [row.name, row.kind, row.bits, row.output, f'{row.params_binary:,}', f'{row.params_float:,}', *millions,
            size(row.bytes_in), size(row.bytes_out), size(row.bytes_latent), size(row.bytes_packed)]


def size(count: int) -> str:
    """A number of bytes for people."""
    for unit in ('B', 'KiB', 'MiB'):
        if count < 1024:
            return f'{count:.0f} B' if unit == 'B' else f'{count:.1f} {unit}'
        count /= 1024
    return f'{count:.1f} GiB'


def summarize(model: nn.Module, inputs: Tensor | tuple | dict, config: dict | None = None,
              meta: dict | None = None) -> Summary:
    """Count parameters, operations and bytes of a latent, packed or float model.

    Args:
        model: stays as it is; it runs once, in evaluation mode.
        inputs: what to call it with, a tensor (``[N, C, H, W]`` for image models), a tuple of arguments or a dict of keyword
            arguments.
        config, meta: what the packed file will carry, for the prediction of its size.

    Returns:
        a row for each layer, and their totals. Raises what ``model(*inputs)`` raises.

    Example:
        >>> model = nn.Sequential(BinaryConv2d(64, 64, 3, padding=1, method='xnor'), nn.BatchNorm2d(64))
        >>> summary = summarize(model, torch.randn(1, 64, 8, 8))
        >>> summary.totals.params_binary, summary.backend
        (36864, 'latent')
    """
    named = inputs if isinstance(inputs, dict) else {}
    inputs = () if named else inputs if isinstance(inputs, tuple) else (inputs,)
    twin = copy.deepcopy(model)
    twin.eval()  # of some models of mmdet it returns nothing
    counts = count_layers(twin, lambda: twin(*inputs, **named), lambda module: isinstance(module, COUNTED))
    twin = replace_(twin, packed_forms(twin, strict=False))
    has_bits = any(isinstance(module, PackedLayer) for module in twin.modules())
    batch = next((x.shape[0] for x in (*inputs, *named.values()) if isinstance(x, Tensor) and x.ndim), 1)

    layers: dict[nn.Module, list[str]] = {}  # a shared layer has several names
    for name, module in twin.named_modules(remove_duplicate=False):
        if isinstance(module, COUNTED):
            layers.setdefault(module, []).append(name)
    latent_tensors, packed_tensors = (without_twins(m.state_dict()) for m in (model, twin))
    rows = []
    for module, names in layers.items():
        build = attention_row if isinstance(module, BinaryAttention | PackedAttention) else layer_row
        row = build(names[0], module, counts.get(names[0]), batch)
        row.kind = type(model.get_submodule(names[0])).__name__
        row.bytes_latent = sum(take_bytes(latent_tensors, name) for name in names)
        row.bytes_packed = sum(take_bytes(packed_tensors, name) for name in names)
        rows.append(row)
    rest = sum(tensor.nbytes for tensor in latent_tensors.values())
    counted = {name for names in layers.values() for name in names}
    muls = sum(record.muls for name, record in counts.items() if name not in counted) // batch
    rows.append(SummaryRow('(others)', 'norms, activations, ...', bits='', muls=muls, bytes_float=rest, bytes_latent=rest,
                           bytes_packed=sum(tensor.nbytes for tensor in packed_tensors.values()),
                           params_float=sum(tensor.numel() for tensor in latent_tensors.values())))
    totals = SummaryRow('total', type(model).__name__, bits='')
    for field in fields(SummaryRow):
        if field.type in (int, float):
            setattr(totals, field.name, sum(getattr(row, field.name) for row in rows))
    ran_packed = any(isinstance(module, PackedLayer) for module in model.modules())
    backend = bnn_kernels.last_backend() if ran_packed else 'latent'
    file_size = len(serialize(twin, config, meta)) if has_bits else totals.bytes_packed
    return Summary(rows, totals, file_size, backend)


def layer_row(name: str, module: nn.Module, record: LayerCounts | None, batch: int) -> SummaryRow:
    """The row of one layer, packed or real, without its measured bytes."""
    row = SummaryRow(name, type(module).__name__)
    if record:
        row.macs, row.output = record.macs // batch, 'x'.join(map(str, record.output_shape[1:]))
        bits = float(getattr(module, 'mean_bits', module.activation.bits)) if hasattr(module, 'activation') else 32
        row.muls = record.muls // batch
        row.bytes_in, row.bytes_out = int(record.inputs * bits) // 8 // batch, 4 * record.outputs // batch
    weights = weight_count(module)
    biases = 0 if module.bias is None else module.bias.numel()
    row.bytes_float = 4 * (weights + biases)
    row.params_float = weights + biases
    row.flops = row.macs
    if isinstance(module, BinaryLayer):  # with real weights: the first of two steps
        row.bits = f'{module.w_bits}x{module.activation.bits}'
    if isinstance(module, PackedLayer):
        bits = float(getattr(module, 'mean_bits', module.activation.bits))  # of an adaptive layer: what this input took
        row.bits = f'{module.w_bits}x{bits:g}'
        row.params_binary = weights
        row.params_float = sum(t.numel() for key, t in module.state_dict().items() if key != 'weight_bits')
        if bits < 32:
            row.bops, row.flops = round(row.macs * module.w_bits * bits), 0
    row.ops = row.flops + row.bops / BOPS_PER_OP
    return row


def attention_row(name: str, module: BinaryAttention | PackedAttention, record: LayerCounts | None, batch: int) -> SummaryRow:
    """The row of an attention: it has no weights, one of its two products is real where its probabilities are."""
    planes = module.probability.planes
    row = SummaryRow(name, type(module).__name__, bits=f'{planes}x1' if planes else '32x1')
    row.params_float = sum(tensor.numel() for tensor in module.state_dict().values())
    if record:
        row.output, row.macs = 'x'.join(map(str, record.output_shape[1:])), record.macs // batch
        row.bops = row.macs if planes else row.macs // 2
        row.flops, row.muls = row.macs - row.bops, record.muls // batch
        row.bytes_in, row.bytes_out = record.inputs // 8 // batch, 4 * record.outputs // batch
    row.ops = row.flops + row.bops / BOPS_PER_OP
    return row


def weight_count(module: nn.Module) -> int:
    """Number of weights, from the shape attributes (a packed layer has only their bits)."""
    replicas = getattr(module, 'replicas', 1)  # an expanded layer has fewer filters than outputs
    if hasattr(module, 'out_features'):
        return macs_per_output(module) * module.out_features // replicas
    outputs = module.in_channels if isinstance(module, nn.ConvTranspose2d) else module.out_channels
    return macs_per_output(module) * outputs // replicas


def without_twins(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once, as the packed file has it."""
    twins = same_tensors(state_dict)
    return {name: tensor for name, tensor in state_dict.items() if name not in twins}


def take_bytes(tensors: dict[str, Tensor], name: str) -> int:
    """Remove the tensors under ``name`` and return their bytes."""
    own = [key for key in tensors if key.startswith(f'{name}.' if name else '')]
    return sum(tensors.pop(key).nbytes for key in own)
