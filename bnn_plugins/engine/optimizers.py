"""Optimizer settings of binary networks."""

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..binarize import SignWeight, check_keys
from ..layers import BinaryLayer
from ..layers.parameters import parameter_kinds
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS

OWN_KEYS = ('latent_lr_mult', 'latent_decay_mult', 'threshold_decay_mult')
MMENGINE_KEYS = ('custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'dwconv_decay_mult', 'flat_decay_mult',
                 'dcn_offset_lr_mult', 'bypass_duplicate')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BinaryOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """No weight decay on latents, thresholds and scales; own learning rate for latents.

    Which parameters these are, and why: :func:`bnn_plugins.layers.parameters.parameter_kinds`. ``paramwise_cfg`` takes all
    keys of mmengine's default constructor, and:

    - ``latent_lr_mult`` (float): factor of the learning rate of latent weights. Default 1.
    - ``latent_decay_mult`` (float): factor of their weight decay. Default 0.
    - ``threshold_decay_mult`` (float): factor of the decay of thresholds, scales (also LayerScale), RPReLU and PReLU. Default
      0.

    Groups of latents are marked with ``latent=True``; :class:`Bop` flips those and trains the rest.

    What a matching entry of ``custom_keys`` says about the rate or the decay wins over these.

    Raises:
        ValueError: for an unknown key of ``paramwise_cfg`` (the nearest known one is named), and for a factor of the decay
            when the optimizer has no ``weight_decay``; for Bop with a method that does more to its weights than take signs.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        # The parent takes a short cut around add_params when paramwise_cfg is empty.
        super().__init__(optim_wrapper_cfg, {'latent_decay_mult': 0.0, **(paramwise_cfg or {})})

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        check_keys('key of paramwise_cfg', self.paramwise_cfg, OWN_KEYS + MMENGINE_KEYS)
        if self.base_wd is None and any(self.paramwise_cfg.get(key) for key in OWN_KEYS[1:]):
            raise ValueError(f'{OWN_KEYS[1]} and {OWN_KEYS[2]} are factors of weight_decay, which the optimizer does not set')

    def add_params(self, params, module, prefix='', is_dcn_module=None) -> None:
        first = len(params)
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:
            return
        if str(getattr(self.optimizer_cfg['type'], '__name__', self.optimizer_cfg['type'])).rpartition('.')[2] == 'Bop':
            self._check_bop(module)
        kinds = parameter_kinds(module)
        names = {id(p): name for name, p in module.named_parameters()}
        for group in params[first:]:
            identity = id(group['params'][0])
            kind = kinds.get(identity)
            if kind is None:
                continue
            if kind == 'latent':
                group['latent'] = True
            custom = self._custom(names[identity])
            if not custom & {'decay_mult', 'weight_decay'}:
                # Explicitly zero also where the optimizer has a default of its own, as AdamW.
                mult = self.paramwise_cfg.get(f'{kind}_decay_mult', 0.0)
                group['weight_decay'] = self.base_wd * mult if mult else 0.0
            if kind == 'latent' and 'latent_lr_mult' in self.paramwise_cfg and not custom & {'lr_mult', 'lr'}:
                group['lr'] = self.base_lr * self.paramwise_cfg['latent_lr_mult']

    def _custom(self, name: str) -> set[str]:
        """What the entry of ``custom_keys`` for the parameter ``name`` sets; the longest key counts, as in mmengine."""
        custom_keys = self.paramwise_cfg.get('custom_keys', {})
        matching = [key for key in sorted(custom_keys) if key in name]
        return set(custom_keys[max(matching, key=len)]) if matching else set()

    @staticmethod
    def _check_bop(model: nn.Module) -> None:
        for name, layer in model.named_modules():
            if isinstance(layer, BinaryLayer) and type(layer.weight_binarizer).forward is not SignWeight.forward:
                raise ValueError(f'Bop has weights of -1 and +1, but the method {layer.method!r} of the layer {name!r} '
                                 'computes them from latents: use one that takes plain signs, such as binarynet or reactnet')
