"""Networks as their authors released them: whose parameters have which names, and which network of the project they are.

A rule is ``(names of the release, names of the project, what happens to the tensor)``. ``{norm}`` stands for the numbers of a
batch norm, ``{affine}`` for weight and bias, other words in braces for a number; the project's names may also use what
:meth:`Release.names` derives from these. An empty list drops the tensor. What may happen:

``same``: the shape is equal. ``reshape``: as many numbers. ``negate``: reshaped, times -1. ``tokens``: ``[1, H W, C]`` becomes
``[1, C, H, W]``, H = W. ``unit``: clamped to [0, 1], as the release does at each call. ``fiftieth``: times 0.02. ``repeat``: a
bias in front of a tile becomes one behind it. ``cold``: dropped, but refused at 1e-7 and more. A name with a question mark may
be missing from the project's network.
"""

from dataclasses import dataclass, field

Rule = tuple[str, list[str], str]


@dataclass(frozen=True)
class Release:
    """A released network.

    Attributes:
        backbone: of the project, as in a config.
        rules: the first that matches counts.
        head: arguments of :class:`.ClassifierHead` beside its widths.
        blocks: how many blocks each stage has, where the release counts them through.
        first: the number of its first block.
        stem: convolution and norm of a stem. Negative weights of the norm, and their filters, change their sign, so that the
            stem may pool before or behind it.
        kept: ends of names of the project that stay as the project builds them.
        source: repositories of the release.
    """

    backbone: dict
    rules: list[Rule]
    source: str
    head: dict = field(default_factory=dict)
    blocks: tuple[int, ...] = ()
    first: int = 1
    stem: tuple[str, str] | None = None
    kept: tuple[str, ...] = ()

    def names(self, found: dict[str, str]) -> dict[str, str | int]:
        """The words of a rule; ``block`` and ``layer`` (of ``i``), ``stage`` (of ``s``), ``half`` and ``unit`` (of ``j``)."""
        names: dict[str, str | int] = dict(found)
        if 'i' in found:
            places = [(stage, block) for stage, count in enumerate(self.blocks) for block in range(count)]
            index = int(found['i']) - self.first
            stage, block = places[index] if index in range(len(places)) else ('none', 'none')
            names['block'], names['layer'] = f'{stage}.{block}', f'layer{stage if stage == "none" else stage + 1}.{block}'
        if 's' in found:
            names['stage'] = int(found['s']) - 1
        if 'j' in found:
            names['half'], names['unit'] = int(found['j']) // 2, int(found['j']) % 2 + 1
        return names


def norm(theirs: str, ours: str) -> Rule:
    return f'{theirs}.{{norm}}', [f'{ours}.{{norm}}'], 'same'


def affine(theirs: str, ours: str) -> Rule:
    return f'{theirs}.{{affine}}', [f'{ours}.{{affine}}'], 'same'


def weight(theirs: str, ours: str) -> Rule:
    return f'{theirs}.weight', [f'{ours}.weight'], 'same'


def rprelu(first: str, slope: str, last: str, act: str) -> list[Rule]:
    """Liu's: the first shift is added, the project subtracts it."""
    return [(first, [f'{act}.gamma'], 'negate'), (slope, [f'{act}.slope'], 'reshape'), (last, [f'{act}.zeta'], 'reshape')]


MOBILE = (1, 2, 2, 6, 2)


