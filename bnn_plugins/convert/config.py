"""The one serialisable description of a binary model."""

import json
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import ClassVar

from ..binarize import build_method, check_keys, unknown
from ..binarize.lookup import checked_arguments
from ..layers import BinaryAttention, BinaryConv2d, Expansion
from .rules import list_roles

ACTS = ('auto', 'hardtanh', 'identity', 'keep', 'prelu')


class QuantMethod(StrEnum):
    """The name under which diffusers finds the quantizer."""

    BNN = 'bnn'


@dataclass
class BNNConfig:
    """How a float model becomes binary; the same object in an mmengine config, a diffusers ``config.json`` and Python.

    diffusers takes it as ``quantization_config``; ``quant_method`` is what its tables look up.

    Attributes:
        method: a name from :func:`bnn_plugins.list_methods` or ``dict(type=name, **options)``.
        expand: expanding-and-shrinking inside of each layer, ``dict(tau=2, groups=1)``, see
            :class:`bnn_plugins.layers.Expansion`. The network around keeps its widths, so the style is ``'drop_in'``: the
            layer itself tiles its input, with a learned threshold for each copy, and its output. (A wider network, the
            papers' ``'es'`` and ``'rep'``, is built by a native model with ``expand=``.) Layers whose widths do not divide are
            not expanded, and the report says so. Float weights are regrouped: a pretrained network is to be trained anew.
        rules: ``{pattern: 'binary' | 'float'}`` over module names, first match wins, before the built-in rules; patterns as
            in :mod:`fnmatch` (``'layer4.*'``). A pattern that matches no layer is an error. Pairs ``[(pattern, kind), ...]``
            say the same and keep their order where mmengine writes a config: it sorts the keys of a dict.
        roles: the roles that may become binary, of :func:`bnn_plugins.convert.list_roles` (``['resnet_conv', 'ff']`` of
            diffusers' models); ``None`` for any.
        pad_value: what stands outside of the image after the sign: 0, -1 or 1.
        attention: how an ``nn.MultiheadAttention`` binarizes its probabilities, a name of
            :func:`bnn_plugins.list_probabilities` or ``dict(type=name, ...)``; then its scores and sums of values are
            binary, too. ``None``: they stay real, only the projections become binary.
        act: what replaces a ReLU that would feed signs: ``'auto'`` (the method's own where it needs no channel count, else
            ``'hardtanh'``), ``'hardtanh'``, ``'identity'``, ``'prelu'`` (one slope) or ``'keep'``.
        modules_to_not_convert: names of modules (or parts of names, as ``'proj_out'``) whose layers stay float, before all
            rules: the key that the other backends of diffusers have for it. One that matches no layer is an error.

    Raises:
        ValueError: for an unknown method, option or value.
        TypeError: for an unknown argument, whose nearest known one is named, and for a value of the wrong kind.

    Example:
        >>> BNNConfig(method=dict(type='dorefa', a_bits=2), rules={'head.*': 'float'}).pad_value
        0
        >>> BNNConfig(pad_value=2)
        Traceback (most recent call last):
        ValueError: pad_value must be -1, 0 or 1, but got 2
    """

    method: str | dict = 'reactnet'
    expand: dict | None = None
    rules: dict[str, str] = field(default_factory=dict)
    pad_value: int = 0
    act: str = 'auto'
    roles: list[str] | None = None
    attention: str | dict | None = None
    modules_to_not_convert: list[str] | None = None

    quant_method: ClassVar[QuantMethod] = QuantMethod.BNN

    def __post_init__(self):
        # A layer is built: bits, estimators and pad values that none can have are refused before a model is touched.
        BinaryConv2d(1, 1, 1, method=self.method, pad_value=self.pad_value, device='meta')
        try:
            self.rules = dict(self.rules or {})
        except (TypeError, ValueError) as error:
            raise TypeError(f'rules must be a dict or a list of (pattern, kind), but got {self.rules!r}') from error
        for pattern, kind in self.rules.items():
            if kind not in ('binary', 'float'):
                raise ValueError(f"rules[{pattern!r}] must be 'binary' or 'float', but got {kind!r}")
        if self.attention is not None:
            BinaryAttention(1, method=self.method, probability=self.attention)  # refuses what cannot be
        check_keys('role', self.roles or (), list_roles())
        if self.layer_expand is not None and not self.layer_expand.drop_in:
            raise ValueError("expand: a network that exists keeps its widths, so its layers have style='drop_in', but got "
                             f'{self.layer_expand.style!r}; build a native model (bnn_plugins.BNNResNet, ...) with expand=')
        if self.act == 'rprelu':
            raise ValueError("act='rprelu' has one shift per channel, which a replaced ReLU does not know: use 'prelu' or "
                             "'hardtanh'")
        if self.act == 'relu':
            raise ValueError("act='relu' would replace a ReLU by a ReLU: use 'keep' to leave it where it is")
        if self.act not in ACTS:
            raise ValueError(unknown('act', self.act, ACTS))

    @classmethod
    def from_dict(cls, values: dict) -> 'BNNConfig':
        """The inverse of :meth:`to_dict`; an unknown key raises ``ValueError`` and names the nearest known one."""
        values = {key: value for key, value in values.items() if key != 'quant_method'}
        check_keys('key of BNNConfig', values, [f.name for f in fields(cls)])
        return cls(**values)

    def to_dict(self) -> dict:
        return {'quant_method': self.quant_method.value, **asdict(self)}

    def to_diff_dict(self) -> dict:
        """What differs from the defaults (diffusers prints this)."""
        default = type(self)().to_dict()
        return {key: value for key, value in self.to_dict().items() if key == 'quant_method' or value != default[key]}

    def to_json_string(self, use_diff: bool = False) -> str:
        """As JSON, under the name that diffusers' configs have for it; ``use_diff``: only what differs from the defaults."""
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2)  # not sorted: the first rule that matches wins

    def kept(self, name: str) -> str | None:
        """The entry of ``modules_to_not_convert`` that a layer of this name is in."""
        return next((entry for entry in self.modules_to_not_convert or () if f'.{entry}.' in f'.{name}.'), None)

    @property
    def takes_signs(self) -> bool:
        """Whether the method binarizes activations by their sign."""
        activation = BinaryConv2d(1, 1, 1, method=self.method, device='meta').activation
        return activation.signed and activation.bits == 1

    @property
    def layer_expand(self) -> Expansion | None:
        """``expand`` of each layer; the style is ``'drop_in'`` where none is said."""
        return Expansion.of({'style': 'drop_in', **self.expand} if isinstance(self.expand, dict) else self.expand)

    @property
    def replacement_act(self) -> str:
        """The non-linearity that stands in for a ReLU: a name of :func:`build_act`, or ``'keep'``."""
        if self.act != 'auto':
            return self.act
        own = build_method(self.method).act
        return {'relu': 'keep', 'rprelu': 'prelu', 'identity': 'hardtanh'}.get(own, own)


BNNConfig.__init__ = checked_arguments(BNNConfig.__init__)
