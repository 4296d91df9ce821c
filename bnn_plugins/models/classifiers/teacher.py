"""Teachers: any network that gives logits, outside of the student's parameters."""

from collections.abc import Sequence

import torch
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from ...registry import MODELS
from ..losses import Outputs


class Taps:
    """Inputs and outputs of some submodules of a network, collected while it is entered: ``with taps: model(x)``.

    Args:
        model: the network.
        layers: dotted names; of several outputs the last is taken.
        whose: for the error.

    Raises:
        ValueError: for a layer that the network does not have.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], whose: str):
        self.layers, self.modules = tuple(layers), []
        modules = dict(model.named_modules())
        for name in self.layers:
            if name not in modules:
                raise ValueError(f'the {whose} has no layer {name!r}; its first ones: {", ".join(list(modules)[1:12])}')
            self.modules.append(modules[name])

    def __enter__(self) -> 'Taps':
        self._seen: dict[str, tuple] = {}
        self._handles = [module.register_forward_hook(self._keep(name))
                         for name, module in zip(self.layers, self.modules, strict=True)]
        return self

    def __exit__(self, *error) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str):
        def hook(module, inputs, output):
            self._seen[name] = inputs[0] if inputs else None, output
        return hook

    def seen(self, name: str) -> tuple:
        """Input and output of one of the layers."""
        return self._seen[name]

    def take(self) -> tuple[tuple[Tensor, ...], tuple[tuple[nn.Module, Tensor], ...]]:
        """The outputs, and the modules with their inputs, in the order of the names; they are forgotten."""
        seen = [self._seen.pop(name) for name in self.layers]
        return (tuple(output[-1] if isinstance(output, tuple) else output for _, output in seen),
                tuple((module, x) for module, (x, _) in zip(self.modules, seen, strict=True)))


class Teacher:
    """A frozen network in evaluation mode. Not a module: it is neither saved, nor averaged, nor copied with the student.

    Args:
        model (dict | nn.Module): a module; the config of a registered model, ``dict(type='bnn_plugins.BinaryClassifier',
            ...)`` or of another scope; or ``dict(type='timm', model_name=..., pretrained=True, ...)`` where timm is installed.
        checkpoint (str | None): weights for it, in any form that mmengine loads.
        layers (Sequence[str]): dotted names of submodules whose outputs are the features.

    Raises:
        ImportError: without timm, where it is asked for. ValueError: for a layer that the model does not have.
    """

    def __init__(self, model: dict | nn.Module, checkpoint: str | None = None, layers: Sequence[str] = ()):
        self.model = model if isinstance(model, nn.Module) else build(dict(model))
        if checkpoint is not None:
            load_checkpoint(self.model, checkpoint, map_location='cpu', strict=True)
        self.model.eval().requires_grad_(False)
        self.taps = Taps(self.model, layers, 'teacher')

    def __deepcopy__(self, memo):
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Normalised images ``[N, C, H, W]``, as the student gets them."""
        self.model.to(images.device)
        with self.taps:
            logits = self.model(images)
        return Outputs(logits, *self.taps.take())


def build(cfg: dict) -> nn.Module:
    if cfg['type'] == 'timm':
        cfg.pop('type')
        try:
            import timm
        except ImportError as error:
            raise ImportError("a teacher of type='timm' needs timm: pip install timm") from error
        return timm.create_model(**cfg)
    scope = cfg['type'].partition('.')[0] if '.' in cfg['type'] else None
    if scope is None:
        return MODELS.build(cfg)
    with DefaultScope.overwrite_default_scope(scope):  # the parts of the teacher are of its own scope
        return MODELS.build(cfg)