def reactnet_a(latents: str, **backbone) -> Release:
    """``latents``: what the release calls its latent weights."""
    block, unit1, units = 'feature.{i}', 'backbone.stages.{block}.unit1', 'backbone.stages.{block}.unit2_'
    return Release(
        dict(type='bnn_plugins.BNNReActNet', **backbone), source='liuzechun/ReActNet and AdamBNN', blocks=MOBILE, rules=[
            weight('feature.0.conv1', 'backbone.stem.conv'), norm('feature.0.bn1', 'backbone.stem.norm'),
            (f'{block}.move11.bias', [f'{unit1}.conv.activation.shift'], 'reshape'),
            (f'{block}.binary_3x3.{latents}', [f'{unit1}.conv.weight'], 'reshape'),
            norm(f'{block}.bn1', f'{unit1}.norm'),
            *rprelu(f'{block}.move12.bias', f'{block}.prelu1.weight', f'{block}.move13.bias', f'{unit1}.act'),
            (f'{block}.move21.bias', [f'{units}0.conv.activation.shift', f'{units}1.conv.activation.shift?'], 'reshape'),
            (f'{block}.binary_pw.{latents}', [f'{units}0.conv.weight'], 'reshape'),
            (f'{block}.binary_pw_down1.{latents}', [f'{units}0.conv.weight'], 'reshape'),
            (f'{block}.binary_pw_down2.{latents}', [f'{units}1.conv.weight'], 'reshape'),
            norm(f'{block}.bn2', f'{units}0.norm'), norm(f'{block}.bn2_1', f'{units}0.norm'),
            norm(f'{block}.bn2_2', f'{units}1.norm'),
            *rprelu(f'{block}.move22.bias', f'{block}.prelu2.weight', f'{block}.move23.bias', 'backbone.stages.{block}.act'),
            affine('fc', 'head.fc')])


def resnet(depth: int, latents: str, method: str, source: str, rules: list[Rule]) -> Release:
    """The ImageNet ResNets of Liu's repositories: one binary convolution in each block."""
    block, ours = 'layer{s}.{j}', 'backbone.layer{s}.{half}'
    return Release(
        dict(type='bnn_plugins.BNNResNet', depth=depth, out_indices=(3,), method=method, stem_act=False, pool_last=True),
        source=source, stem=('backbone.conv1', 'backbone.bn1'), kept=('_binarizer.flips', '_binarizer.last'), rules=[
            weight('conv1', 'backbone.conv1'), norm('bn1', 'backbone.bn1'),
            (f'{block}.binary_conv.{latents}', [f'{ours}.conv{{unit}}.weight'], 'reshape'),
            norm(f'{block}.bn1', f'{ours}.bn{{unit}}'), *rules,
            weight(f'{block}.downsample.1', f'{ours}.downsample.1'), norm(f'{block}.downsample.2', f'{ours}.downsample.2'),
            affine('fc', 'head.fc')])


def bireal_50() -> Release:
    block, ours = 'layers.{i}.', 'backbone.{layer}.'
    units = [rule for unit in (1, 2, 3) for rule in (weight(f'{block}conv{unit}', f'{ours}conv{unit}'),
                                                     norm(f'{block}bn{unit}', f'{ours}bn{unit}'))]
    return Release(
        dict(type='bnn_plugins.BNNBiReal50', out_indices=(3,), pool_last=True), source='liuzechun/Bi-Real-net',
        blocks=(3, 4, 6, 3), first=0, stem=('backbone.conv1', 'backbone.bn1'), rules=[
            weight('conv1', 'backbone.conv1'), norm('bn1', 'backbone.bn1'), *units,
            (f'{block}down_conv1x1.weight', [f'{ours}narrow.weight?'], 'same'),  # never called in the first block
            weight(f'{block}downsample.1', f'{ours}downsample.1'), norm(f'{block}downsample.2', f'{ours}downsample.2'),
            affine('fc', 'head.fc')])


REACT_UNITS = [
    ('layer{s}.{j}.move0.bias', ['backbone.layer{s}.{half}.conv{unit}.activation.shift'], 'reshape'),
    *rprelu('layer{s}.{j}.move1.bias', 'layer{s}.{j}.prelu.weight', 'layer{s}.{j}.move2.bias',
            'backbone.layer{s}.{half}.act{unit}'),
]


