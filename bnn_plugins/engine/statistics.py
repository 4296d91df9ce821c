"""What happens to signs and latents in training, as scalars and histograms."""

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ..binarize import CenteredSign, SignActivation
from ..layers import BinaryLayer
from ..registry import HOOKS

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@HOOKS.register_module()
class BinaryStatisticsHook(Hook):
    """Every ``interval`` iterations, for the runner's log (scalars ``binary/...``, which the logger hook also visualizes):

    - ``flips``: share of the weights whose sign differs from that of ``interval`` iterations ago,
    - ``latent_saturation``: share of the latents at or beyond ``latent_clip`` (1 for methods without),
    - ``input_saturation``: share of the inputs of a sign beyond [-1, 1], where most estimators pass no gradient, in this
      iteration's forward pass,
    - ``latent_q05`` to ``latent_q95``: quantiles of the sizes of the latents, in units of their mean size per layer.

    Means over the layers; ``per_layer=True`` adds one scalar per layer to the visualizer. Visualizers with TensorBoard also
    get a histogram of the latents of each layer. A model under ``torch.compile`` is compiled again to watch its inputs.
    """

    priority = 'ABOVE_NORMAL'  # before the logger

    def __init__(self, interval: int = 100, per_layer: bool = False):
        if interval < 1:
            raise ValueError(f'interval is a number of iterations of at least 1, but got {interval}')
        self.interval, self.per_layer = interval, per_layer
        self._signs: dict[str, Tensor] = {}
        self._outside: dict[str, Tensor] = {}
        self._handles: list = []

    @staticmethod
    def _layers(runner) -> dict[str, BinaryLayer]:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        return {name: layer for name, layer in model.named_modules() if isinstance(layer, BinaryLayer)}

    def before_train(self, runner) -> None:
        self._signs = {name: layer.weight.detach() >= 0 for name, layer in self._layers(runner).items()}

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.every_n_train_iters(runner, self.interval):
            self._outside = {}
            for name, layer in self._layers(runner).items():
                if isinstance(layer.activation, SignActivation) and not isinstance(layer.activation, CenteredSign):
                    self._handles.append(layer.activation.estimator.register_forward_pre_hook(self._watch(name)))

    def _watch(self, name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._outside[name] = (inputs[0].detach().abs() > 1).float().mean()
        return hook

    @torch.no_grad()
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.every_n_train_iters(runner, self.interval):
            return
        while self._handles:
            self._handles.pop().remove()
        layers = self._layers(runner)
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, layer in layers.items():
            positive = layer.weight >= 0
            size = layer.weight.abs()
            found = {'flips': (positive != self._signs[name]).float().mean(),
                     'latent_saturation': (size >= (layer.latent_clip or 1.0)).float().mean()}
            quantiles = (size / size.mean().clamp(min=1e-12)).float().flatten().sort().values
            for q in QUANTILES:  # of a sorted vector: torch.quantile refuses more than 16 million numbers
                found[f'latent_q{round(100 * q):02}'] = quantiles[round(q * (len(quantiles) - 1))]
            if name in self._outside:
                found['input_saturation'] = self._outside[name]
            self._signs[name] = positive
            tensors[name] = found
        every = [value for found in tensors.values() for value in found.values()]
        numbers = iter(torch.stack(every).tolist() if every else [])  # the device is waited for once
        scalars = {name: {key: next(numbers) for key in found} for name, found in tensors.items()}
        means: dict[str, list[float]] = {}
        for found in scalars.values():
            for key, value in found.items():
                means.setdefault(key, []).append(value)
        step = runner.iter + 1
        for key, values in means.items():
            runner.message_hub.update_scalar(f'train/binary/{key}', sum(values) / len(values))
        if self.per_layer:
            runner.visualizer.add_scalars({f'binary/{name}/{key}': value for name, found in scalars.items()
                                           for key, value in found.items()}, step)
        for backend in runner.visualizer._vis_backends.values():
            if hasattr(backend, '_tensorboard'):
                for name, layer in layers.items():
                    backend.experiment.add_histogram(f'latents/{name}', layer.weight, step)
