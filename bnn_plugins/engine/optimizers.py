"""Optimizer settings of binary networks."""

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..layers import BinaryLayer, RPReLU
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BinaryOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """No weight decay on latents, thresholds and scales; own learning rate for latents.

    The sign of a latent does not depend on its size, so decay only shortens the way to the next flip; thresholds, scales and
    RPReLU shifts are offsets, not weights. ``paramwise_cfg`` takes all keys of mmengine's default constructor, and:

    - ``latent_lr_mult`` (float): factor of the learning rate of latent weights. Default 1.
    - ``latent_decay_mult`` (float): factor of their weight decay. Default 0.
    - ``threshold_decay_mult`` (float): factor of the decay of thresholds, scales, RPReLU and PReLU. Default 0.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        # The parent takes a short cut around add_params when paramwise_cfg is empty.
        super().__init__(optim_wrapper_cfg, {'latent_decay_mult': 0.0, **(paramwise_cfg or {})})

    def add_params(self, params, module, prefix='', is_dcn_module=None) -> None:
        first = len(params)
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:
            return
        kinds = self._kinds(module)
        cfg = self.paramwise_cfg
        for group in params[first:]:
            kind = kinds.get(id(group['params'][0]))
            if kind is None:
                continue
            if self.base_wd is not None:
                group['weight_decay'] = self.base_wd * cfg.get(f'{kind}_decay_mult', 0.0)
            if kind == 'latent':
                group['lr'] = group.get('lr', self.base_lr) * cfg.get('latent_lr_mult', 1.0)

    @staticmethod
    def _kinds(model: nn.Module) -> dict[int, str]:
        """``id(parameter) -> 'latent' | 'threshold'`` for the parameters that are treated specially."""
        kinds = {}
        for module in model.modules():
            if isinstance(module, BinaryLayer):
                kinds[id(module.weight)] = 'latent'
                for part in (module.activation, module.weight_binarizer):
                    kinds.update((id(p), 'threshold') for p in part.parameters())
            elif isinstance(module, RPReLU | nn.PReLU):
                kinds.update((id(p), 'threshold') for p in module.parameters())
        return kinds