def learned(theirs: str, ours: str, method: str) -> list[Rule]:
    """What a convolution of IR-Net, ReCU or RBNN learns. ReCU's tau clips latents, which changes no sign."""
    binarizer = f'{ours}.weight_binarizer'
    rules: list[Rule] = [weight(theirs, ours)]
    if method != 'irnet':
        rules.append((f'{theirs}.alpha', [f'{binarizer}.alpha'], 'reshape'))
    if method == 'recu':
        rules.append((f'{theirs}.tau', [], 'same'))
    if method == 'rbnn':
        rules += [(f'{theirs}.rotate', [f'{binarizer}.theta'], 'reshape'), (f'{theirs}.R1', [f'{binarizer}.left'], 'same'),
                  (f'{theirs}.R2', [f'{binarizer}.right'], 'same')]
    return rules


SOURCES = {'irnet': 'htqin/IR-Net', 'recu': 'z-hXu/ReCU', 'rbnn': 'lmbxmu/RBNN'}


def cifar_resnet(method: str, depth: int, shortcut: str, **backbone) -> Release:
    unit, ours = 'layer{s}.{k}.', 'backbone.stages.{stage}.{k}.'
    shortcuts = {'strided': [weight(f'{unit}shortcut.0', f'{ours}shortcut.conv')],
                 'binary': learned(f'{unit}shortcut.0', f'{ours}shortcut.conv', method)}.get(shortcut, [])
    if shortcuts:
        shortcuts = [*shortcuts, norm(f'{unit}shortcut.1', f'{ours}shortcut.norm')]
    return Release(
        dict(type='bnn_plugins.BNNCifarResNet', depth=depth, method=method, shortcut=shortcut, **backbone),
        source=SOURCES[method], head=dict(norm=True), rules=[
            weight('conv1', 'backbone.stem.conv'), norm('bn1', 'backbone.stem.norm'),
            *learned(f'{unit}conv{{u}}', f'{ours}unit{{u}}.conv', method),
            norm(f'{unit}bn{{u}}', f'{ours}unit{{u}}.norm'), *shortcuts, norm('bn2', 'head.norm'),
            affine('linear', 'head.fc')])


def vgg_small(method: str) -> Release:
    return Release(
        dict(type='bnn_plugins.BNNVGGSmall', method=method), source=SOURCES[method], head=dict(pool='flatten', pixels=16),
        blocks=(1, 2, 2), rules=[
            weight('conv0', 'backbone.stem.conv'), norm('bn0', 'backbone.stem.norm'),
            *learned('conv{i}', 'backbone.stages.{block}.conv', method), norm('bn{i}', 'backbone.stages.{block}.norm'),
            affine('fc', 'head.fc')])


def recu_imagenet() -> Release:
    unit, ours = 'layer{s}.{k}.', 'backbone.layer{s}.{k}.'
    return Release(
        dict(type='bnn_plugins.BNNResNet', depth=18, out_indices=(3,), method='recu', pool_last=True, avg_down=False),
        source=SOURCES['recu'], head=dict(norm=True), stem=('backbone.conv1', 'backbone.bn1'), rules=[
            weight('conv1', 'backbone.conv1'), norm('bn1', 'backbone.bn1'),
            *learned(f'{unit}conv{{u}}', f'{ours}conv{{u}}', 'recu'), norm(f'{unit}bn{{u}}', f'{ours}bn{{u}}'),
            weight(f'{unit}downsample.0', f'{ours}downsample.1'), norm(f'{unit}downsample.1', f'{ours}downsample.2'),
            norm('bn2', 'head.norm'), affine('fc', 'head.fc')])


