"""``type='bnn_plugins.binarized'``: any registered module, made binary."""

from mmengine.logging import print_log
from torch import nn

from ...convert import BNNConfig, binarize_
from ...registry import MODELS

GIVEN = ('train_cfg', 'test_cfg')  # what detectors add to the config of their head


@MODELS.register_module()
def binarized(module: dict, **cfg) -> nn.Module:
    """Build ``module`` and make it binary before its weights are initialised or loaded; returns the module itself.

    For modules that ignore ``conv_cfg``, that are made of linear layers, or that have ReLUs before their convolutions:
    ``backbone=dict(type='bnn_plugins.binarized', module=dict(type='mmdet.SwinTransformer', ...), method='reactnet')``. Nothing
    is wrapped, so parameter names stay and ``init_cfg=dict(type='Pretrained', ...)`` loads float weights as latents. The
    binarization report goes to the log.

    Args:
        module: config of the float module.
        **cfg: fields of :class:`bnn_plugins.BNNConfig`.

    Raises:
        ValueError: see :func:`bnn_plugins.binarize_`; and for a dict of rules whose order would be lost.
    """
    check_order(cfg.get('rules') or {})
    module = {**module, **{key: cfg.pop(key) for key in GIVEN if key in cfg}}
    bnn_config = BNNConfig.from_dict(cfg)
    model = MODELS.build(module)
    report = binarize_(model, bnn_config)
    print_log(f'binarized {module["type"]} ({report.summary()})\n{report}', logger='current')
    return model


def check_order(rules: dict | list) -> None:
    """The first matching rule wins, but mmengine sorts the keys of a dict when it writes a config into a file."""
    if isinstance(rules, dict) and len(set(rules.values())) > 1 and list(rules) != sorted(rules):
        pairs = ', '.join(f'({pattern!r}, {kind!r})' for pattern, kind in rules.items())
        raise ValueError(f'rules: a saved config would sort this dict, and the order of rules matters: write rules=[{pairs}]')
