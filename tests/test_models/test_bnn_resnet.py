"""BNNResNet under the contract that mmdet's tests hold its own ResNet to, and the arithmetic of its blocks."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.backbones import ResNet
from mmengine.runner import load_checkpoint, save_checkpoint
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnn_plugins.binarize import list_methods
from bnn_plugins.layers import BinaryConv2d, RPReLU
from bnn_plugins.models import BNNBiReal50, BNNResNet
from bnn_plugins.models.backbones.bnn_resnet import BinaryBasicBlock, BinaryBlock, BinaryBottleneck
from bnn_plugins.models.layer_factory import LayerFactory

METHODS = [*list_methods(), dict(type='dorefa', w_bits=2, a_bits=2), dict(type='binaryconnect', stochastic=True)]


def small(depth=18, **kwargs):
    return BNNResNet(depth, **{'base_channels': 4, **kwargs})


def images(height=32, width=32, batch=2):
    return torch.randn(batch, 3, height, width)


def ceil_div(a, b):
    return -(-a // b)


class TestArguments:
    @pytest.mark.parametrize('depth', [20, 152, '18'])
    def test_depth(self, depth):
        with pytest.raises(KeyError, match='depth 18, 34, 50, 101'):
            small(depth)

    @pytest.mark.parametrize('kwargs', [dict(num_stages=0), dict(num_stages=5), dict(num_stages=3),
                                        dict(num_stages=3, strides=(1,), dilations=(1, 1, 1)), dict(strides=(1, 2, 2)),
                                        dict(dilations=(1, 1, 1, 1, 1))])
    def test_stages(self, kwargs):
        with pytest.raises(ValueError, match='1 to 4 stages with one stride and one dilation each'):
            small(**kwargs)

    @pytest.mark.parametrize('kwargs', [dict(out_indices=(4,)), dict(out_indices=(0, -1)), dict(frozen_stages=5),
                                        dict(frozen_stages=-2)])
    def test_indices(self, kwargs):
        with pytest.raises(ValueError, match='do not fit 4 stages'):
            small(**kwargs)

    @pytest.mark.parametrize('kwargs', [dict(out_indices=(2,)), dict(out_indices=(1,), frozen_stages=3)])
    def test_indices_of_fewer_stages(self, kwargs):
        with pytest.raises(ValueError, match='do not fit 2 stages'):
            small(num_stages=2, strides=(1, 2), dilations=(1, 1), **kwargs)

    def test_style(self):
        with pytest.raises(ValueError, match="BNNResNet has style 'pytorch' or 'caffe', but got 'tensorflow'"):
            small(style='tensorflow')
        with pytest.raises(ValueError, match="BNNBiReal50 has style 'pytorch', but got 'caffe'"):
            BNNBiReal50(style='caffe')

    def test_method_and_act(self):
        with pytest.raises(ValueError, match="did you mean 'reactnet'"):
            small(method='react')
        with pytest.raises(ValueError, match="did you mean 'rprelu'"):
            small(act='rpreluu')
        with pytest.raises(ValueError, match='pad_value must be -1, 0 or 1'):
            small(pad_value=2)

    def test_unknown_argument(self):
        with pytest.raises(TypeError, match='dcnv3'):
            small(dcnv3=dict(type='DCN'))


class TestShapes:
    @pytest.mark.parametrize('out_indices', [c for n in range(1, 5) for c in itertools.combinations(range(4), n)], ids=str)
    def test_out_indices(self, out_indices):
        model = small(out_indices=out_indices).eval()
        outs = model(images())
        assert isinstance(outs, tuple)
        assert [out.shape for out in outs] == [(2, 4 * 2**i, 8 // 2**i, 8 // 2**i) for i in out_indices]

    def test_outputs_do_not_depend_on_out_indices(self):
        model, x = small().eval(), images()
        every = model(x)
        model.out_indices = (1, 3)
        for index, out in zip((1, 3), model(x), strict=True):
            assert torch.equal(out, every[index])

    @pytest.mark.parametrize(('depth', 'expansion'), [(18, 1), (34, 1), (50, 4)])
    @pytest.mark.parametrize('size', [(32, 32), (33, 47), (65, 31), (1, 1), (75, 64)])
    def test_odd_sizes_round_up(self, depth, expansion, size):
        model = small(depth).eval()
        for index, out in enumerate(model(images(*size))):
            stride = 4 * 2**index
            assert out.shape == (2, 4 * 2**index * expansion, ceil_div(size[0], stride), ceil_div(size[1], stride))
        assert model.feat_dim == 32 * expansion

    @pytest.mark.parametrize('style', ['pytorch', 'caffe'])
    @pytest.mark.parametrize('depth', [18, 50, 101])
    def test_layers_are_those_of_mmdet(self, depth, style):
        """Mutation: the stride of caffe's bottlenecks stays at the 3x3."""
        theirs = ResNet(depth, style=style, base_channels=4)
        theirs = {name: m.stride for name, m in theirs.named_modules() if name.startswith('layer') and 'conv' in name}
        model = small(depth, style=style).eval()
        assert {name: m.stride for name, m in model.named_modules() if name in theirs} == theirs
        assert [out.shape for out in model(images(33, 47))] == [out.shape for out in small(depth).eval()(images(33, 47))]

    @pytest.mark.parametrize(('strides', 'dilations'), [((1, 2, 2, 1), (1, 1, 1, 2)), ((1, 2, 1, 1), (1, 1, 2, 4)),
                                                        ((2, 1, 3, 2), (1, 1, 1, 1))])
    @pytest.mark.parametrize('depth', [18, 50])
    def test_strides_and_dilations(self, depth, strides, dilations):
        model = small(depth, strides=strides, dilations=dilations).eval()
        stride = 4
        for index, out in enumerate(model(images(64, 56))):
            stride *= strides[index]
            assert out.shape[2:] == (ceil_div(64, stride), ceil_div(56, stride))
        for name, dilation in zip(model.res_layers, dilations, strict=True):
            dilated = [block.conv1 if depth == 18 else block.conv2 for block in getattr(model, name)]
            assert all(conv.dilation == (dilation, dilation) for conv in dilated)

    def test_fewer_stages(self):
        model = small(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
        assert not hasattr(model, 'layer3')
        assert len(model(images())) == 2

    @pytest.mark.parametrize('kwargs', [dict(in_channels=1), dict(in_channels=4)])
    def test_in_channels(self, kwargs):
        assert len(small(**kwargs).eval()(torch.randn(1, kwargs['in_channels'], 32, 32))) == 4

    def test_stem_channels(self):
        assert small().conv1.out_channels == 4
        model = small(stem_channels=6)
        assert (model.conv1.out_channels, model.bn1.num_features) == (6, 6)
        assert model.layer1[0].conv1.in_channels == 6
        assert model.layer1[0].downsample is not None, 'the width changes'

    def test_deep_stem(self):
        model = small(deep_stem=True, stem_channels=6).eval()
        convs = [m for m in model.stem if isinstance(m, nn.Conv2d)]
        assert [(c.in_channels, c.out_channels, c.stride[0]) for c in convs] == [(3, 3, 2), (3, 3, 1), (3, 6, 1)]
        assert len(model.stem) == 9
        assert [out.shape[-1] for out in model(images(33, 33))] == [9, 5, 3, 2]


class TestStructure:
    @pytest.mark.parametrize(('depth', 'block', 'blocks'), [
        (18, BinaryBasicBlock, [2, 2, 2, 2]), (34, BinaryBasicBlock, [3, 4, 6, 3]), (50, BinaryBottleneck, [3, 4, 6, 3])])
    def test_blocks(self, depth, block, blocks):
        model = small(depth)
        stages = [getattr(model, name) for name in model.res_layers]
        assert [len(stage) for stage in stages] == blocks
        assert all(type(b) is block for stage in stages for b in stage)
        kinds = [type(m) for m in model.modules() if isinstance(m, nn.Conv2d)]
        downsamples = 4 if depth == 50 else 3
        assert kinds.count(BinaryConv2d) == sum(blocks) * (3 if depth == 50 else 2)
        assert kinds.count(nn.Conv2d) == 1 + downsamples, 'only stem and shortcuts are real'

    def test_method_and_pad_value_reach_every_layer(self):
        model = small(method=dict(type='irnet', t_min=0.01), pad_value=-1)
        layers = [m for m in model.modules() if isinstance(m, BinaryConv2d)]
        assert {(str(m.method), m.pad_value) for m in layers} == {("{'type': 'irnet', 't_min': 0.01}", -1)}

    @pytest.mark.parametrize(('method', 'act', 'cls'), [('reactnet', 'auto', RPReLU), ('irnet', 'auto', nn.Hardtanh),
                                                        ('bireal', 'auto', nn.Identity), ('xnor', 'auto', nn.PReLU),
                                                        ('reactnet', 'identity', nn.Identity), ('bireal', 'rprelu', RPReLU)])
    def test_act(self, method, act, cls):
        model = small(method=method, act=act)
        assert type(model.act1) is cls
        assert {type(m) for n, m in model.named_modules() if n.split('.')[-1] in ('act1', 'act2')} == {cls}

    def test_group_norm(self):
        model = small(norm_cfg=dict(type='GN', num_groups=2))
        assert not [m for m in model.modules() if isinstance(m, _BatchNorm)]
        assert len(model(images())) == 4

    def test_norm_without_gradients(self):
        model = small(norm_cfg=dict(type='BN', requires_grad=False))
        assert not any(p.requires_grad for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters())


class TestPartsOfTheHost:
    def test_deformable_convolutions(self):
        """Mutation: in all stages."""
        model = small(50, dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
                      stage_with_dcn=(False, True, False, True))
        found = {name for name, module in model.named_modules() if type(module).__name__ == 'ModulatedDeformConv2dPack'}
        assert {name.rsplit('.', 1)[1] for name in found} == {'conv2'}
        assert {name.split('.')[0] for name in found} == {'layer2', 'layer4'}
        assert not any(isinstance(module, BinaryConv2d) and 'conv_offset' in name for name, module in model.named_modules())
        for out in model.train()(images()):
            out.sum().backward(retain_graph=True)
        assert all(module.weight.grad.any() for module in model.modules() if isinstance(module, BinaryConv2d))

    @pytest.mark.parametrize(('position', 'width'), [('after_conv2', 64), ('after_conv3', 256)])
    def test_plugins(self, position, width):
        cfg = dict(type='ContextBlock', ratio=1 / 4)
        model = small(50, plugins=[dict(cfg=cfg, stages=(True, False, False, False), position=position)], base_channels=64)
        blocks = [module for module in model.modules() if type(module).__name__ == 'ContextBlock']
        assert [block.in_channels for block in blocks] == [width] * len(model.layer1)
        plain = small(50, base_channels=64)
        plain.load_state_dict(model.state_dict(), strict=False)
        for block in blocks:  # it begins as nothing
            nn.init.constant_(block.channel_add_conv[-1].bias, 1.0)
        assert not torch.equal(model.eval()(images())[0], plain.eval()(images())[0])

    def test_zero_init_residual(self):
        for depth, last in ((18, 'bn2'), (50, 'bn3')):
            model = small(depth, zero_init_residual=True)
            model.init_weights()
            for name, module in model.named_modules():
                if isinstance(module, nn.BatchNorm2d) and name.startswith('layer') and 'downsample' not in name:
                    assert module.weight.any() == (not name.endswith(last)), name

    def test_eps_of_frozen_statistics(self):
        """Of NAS-FCOS, whose float norms are frozen. Mutation: torch refuses 0 in training."""
        cfg = dict(type='BN', requires_grad=False, eps=0)
        with pytest.warns(UserWarning, match='norm_cfg has eps=0, .*; its norms are trained, with the default eps'):
            model = BNNResNet(18, base_channels=8, norm_cfg=cfg)
        assert model.train()(torch.randn(2, 3, 64, 64))[-1].isfinite().all()
        assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}
        frozen = BNNResNet(18, base_channels=8, norm_cfg=cfg, norm_eval=True).train()
        assert frozen(torch.randn(2, 3, 64, 64))[-1].isfinite().all()
        assert {m.eps for m in frozen.modules() if isinstance(m, nn.BatchNorm2d)} == {0}

    @pytest.mark.parametrize('kwargs', [dict(depth=18, dcn=dict(type='DCN')), dict(depth=18, plugins=[dict(cfg={})]),
                                        dict(depth=50, dcn=dict(type='DCN'), expand=dict(tau=2))])
    def test_only_bottlenecks_have_them(self, kwargs):
        with pytest.raises(ValueError, match='dcn and plugins change the bottlenecks of depth 50 and 101, without expand'):
            small(**kwargs)