def bnext(size: str, blocks: tuple[int, ...], expand: dict | None = None) -> Release:
    """ES-BNext tiles inside of its squeeze-and-excitation: the second convolution comes one place later."""
    stage, excite, bias = 'backbone.stages.{block}.', 3 if expand is None else 4, 'same' if expand is None else 'repeat'
    rules: list[Rule] = [
        weight('feature.0.conv1', 'backbone.stem.conv'), norm('feature.0.bn1', 'backbone.stem.norm'),
        ('feature.0.prelu.weight', [], 'same'),  # never called
        ('feature.{i}.{part}.binary_conv.temperature', [], 'cold'),
        ('feature.{i}.{part}.binary_activation.temperature', [], 'same'),
        ('feature.{i}.Attention.activation1.weight', [f'{stage}spatial.shortcut_act.weight?'], 'same'),
        ('feature.{i}.{part}.activation1.weight', [], 'same')]  # never called
    for theirs, ours in (('Attention', 'spatial'), ('FFN', 'pointwise.0'), ('FFN_1', 'pointwise.0'), ('FFN_2', 'pointwise.1')):
        theirs, ours = f'feature.{{i}}.{theirs}', stage + ours
        rules += [
            (f'{theirs}.move.bias', [f'{ours}.conv.activation.shift'], 'reshape'),
            weight(f'{theirs}.binary_conv', f'{ours}.conv'), norm(f'{theirs}.norm1', f'{ours}.norm1'),
            norm(f'{theirs}.norm2', f'{ours}.norm2'), weight(f'{theirs}.activation2', f'{ours}.act'),
            (f'{theirs}.scale', [f'{ours}.mix'], 'unit'),
            weight(f'{theirs}.se.se.1', f'{ours}.attention.squeeze'),
            (f'{theirs}.se.se.1.bias', [f'{ours}.attention.squeeze.bias'], bias),
            weight(f'{theirs}.se.se.{excite}', f'{ours}.attention.excite'),
            (f'{theirs}.se.se.{excite}.bias', [f'{ours}.attention.excite.bias'], bias)]
    return Release(dict(type='bnn_plugins.BNNBNext', size=size, **({} if expand is None else dict(expand=expand))),
                   source='hpi-xnor/BNext, imfinethanks/ESBNN', blocks=blocks,
                   rules=[*rules, weight('prelu', 'backbone.out_acts.0'), affine('fc', 'head.fc')])


def binaryvit() -> Release:
    layer, ours = 'vit.encoder.layer.{i}.', 'backbone.stages.{block}.'

    def shifts(theirs: str, act: str) -> list[Rule]:
        """The release subtracts the first shift, as the project does."""
        return [(f'{theirs}.move1', [f'{act}.gamma'], 'reshape'), (f'{theirs}.prelu.weight', [f'{act}.slope'], 'reshape'),
                (f'{theirs}.move2', [f'{act}.zeta'], 'reshape')]

    attention, own = f'{layer}attention.attention.', f'{ours}attention.'
    rules: list[Rule] = [
        ('vit.embeddings.position_embeddings', ['backbone.positions.0.table'], 'tokens'),
        affine('vit.embeddings.patch_embeddings.projection', 'backbone.patch_embed'),
        norm('vit.embeddings.norm', 'backbone.norm.norm'),
        norm(f'{layer}layernorm_before', f'{ours}norm1.norm'), norm(f'{layer}layernorm_after', f'{ours}norm2.norm'),
        (f'{attention}att_prob_clip', [f'{own}attention.probability.size'], 'reshape'),
        norm(f'{attention}norm_context', f'{own}norm.norm'), *shifts(f'{attention}rprelu_context', f'{own}act')]
    for name, letter, of_norm in (('query', 'q', 'q'), ('key', 'k', 'k'), ('value', 'v', 'v'), ('reduction', 'r', '_r')):
        rules += [weight(f'{attention}{name}', f'{own}{name}.linear'),
                  (f'{attention}move{letter}', [f'{own}{name}.linear.activation.shift'], 'reshape'),
                  norm(f'{attention}norm{of_norm}', f'{own}{name}.norm.norm'),
                  *shifts(f'{attention}rprelu{letter}', f'{own}{name}.act'),
                  (f'{attention}move{letter}2', [f'{own}attention.{name}.shift'], 'reshape')]
    for theirs, unit in ((f'{layer}attention.output', f'{own}out'), (f'{layer}intermediate', f'{ours}feed_forward.grow'),
                         (f'{layer}output', f'{ours}feed_forward.shrink')):
        rules += [weight(f'{theirs}.dense', f'{unit}.linear'), norm(f'{theirs}.norm', f'{unit}.norm.norm'),
                  (f'{theirs}.move', [f'{unit}.linear.activation.shift'], 'reshape'),
                  *shifts(f'{theirs}.rprelu', f'{unit}.act')]
    scales = {'attention.output.layerscale': 'scale1', 'output.layerscale': 'scale2', 'layerscale_h3': 'branches.scales.0',
              'layerscale_w3': 'branches.scales.1', 'layerscale_h5': 'branches.scales.2', 'layerscale_w5': 'branches.scales.3'}
    for theirs, scale in scales.items():
        rules += [(f'{layer}{theirs}.alpha', [f'{ours}{scale}.scale'], 'reshape'),
                  (f'{layer}{theirs}.move', [f'{ours}{scale}.shift'], 'reshape')]
    merge, own = 'vit.encoder.patch_embed{s}', 'backbone.merges.{stage}'
    rules += [norm(f'{merge}.norm0', f'{own}.norm1.norm'), norm(f'{merge}.norm', f'{own}.norm2.norm'),
              weight(f'{merge}.proj', f'{own}.conv'), (f'{merge}.move', [f'{own}.conv.activation.shift'], 'reshape'),
              (f'{merge}.position_embeddings', ['backbone.positions.{s}.table'], 'tokens'),
              *shifts(f'{merge}.rprelu', f'{own}.act')]
    return Release(dict(type='bnn_plugins.BNNViT'), source='Phuoc-Hoan-Le/BinaryViT', blocks=(3, 4, 8, 4), first=0,
                   rules=[*rules, norm('vit.layernorm', 'backbone.out_norms.0.norm'), affine('classifier', 'head.fc')])


