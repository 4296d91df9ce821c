"""Layers against numbers of the papers' own code (tests/golden/README.md): outputs, gradients, and the outputs of the bits."""

import numpy as np
import pytest
import torch

from bnn_plugins import set_progress
from bnn_plugins.binarize import RSign, build_estimator, build_probability
from bnn_plugins.layers import BinaryAttention, BinaryConv2d, BinaryLinear, BinaryTransformerBlock, RPReLU, SqueezeExcite
from tests.golden import Golden

LAYERS = {
    'reactnet_conv_3x3_stride2_odd': dict(method='reactnet'),
    'adambnn_conv_1x1_odd': dict(method='adambnn'),
    'bireal_conv_3x3_stride2_odd': dict(method='bireal'),
    'bnext_conv_stride2_odd': dict(method='bnext'),
    'binaryvit_conv_2x2_stride2': dict(method='binaryvit'),
    'binaryvit_linear_mean0.1': dict(method='binaryvit'),
    'bit_linear_signed': dict(method='bit'),
    'bit_linear_unsigned': dict(method=dict(type='bit', signed=False)),
    'bidet_conv_stride2_odd': dict(method='bireal', pad_value=-1),
    'bidm_conv_stride2': dict(method='bidm'),
    'bidm_conv_1x1': dict(method='bidm'),
    # The second has latents so small (deviation 0.002) that the epsilon of the deviation decides the gradient.
    'recu_conv_stride2_odd': dict(method='recu'),
    'recu_conv_tau0.85_std0.002': dict(method='recu'),
    'irnet_conv_k1_t10': dict(method=dict(type='irnet', t_min=0.1)),
    'irnet_conv_stride2_odd': dict(method=dict(type='irnet', t_min=0.1)),
    'rbnn_conv_rotation_in_gradient': dict(method='rbnn'),
    'bnfree_conv_3x3_stride2_odd': dict(method='bnfree'),
}
ESTIMATORS = {
    **dict.fromkeys(('reactnet', 'recu', 'bidet', 'binaryvit'), 'approx_sign'),
    'irnet': dict(type='ede', t_min=1.0),
    'rbnn_activation': dict(type='training_aware', t_min=1.0, activation=True),
    'bnext': dict(type='clipped_ste', clip=1.5),
    'xnor': 'clipped_ste',
}


def progress(data: Golden, layer) -> float:
    """Where in its schedule a method has the setting of the file; without one, the end."""
    if 'setting.tau' in data.arrays:  # A e^p + B from 0.85 to 0.99
        return float(np.log1p((data['setting.tau'] - 0.85) / (0.99 - 0.85) * np.expm1(1)))
    if 'setting.t' in data.arrays:  # from t_min to 10 at a constant rate of the logarithm
        t_min = layer.weight_binarizer.estimator.t_min
        return float(np.log(data['setting.t'] / t_min) / np.log(10 / t_min))
    return 1.0


@pytest.mark.parametrize('name', LAYERS)
def test_layers(name):
    data = Golden(name)
    outputs, channels, *kernel = data['param.weight'].shape
    options = dict(bias='param.bias' in data.arrays, **LAYERS[name])
    if kernel:
        layer = BinaryConv2d(channels, outputs, kernel[0], data.number('stride'), data.number('padding'), **options)
    else:
        layer = BinaryLinear(channels, outputs, **options)
    set_progress(layer, progress(data, layer))
    parameters = {name: p for name, p in (('weight', layer.weight), ('bias', layer.bias)) if p is not None}
    for official, owner, attribute in (('threshold', layer.activation, 'shift'), ('step', layer.activation, 'size'),
                                       ('scale', layer.weight_binarizer, 'alpha'), ('gain', layer.weight_binarizer, 'gain'),
                                       ('angle', layer.weight_binarizer, 'theta'),
                                       ('filter', layer.gain, 'filter'), ('filter_bias', layer.gain, 'bias')):
        if f'param.{official}' in data.arrays:
            parameters[official] = getattr(owner, attribute)
    if 'step' in parameters:  # BiT divides its gradient by the root of the number of elements, see ElasticActivation
        data.arrays['train.grad.step'] *= data['setting.numel'].sqrt()
    buffers = {f'rotation_{side}': (layer.weight_binarizer, side) for side in data.named('buffer.rotation_')}
    # BiDet differentiates the scale of its weights, which is a constant in Bi-Real Net; BiT leaves out the mean of its.
    data.check(layer, parameters, packed=True, differs=('weight',) if name.startswith(('bidet', 'bit')) else (),
               rounded=('x',) if name.startswith('rbnn') else (),  # a square root, where t < 1
               buffers=buffers)