class TestArithmetic:
    """The blocks, once more from their parts."""

    @pytest.mark.parametrize('stride', [1, 2])
    @pytest.mark.parametrize('inplanes', [8, 4])
    def test_basic_block(self, stride, inplanes):
        common = dict(factory=LayerFactory('reactnet'), with_cp=False)
        block = BinaryBasicBlock(inplanes, 8, stride, 1, **common).eval()
        self.randomise(block)
        x = torch.randn(2, inplanes, 9, 7)
        around = self.downsample(block, x, stride)
        middle = block.act1(block.bn1(block.conv1(x)) + around)
        expected = block.act2(block.bn2(block.conv2(middle)) + middle)
        torch.testing.assert_close(block(x), expected)

    @pytest.mark.parametrize('stride', [1, 2])
    @pytest.mark.parametrize('inplanes', [8, 4])
    def test_bottleneck(self, stride, inplanes):
        common = dict(factory=LayerFactory('reactnet'), with_cp=False)
        block = BinaryBottleneck(inplanes, 2, stride, 1, **common).eval()
        self.randomise(block)
        x = torch.randn(2, inplanes, 9, 7)
        narrow = block.act1(block.bn1(block.conv1(x)))
        middle = block.bn2(block.conv2(narrow))
        middle = block.act2(middle + narrow if stride == 1 else middle)
        expected = block.act3(block.bn3(block.conv3(middle)) + self.downsample(block, x, stride))
        torch.testing.assert_close(block(x), expected)

    @staticmethod
    def randomise(block):
        for p in block.parameters():
            if p.ndim == 1:
                p.data.normal_()
        for m in block.modules():
            if isinstance(m, _BatchNorm):
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2)

    @staticmethod
    def downsample(block, x, stride):
        if block.downsample is None:
            assert stride == 1
            return x
        if stride == 2:
            x = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
        return block.downsample[2](F.conv2d(x, block.downsample[1].weight))

    def test_stem(self):
        model = small(method='reactnet').eval()
        model.bn1.weight.data.uniform_(0.5, 2)
        x = images()
        expected = model.act1(model.bn1(F.max_pool2d(F.conv2d(x, model.conv1.weight, None, 2, 3), 3, 2, 1)))
        model.layer1 = model.layer2 = model.layer3 = model.layer4 = nn.Identity()
        torch.testing.assert_close(model(x)[0], expected)

    def test_the_first_sign_is_balanced(self):
        """At the first step about half of the signs are +1: pooling behind the norm would make nearly all of them so."""
        model = small(method='bireal', base_channels=16)
        shares = []
        for block in model.layer1:
            block.conv1.activation.register_forward_hook(lambda m, args, out: shares.append((out > 0).float().mean().item()))
        model(images(64, 64))
        assert 0.3 < shares[0] < 0.7


