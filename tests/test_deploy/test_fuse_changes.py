"""Block fusion: what happens to a model after it was fused, and where fused models run."""

import copy
import os
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import bnn_kernels
from bnn_plugins import fuse_, pack_, unfuse_
from bnn_plugins.deploy import fused_parts, fused_steps

from .fuse_nets import flat, near, resnet, run
from .nets import same as equal


def fuse_and_return(model):
    fuse_(model)
    return model


class TestChanges:
    """What happens to a model after it was fused."""

    def setup_method(self):
        self.model, self.x = pack_(resnet()), torch.randn(1, 3, 64, 64)
        self.before = run(self.model, self.x)
        fuse_(self.model)
        run(self.model, self.x)

    def check(self, model=None, x=None):
        """The fused model computes what the same modules compute without fusing."""
        model, x = model or self.model, self.x if x is None else x
        assert any(True for _ in fused_parts(model))
        fused = run(model, x)
        fresh = run(unfuse_(copy.deepcopy(model)), x)
        assert near(fused, fresh)
        assert not near(fused, self.before), 'something has changed'

    @pytest.mark.parametrize('assign', [False, True])
    def test_load_state_dict(self, assign):
        other = pack_(resnet())
        self.model.load_state_dict(other.state_dict(), assign=assign)
        self.check()
        assert near(run(self.model, self.x), run(other, self.x))

    def test_a_parameter_is_assigned(self):
        with torch.no_grad():
            self.model.layer1[0].bn1.weight *= -1.5
        self.check()

    def test_in_place_and_fused_again(self):
        with torch.no_grad():
            self.model.layer1[0].bn1.weight.mul_(-1.5)
        fuse_(self.model)
        self.check()

    @pytest.mark.parametrize('name', ['conv1', 'layer1.0.bn1', 'layer2.0.downsample', 'layer3', 'layer4.1.conv2'])
    def test_a_module_is_assigned(self, name):
        other = pack_(resnet()).get_submodule(name)
        owner, _, attribute = name.rpartition('.')
        setattr(self.model.get_submodule(owner), attribute, other)
        self.check()

    def test_a_part_is_moved_or_loaded(self):
        """Not the whole model: its parts are told by themselves."""
        self.model.layer1.load_state_dict(pack_(resnet()).layer1.state_dict())
        self.check()
        self.model.layer2[0].double()
        with pytest.raises(RuntimeError, match='Double'):
            run(self.model, self.x)  # as the packed model says

    def test_moved_to_where_it_is(self):
        """Nothing is folded again."""
        step = next(iter(dict(fused_steps(self.model)).values()))
        step.prepare = None
        self.model.to('cpu').float()
        run(self.model, self.x)

    def test_constants_stay_where_they_are(self):
        """A captured CUDA graph reads them there."""
        scales = [step.scale for name, step in fused_steps(self.model) if name.startswith('layer1.0.conv')]
        assert len(scales) == 2
        before = [scale.clone() for scale in scales]
        state = self.model.state_dict()
        self.model.load_state_dict({name: -2 * value if name in ('layer1.0.bn1.weight', 'layer1.0.bn2.weight') else value
                                    for name, value in state.items()})
        run(self.model, self.x)
        assert all(torch.equal(scale, -2 * old) for scale, old in zip(scales, before, strict=True))

    def test_bits_in_place(self):
        self.model.layer4[1].conv2.weight_bits.bitwise_not_()
        self.model.layer2[1].conv2.weight_bits.bitwise_not_()
        fuse_(self.model)
        assert near(run(self.model, self.x), run(unfuse_(copy.deepcopy(self.model)), self.x))

    def test_a_replaced_parameter(self):
        norm = self.model.layer2[0].downsample[2]
        norm.weight = nn.Parameter(-norm.weight.detach())
        self.check()

    def test_a_factor_that_was_not_there(self):
        layer = self.model.layer1[1].conv1
        layer.folded_scale = torch.full((8,), -0.7)
        self.check()

    def test_a_copy_has_a_graph_of_its_own(self):
        other = copy.deepcopy(self.model)
        assert dict(fused_parts(other))[''].module is other
        with torch.no_grad():
            other.layer1[0].bn1.weight *= -1.5
        self.check(other)
        assert near(run(self.model, self.x), self.before)

    def test_pickle(self):
        other = pickle.loads(pickle.dumps(self.model))
        assert equal(run(other, self.x), run(self.model, self.x))
        assert dict(fused_parts(other))[''].module is other

    def test_half_precision(self):
        self.model.bfloat16()
        out = run(self.model, self.x.bfloat16())
        assert all(o.dtype == torch.bfloat16 and o.isfinite().all() for o in out)
        assert near(run(self.model.float(), self.x), run(unfuse_(copy.deepcopy(self.model)), self.x))

    def test_double_is_not_fused(self):
        self.model.double()
        out = run(self.model, self.x.double())
        assert equal(out, run(unfuse_(self.model), self.x.double()))
        assert out[0].dtype == torch.float64

    def test_training_mode_runs_the_modules(self):
        expected = run(unfuse_(copy.deepcopy(self.model)).train(), self.x)
        assert equal(run(self.model.train(), self.x), expected)

    def test_a_norm_in_training_mode_runs_the_modules(self):
        other = unfuse_(copy.deepcopy(self.model))
        self.model.layer1[0].bn1.train(), other.layer1[0].bn1.train()
        assert equal(run(self.model, self.x), run(other, self.x))

    def test_hooks_inside_run(self):
        seen = []
        handle = self.model.layer2[0].conv1.register_forward_hook(lambda *_: seen.append(1))
        assert equal(run(self.model, self.x), self.before), 'layer by layer'
        handle.remove()
        assert not equal(run(self.model, self.x), self.before)
        assert seen == [1, 1], 'run calls it twice'

    def test_hooks_of_the_model_run(self):
        seen = []
        self.model.register_forward_hook(lambda *_: seen.append(1))
        run(self.model, self.x)
        assert seen == [1, 1], 'run calls it twice'

    def test_fused_again(self):
        report = fuse_(self.model, exclude='layer1.*')
        assert report.rows['layer1.0.conv1'] == "not fused: excluded by 'layer1.*'"
        assert len(report.fused) == 12
        assert near(run(self.model, self.x), self.before)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.predict = pack_(resnet()).layer4[1], nn.Conv2d(64, 3, 1)

    def forward(self, maps):
        return self.predict(self.body(maps[-1]))