# Of each source, what its authors publish.
RELEASES: dict[str, dict[str, Release]] = {
    'reactnet': {
        'ReActNet-A': reactnet_a('weights', method='reactnet'),
        'ReActNet-A, step 1': reactnet_a('weight', method=dict(type='reactnet', binarize_weights=False)),
        'ReActNet-18': resnet(18, 'weight', 'reactnet', 'liuzechun/ReActNet', REACT_UNITS),
    },
    'adambnn': {'ReActNet-A': reactnet_a('weight', method='adambnn')},
    'repbnn': {'Rep-ReActNet-A': reactnet_a('weight', method='adambnn', expand=dict(tau=2, style='rep'))},
    'bireal': {**{f'Bi-Real-{depth}': resnet(depth, 'weights', 'bireal', 'liuzechun/Bi-Real-net', []) for depth in (18, 34)},
               'Bi-Real-50': bireal_50()},
    'rebnn': {'ReBNN-18': resnet(18, 'weight', 'rebnn', 'SteveTsui/ReBNN', [
        *REACT_UNITS, ('layer{s}.{j}.binary_conv.scaling_factor',
                       ['backbone.layer{s}.{half}.conv{unit}.weight_binarizer.alpha'], 'fiftieth')])},
    'irnet': {
        'ResNet-20': cifar_resnet('irnet', 20, 'slice'),
        'ResNet-18': cifar_resnet('irnet', 18, 'strided', skips='single', stem_act=False),
        'VGG-small': vgg_small('irnet'),
    },
    'recu': {
        'ResNet-20': cifar_resnet('recu', 20, 'pad'),
        'ResNet-18': cifar_resnet('recu', 18, 'pad', skips='single', stem_act=False),
        'ResNet-18 for ImageNet': recu_imagenet(),
        'VGG-small': vgg_small('recu'),
    },
    'rbnn': {
        'ResNet-20 (Bi-Real form)': cifar_resnet('rbnn', 20, 'slice'),
        'ResNet-18': cifar_resnet('rbnn', 18, 'binary', skips='single', stem_act=False),
        'VGG-small': vgg_small('rbnn'),
    },
    'bnext': {'BNext-T': bnext('T', MOBILE), 'BNext-S': bnext('S', MOBILE), 'BNext-M': bnext('M', (1, 4, 4, 8, 4)),
              'BNext-L': bnext('L', (1, 4, 4, 16, 4))},
    'esbnn': {'ES-BNext-T': bnext('T', MOBILE, dict(tau=2))},
    'binaryvit': {'BinaryViT': binaryvit()},
}