@pytest.mark.parametrize('name', ['binaryvit_attention_core', 'binaryvit_attention_core_1head'])
def test_attention(name):
    data = Golden(name)
    layer = BinaryAttention(data['input.query'].shape[-1], data.number('heads'), 'binaryvit', 'elastic')
    parameters = {f'{part}_threshold': getattr(layer, part).shift for part in ('query', 'key', 'value')}
    data.check(layer, parameters | dict(step=layer.probability.size), packed=True)


def transformer_parameters(block) -> tuple[dict, dict]:
    """BinaryViT's names to the parameters of a block, and to the buffers of its norms."""
    parts, attention = {}, block.attention
    norms = {'norm1': block.norm1, 'norm2': block.norm2, 'context_norm': attention.norm}
    acts = {'context_act': attention.act}
    units = {name: getattr(attention, name) for name in ('reduction', 'query', 'key', 'value', 'out')}
    units |= {name: getattr(block.feed_forward, name) for name in ('grow', 'shrink')}
    for name, unit in units.items():
        parts |= {f'{name}_threshold': unit.linear.activation.shift, f'{name}_weight': unit.linear.weight}
        norms[f'{name}_norm'], acts[f'{name}_act'] = unit.norm, unit.act
    for name in ('query', 'key', 'value'):
        parts[f'{name}_sign_threshold'] = getattr(attention.attention, name).shift
    scales = {'branch': block.scale1, 'feed_forward': block.scale2}
    for (height, width), scale in zip(block.branches.windows, block.branches.scales, strict=True):
        scales[f'pool_h{height}' if height > 1 else f'pool_w{width}'] = scale
    for name, scale in scales.items():
        parts |= {f'{name}_scale': scale.scale, f'{name}_shift': scale.shift}
    for name, norm in norms.items():
        parts |= {f'{name}_weight': norm.norm.weight, f'{name}_bias': norm.norm.bias}
    for name, act in acts.items():
        parts |= {f'{name}_subtract_before': act.gamma, f'{name}_slope': act.slope, f'{name}_add_after': act.zeta}
    buffers = {f'{name}_{part}': (norm.norm, f'running_{part}') for name, norm in norms.items() for part in ('mean', 'var')}
    return parts | dict(probability_step=attention.attention.probability.size), buffers


def test_transformer_block():
    data = Golden('binaryvit_block_pool2')
    size = data.number('height'), data.number('width')
    block = BinaryTransformerBlock(8, data.number('heads'), data.number('hidden'), data.number('pool'))
    parameters, buffers = transformer_parameters(block)
    data.check(block, parameters, buffers=buffers, run=lambda block, x: block(x.unflatten(1, size)).flatten(1, 2))


def test_probability():
    data = Golden('binaryvit_probability')
    binarizer, scale = build_probability('elastic'), float(data['setting.softmax_scale'])

    def run(module, scores):
        planes = module(scores, data.number('channels_of_a_head'), scale, None, scores * scale)
        return sum(step * plane for step, plane in zip(module.steps(), planes, strict=True))

    data.check(binarizer, dict(step=binarizer.size), run=run)


def test_rsign():
    module = RSign(8)
    Golden('reactnet_rsign').check(module, dict(threshold=module.shift))


def test_rprelu():
    module = RPReLU(8)
    Golden('reactnet_rprelu').check(module, dict(add_before=module.gamma, slope=module.slope, add_after=module.zeta),
                                    factors=dict(add_before=-1.0))


def test_squeeze_excite():
    module = SqueezeExcite(16)
    Golden('bnext_squeeze_excite').check(module, {f'{part}_{name}': getattr(getattr(module, part), name)
                                                  for part in ('squeeze', 'excite') for name in ('weight', 'bias')})


@pytest.mark.parametrize('name', ESTIMATORS)
def test_estimators_at_their_edges(name):
    """Below, at and above the points where a gradient begins or ends; +1 at 0, where a release has 0."""
    data, estimator = Golden(f'boundary_{name}'), build_estimator(ESTIMATORS[name])
    if hasattr(estimator, 'set_progress'):
        estimator.set_progress(0.0)
    x = data['input.x'].clone().requires_grad_()
    out = estimator(x)
    out.sum().backward()
    assert torch.equal(out, torch.where(x == 0, 1.0, data['train.out']))
    inside = x.detach().abs() != 1 if name == 'xnor' else torch.ones_like(x, dtype=torch.bool)  # see ClippedSTE: inclusive
    torch.testing.assert_close(x.grad[inside], data['train.grad.x'][inside], rtol=1e-12, atol=1e-12)