class TestContexts:
    def setup_method(self):
        self.model, self.x = pack_(resnet()), torch.randn(1, 3, 64, 64)
        fuse_(self.model)
        self.expected = run(self.model, self.x)

    def test_compile(self):
        assert equal(run(torch.compile(self.model, backend='eager', fullgraph=True), self.x), self.expected)

    def test_compiled_code_sees_new_parameters(self):
        compiled = torch.compile(self.model, backend='eager', fullgraph=True)
        run(compiled, self.x)
        with torch.no_grad():
            self.model.layer1[0].bn1.weight *= -1.5
        fresh = run(self.model, self.x)
        assert not near(fresh, self.expected)
        assert equal(run(compiled, self.x), fresh)

    def test_export(self):
        with torch.no_grad():  # else the graph is inside of a node of its own
            program = torch.export.export(self.model, (self.x,))
        assert equal(run(program.module(), self.x), self.expected)
        assert any('binary_block2d' in str(node.target) for node in program.graph.nodes)

    def test_inference_mode(self):
        with torch.inference_mode():
            assert equal(flat(self.model(self.x)), self.expected)
            copied = copy.deepcopy(self.model)
            assert equal(flat(copied(self.x)), self.expected)
        assert equal(run(copied, self.x), self.expected)

    def test_autocast(self):
        with torch.autocast('cpu', torch.bfloat16):
            out = run(self.model, self.x)
        assert all(torch.nn.functional.cosine_similarity(o.flatten(), e.flatten(), 0) > 0.6
                   for o, e in zip(out[:2], self.expected[:2], strict=True))

    def test_a_hook_that_changes_a_stream(self):
        """The next step writes to it: in another dtype, too, but not in another memory format."""
        step = dict(fused_steps(self.model))['layer2.0.downsample.0']
        hook = step.register_forward_hook(lambda _, __, out: out.half())
        out = run(self.model, self.x)
        assert [o.dtype for o in out[:2]] == [torch.float32, torch.float16]
        assert torch.nn.functional.cosine_similarity(out[1].float().flatten(), self.expected[1].flatten(), 0) > 0.99
        hook.remove()
        step.register_forward_hook(lambda _, __, out: out.contiguous())
        with pytest.raises(ValueError, match='channels-last memory'):
            run(self.model, self.x)

    def test_another_backend(self):
        with bnn_kernels.set_backend('reference'):
            out = run(self.model, self.x)
            assert bnn_kernels.last_backend('binary_block2d') == 'reference'
        assert near(out, self.expected)
        run(self.model, self.x)
        assert bnn_kernels.last_backend('binary_block2d') != 'reference'

    def test_another_dtype_than_the_model(self):
        """A stream in half precision: the downsample keeps it, the block behind it works in place."""
        model = fuse_and_return(pack_(resnet().layer2))
        x = torch.randn(1, model[0].conv1.in_channels, 8, 8).to(memory_format=torch.channels_last)
        out = run(model, x.half())  # twice
        assert out[0].dtype == torch.float16
        assert torch.nn.functional.cosine_similarity(out[0].float().flatten(), run(model, x)[0].flatten(), 0) > 0.99

    def test_bad_input_is_one_sentence(self):
        layer = fuse_and_return(pack_(resnet().layer1))
        with pytest.raises(TypeError) as error:
            run(layer, torch.zeros(1, layer[0].conv1.in_channels, 4, 4, dtype=torch.int64))
        assert str(error.value).endswith('got torch.int64: convert it with x.float().')

    def test_gradients(self):
        """A fused program has none: where they are wanted, the modules run, and say so once."""
        with pytest.warns(UserWarning, match='is called where gradients are wanted, .* it runs unfused'):
            out = self.model(self.x)
        assert equal([o.detach() for o in out], run(unfuse_(copy.deepcopy(self.model)), self.x))
        sum(o.sum() for o in out).backward()
        assert self.model.layer4[1].bn2.weight.grad.abs().sum() > 0
        self.model.requires_grad_(False)
        out = self.model(self.x)
        assert not any(o.requires_grad for o in out)
        assert equal(out, self.expected), 'fused'
        out = self.model.layer4(torch.randn(1, 32, 4, 4, requires_grad=True))
        assert out.requires_grad

    def test_a_head_in_training(self):
        """Its part runs as it is, with gradients; what is in evaluation mode runs fused under no_grad."""
        model = nn.Sequential(self.model.requires_grad_(False), Head())
        fuse_(model)
        model[1].train()
        model(self.x).sum().backward()
        assert all(p.grad is not None for p in model[1].parameters() if p.requires_grad)

    def test_threads(self):
        results = {}
        threads = [threading.Thread(target=lambda i=i: results.update({i: run(self.model, self.x)})) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(equal(results[i], self.expected) for i in range(4))

    @pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')
    @pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork:DeprecationWarning')
    def test_forked_workers_of_a_data_loader(self):
        class Images:
            def __len__(self):
                return 4

            def __getitem__(_, i):
                return os.getpid(), equal(run(self.model, self.x), self.expected)

        found = list(DataLoader(Images(), batch_size=None, num_workers=2, multiprocessing_context='fork', timeout=60))
        assert all(same and process != os.getpid() for process, same in found)
        assert len(found) == 4
        assert equal(run(self.model, self.x), self.expected), 'the parent goes on'

    def test_a_bfloat16_stream(self):
        report = fuse_(self.model, stream_dtype=torch.bfloat16)
        assert len(report.fused) == 16
        streams = set()
        for name, step in fused_steps(self.model):
            if name.startswith('layer'):
                step.register_forward_hook(lambda _, __, out: streams.update(
                    o.dtype for o in (out if isinstance(out, tuple) else (out,)) if o.is_floating_point()))
        out = run(self.model, self.x)
        assert all(o.dtype == torch.float32 for o in out), 'the host sees its own dtype'
        assert streams == {torch.bfloat16}
        assert torch.equal(out[0], out[0].bfloat16().float()), 'which has been rounded'
        assert torch.nn.functional.cosine_similarity(out[0].flatten(), self.expected[0].flatten(), 0) > 0.9
