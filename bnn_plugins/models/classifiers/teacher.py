"""Teachers: any network that gives logits, outside of the student's parameters."""

from collections.abc import Sequence

import torch
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from ...registry import MODELS
from ..losses import Outputs


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
        self.layers = tuple(layers)
        self._features: dict[str, Tensor] = {}
        modules = dict(self.model.named_modules())
        for name in self.layers:
            if name not in modules:
                raise ValueError(f'the teacher has no layer {name!r}; its first ones: {", ".join(list(modules)[1:12])}')
            modules[name].register_forward_hook(self._keep(name))

    def _keep(self, name: str):
        def hook(module, inputs, output):
            self._features[name] = output[-1] if isinstance(output, tuple) else output
        return hook

    def __deepcopy__(self, memo):
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Normalised images ``[N, C, H, W]``, as the student gets them."""
        self.model.to(images.device)
        logits = self.model(images)
        return Outputs(logits, tuple(self._features.pop(name) for name in self.layers))


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