class TestFreezing:
    @pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 3, 4])
    @pytest.mark.parametrize('deep_stem', [False, True])
    def test_frozen_stages(self, frozen_stages, deep_stem):
        model = small(frozen_stages=frozen_stages, deep_stem=deep_stem)
        for _ in range(2):
            model.eval()
            model.train()
        assert model.training
        stem = [model.stem] if deep_stem else [model.conv1, model.bn1, model.act1]
        parts = [stem, *([getattr(model, name)] for name in model.res_layers)]
        for stage, modules in enumerate(parts):
            frozen = frozen_stages >= stage
            for module in modules:
                layers = [m for m in module.modules() if not isinstance(m, nn.Sequential)]
                assert all(m.training != frozen for m in layers), stage
                assert all(p.requires_grad != frozen for p in module.parameters()), stage

    def test_frozen_parts_do_not_move(self):
        model = small(frozen_stages=2)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        sum(out.square().mean() for out in model.train()(images())).backward()
        optimizer.step()
        for name, value in model.state_dict().items():
            frozen = name.startswith(('conv1', 'bn1', 'act1', 'layer1', 'layer2'))
            if frozen:
                assert torch.equal(value, before[name]), name
        assert not torch.equal(model.layer3[0].conv1.weight, before['layer3.0.conv1.weight'])

    def test_norm_eval(self):
        model = small(norm_eval=True).train()
        assert not any(m.training for m in model.modules() if isinstance(m, _BatchNorm))
        assert all(m.training for m in model.modules() if isinstance(m, BinaryConv2d))
        model = small(norm_eval=False).train()
        assert all(m.training for m in model.modules())


