"""What training at scale would take, computed on paper: ``python -m benchmarks.scale.estimate``. Nothing here was run.

Counted (on torch's meta device): parameters, operations of a forward pass, bytes that it saves for the backward pass.
Assumed: ``H100`` and ``USED``. A backward pass has twice the operations of a forward pass; binary layers train with bfloat16
products of signs, which are no fewer operations. Traffic is that of ring collectives; it is compared with the compute that it
can hide behind. Results: ``results/estimate.csv``, from which ``python -m benchmarks.tables`` makes the table.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bnn_plugins  # noqa: F401  (before mmengine's registries)
from bnn_plugins import binarize_
from bnn_plugins.layers import BinaryLayer

RESULTS = Path(__file__).parent / 'results/estimate.csv'
H100 = dict(flops=989e12, inside=450e9, between=50e9)  # bfloat16 a second; bytes a second and direction in a machine, between
USED = 0.3  # share of the peak that training reaches
PER_MACHINE = 8
ADAM = 8  # bytes of state a parameter


@dataclass(frozen=True)
class Counted:
    """Of one image."""

    name: str
    parameters: int
    binary: int  # parameters that pack into one bit
    flops: int  # of a forward pass
    saved: int  # bytes


@dataclass(frozen=True)
class Plan:
    counted: Counted
    gpus: int
    batch: int  # of all GPUs
    steps: int
    average: bool  # an exponential moving average of the weights
    sharded: bool

    def row(self) -> dict:
        c, n = self.counted, self.gpus
        flops = 3 * c.flops * self.batch / n
        compute = flops / (H100['flops'] * USED)
        gradients = 4 * c.parameters
        traffic = (3 if self.sharded else 2) * (n - 1) / n * gradients
        speed = H100['inside'] if n <= PER_MACHINE else H100['between']
        state = (4 + 4 + ADAM + 4 * self.average) * c.parameters / (n if self.sharded else 1)
        checkpoint = (4 + ADAM + 4 * self.average) * c.parameters
        packed = c.binary / 8 + 4 * (c.parameters - c.binary)
        return {'model': c.name, 'GPUs': n, 'batch': self.batch, 'steps': self.steps,
                'way': 'fully_shard' if self.sharded else 'DDP', 'TFLOP a step and GPU': f'{flops / 1e12:.2f}',
                'compute (ms)': f'{1e3 * compute:.1f}', 'traffic a step and GPU (MB)': f'{traffic / 1e6:.0f}',
                'traffic (ms)': f'{1e3 * traffic / speed:.2f}', 'state a GPU (GB)': f'{state / 1e9:.2f}',
                'activations a GPU (GB)': f'{c.saved * self.batch / n / 1e9:.1f}',
                'checkpoint (GB)': f'{checkpoint / 1e9:.2f}', 'packed (MB)': f'{packed / 1e6:.1f}',
                'GPU hours': f'{n * self.steps * max(compute, traffic / speed) / 3600:.0f}'}


def count(name: str, model: nn.Module, *inputs, **kwargs) -> Counted:
    """Counts of a forward pass of one image on the meta device."""
    sizes: dict[int, int] = {}
    kept: list[torch.Tensor] = []  # so that no two storages have one id
    for layer in model.modules():
        if isinstance(layer, BinaryLayer):
            layer._sign_checked = True  # there are no numbers to check

    def keep(x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, nn.Parameter):
            sizes[id(x.untyped_storage())] = x.untyped_storage().nbytes()
            kept.append(x)
        return x
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.train()(*inputs, **kwargs)
    binary = sum(m.weight.numel() for m in model.modules() if isinstance(m, BinaryLayer))
    return Counted(name, sum(p.numel() for p in model.parameters()), binary, counter.get_total_flops(), sum(sizes.values()))


def reactnet() -> Counted:
    from bnn_plugins.models.backbones import BNNReActNet
    with torch.device('meta'):
        model = nn.Sequential(BNNReActNet(method='reactnet'))
        return count('ReActNet-A, ImageNet', model, torch.empty(2, 3, 224, 224))


def unet() -> Counted:
    from diffusers import UNet2DConditionModel
    with torch.device('meta'):
        model = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        binarize_(model, 'reactnet')
        return count('binary UNet of Stable Diffusion 1.5', model.to('meta'), torch.empty(2, 4, 64, 64), torch.tensor([1, 2]),
                     torch.empty(2, 77, 768))


def main() -> None:
    small, large = (Counted(c.name, c.parameters, c.binary, c.flops // 2, c.saved // 2) for c in (reactnet(), unet()))
    images, epochs = 1_281_167, 2 * 256
    plans = [Plan(small, gpus, 64 * gpus, epochs * images // (64 * gpus), average=False, sharded=False) for gpus in (8, 64)]
    plans += [Plan(large, gpus, 2048, 100_000, average=True, sharded=sharded)
              for gpus in (64, 1024) for sharded in (False, True)]
    rows = [plan.row() for plan in plans]
    with RESULTS.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(RESULTS.read_text())


if __name__ == '__main__':
    main()