class TestGradients:
    @pytest.mark.parametrize('method', METHODS, ids=str)
    @pytest.mark.parametrize('depth', [18, 50])
    def test_every_parameter_learns(self, method, depth):
        model = small(depth, method=method, base_channels=8)
        model.init_weights()
        outs = model.train()(images(64, 64))
        assert all(out.isfinite().all() for out in outs)
        sum((out * torch.randn_like(out)).sum() for out in outs).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
            # One factor in front of a norm changes nothing but its eps: its gradient may be rounded to zero.
            assert p.grad.any() or (name.endswith('gain.filter') and p.numel() == 1), name

    @pytest.mark.parametrize('depth', [18, 50])
    @pytest.mark.parametrize('method', ['reactnet', dict(type='binaryconnect', stochastic=True)], ids=str)
    def test_with_cp(self, depth, method):
        plain, checkpointed = small(depth, method=method), small(depth, method=method, with_cp=True)
        assert all(m.with_cp for m in checkpointed.modules() if isinstance(m, BinaryBlock))
        checkpointed.load_state_dict(plain.state_dict())
        x, results = images(), []
        for model in (plain, checkpointed):
            model.train()
            torch.manual_seed(1)
            outs = model(x)
            sum(out.square().mean() for out in outs).backward()
            results.append((outs, {name: p.grad for name, p in model.named_parameters()}))
        torch.testing.assert_close(*results)

    def test_backbone_learns_a_little(self):
        """Twenty-five steps of Adam on one batch: the loss halves."""
        model = small(method='reactnet', base_channels=8)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        x = images(batch=4)
        target = torch.randn(4, 64)
        losses = []
        for _ in range(25):
            loss = F.mse_loss(model(x)[-1].mean((2, 3)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]


class TestWeights:
    def test_init_weights(self):
        model = small(base_channels=16, deep_stem=True)
        model.init_weights()
        conv = model.layer4[1].conv2
        assert conv.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.05), 'Kaiming reaches the latents'
        assert conv.activation.shift.abs().max() == 0
        assert all((m.weight == 1).all() and (m.bias == 0).all() for m in model.modules() if isinstance(m, _BatchNorm))

    @pytest.mark.parametrize('avg_down', [True, False])
    @pytest.mark.parametrize(('depth', 'deep_stem'), [(18, False), (34, False), (50, False), (50, True)])
    @pytest.mark.parametrize('loader', ['torch', 'mmengine'])
    def test_float_resnet_loads_as_latents(self, depth, deep_stem, avg_down, loader, tmp_path):
        real = ResNet(depth, base_channels=4, avg_down=avg_down, deep_stem=deep_stem)
        model = small(depth, deep_stem=deep_stem)
        state = real.state_dict()
        if loader == 'torch':
            names = set(state)
            missing, unexpected = model.load_state_dict(state, strict=False)
            assert not unexpected
            assert set(state) == names, "the caller's dictionary stays"
            own = {f'{name}.{p}' for name, m in model.named_modules() for p, _ in m.named_parameters(recurse=False)
                   if isinstance(m, RPReLU) or name.endswith('.activation')}
            assert set(missing) == own
        else:
            torch.save(state, path := str(tmp_path / 'float.pth'))
            load_checkpoint(model, path, strict=False)
        for stage in range(4):
            old, new = getattr(real, f'layer{stage + 1}'), getattr(model, f'layer{stage + 1}')
            for before, after in zip(old, new, strict=True):
                assert torch.equal(before.conv2.weight, after.conv2.weight)
                assert torch.equal(before.bn2.weight, after.bn2.weight)
                if before.downsample is not None:
                    assert torch.equal(before.downsample[-2].weight, after.downsample[1].weight)
                    assert torch.equal(before.downsample[-1].running_mean, after.downsample[2].running_mean)
        first = (real.stem[0], model.stem[0]) if deep_stem else (real.conv1, model.conv1)
        assert torch.equal(first[0].weight, first[1].weight)

    def test_pretrained_init_cfg(self, tmp_path):
        real = ResNet(18, base_channels=4)
        path = str(tmp_path / 'detector.pth')
        torch.save(dict(state_dict={f'backbone.{k}': v for k, v in real.state_dict().items()}), path)
        model = small(init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.'))
        model.init_weights()
        assert torch.equal(model.layer3[0].conv1.weight, real.layer3[0].conv1.weight)
        assert torch.equal(model.layer3[0].downsample[1].weight, real.layer3[0].downsample[0].weight)

    @pytest.mark.parametrize('method', METHODS, ids=str)
    def test_checkpoint_round_trip(self, method, tmp_path):
        model = small(method=method)
        model(images())  # statistics of the norms
        path = str(tmp_path / 'model.pth')
        save_checkpoint(dict(state_dict=model.state_dict()), path)
        other = small(method=method)
        load_checkpoint(other, path, strict=True)
        x = images()
        for a, b in zip(model.eval()(x), other.eval()(x), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize('method', ['recu', 'binarynet', 'reactnet'])
def test_the_stem_in_training_is_that_of_evaluation(method):
    """Its act may follow the pooling there, which changes neither a value nor a gradient."""
    model = BNNResNet(18, method, pool_last=True, norm_eval=True, base_channels=8)
    norm = getattr(model, model.norm1_name)
    for parameter in (norm.weight, *model.act1.parameters()):
        nn.init.uniform_(parameter, -2, 2)
    x, found = torch.randn(2, 3, 37, 32), []
    for training in (True, False):
        model.train(training)
        leaf = y = x.clone().requires_grad_()
        for module in model._stem_modules():
            y = module(y)
        found.append((y, *torch.autograd.grad(y.square().sum(), [leaf, model.conv1.weight, norm.weight])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[0][0], found[1][0])
