"""The packed file: it comes back bit for bit, and nothing else comes back at all."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from torch import nn

import bnn_plugins.deploy.file as packed_file
from bnn_plugins import load_packed_, pack_, save_packed
from bnn_plugins.deploy import PackedLayer, fused_parts, read_packed
from bnn_plugins.deploy.file import serialize
from bnn_plugins.layers import (
    AdaptiveConv2d,
    BinaryAttention,
    BinaryConv2d,
    BinaryConvLSTM,
    BinaryLayer,
    BinaryLinear,
    BinaryLSTM,
)

from .nets import METHODS, Net, net, same

CONFIG = {'model': {'type': 'Net', 'size': (3, [4.5, None, True]), 'text': 'Grüße'}, 'ids': {0: 'a', (1, 2): {'()': 1}}}
META = {'dataset_meta': {'classes': ['cat', 'dog'], 'palette': [[1, 2, 3]]}}


@pytest.fixture(scope='module')
def small():
    """``(packed model, its bytes, the length of the header)`` of a model small enough to alter everywhere."""
    torch.manual_seed(0)
    model = nn.Sequential(BinaryConv2d(5, 4, 3, method='reactnet'), nn.BatchNorm2d(4), nn.Flatten(),
                          BinaryLinear(36, 3, method='bireal'))
    data = serialize(pack_(model), CONFIG, META)
    return model, data, 8 + int.from_bytes(data[:8], 'little')


def write(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize('method', METHODS, ids=str)
def test_round_trip(method, tmp_path):
    """Into a latent and into a packed model, both with other weights before."""
    model = pack_(net(method=method))
    x = torch.randn(2, 3, 14, 11)
    path = save_packed(model, tmp_path / 'new' / 'folder' / 'net.safetensors', CONFIG, META)
    expected = model(x)
    for other in (net(1, method=method), pack_(net(2, method=method)), net(3, method=method).train()):
        assert not same(other.eval()(x), expected)
        loaded = load_packed_(other, path)
        assert loaded is other
        assert not any(module.training for module in loaded.modules())
        assert same(loaded(x), expected)
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key
            assert loaded.state_dict()[key].dtype == value.dtype


def all_kinds():
    """One layer of each kind that is packed, and float ones that know of training."""
    return nn.ModuleDict(dict(
        conv=BinaryConv2d(6, 6, 3, pre_norm=True), adaptive=AdaptiveConv2d(6, 6, 3), linear=BinaryLinear(6, 6),
        attention=BinaryAttention(6), lstm=BinaryLSTM(6, 6), maps=BinaryConvLSTM(6, 6), norm=nn.BatchNorm2d(6),
        dropout=nn.Dropout(0.5)))


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('training', [False, True])
def test_a_loaded_model_is_in_evaluation_mode(packed, training, tmp_path):
    """Whatever it was in before, and also what is not binary: dropout would go on, and norms would learn."""
    model = pack_(all_kinds().train(training))
    assert not any(module.training for module in model.modules())
    path = save_packed(model, tmp_path / 'all.safetensors')
    loaded = load_packed_((pack_(all_kinds()) if packed else all_kinds()).train(training), path)
    assert [name for name, module in loaded.named_modules() if module.training] == []


def test_content(tmp_path):
    model = pack_(net())
    file = read_packed(save_packed(model, tmp_path / 'net.safetensors', CONFIG, META))
    assert (file.config, file.meta) == (CONFIG, META)
    layers = {name: module.signature() for name, module in model.named_modules() if isinstance(module, PackedLayer)}
    assert file.layers == layers
    assert file.tensors.keys() == model.state_dict().keys()
    empty = read_packed(save_packed(model, str(tmp_path / 'text.safetensors')))
    assert (empty.config, empty.meta) == ({}, {})


def test_the_same_model_is_the_same_file(small):
    model, data, _ = small
    assert {serialize(model, CONFIG, META) for _ in range(8)} == {data}, 'safetensors orders the metadata by chance'


def test_it_is_a_plain_safetensors_file(tmp_path):
    """Anyone can look into it; names, dtypes and shapes are those of the state dict."""
    model = pack_(net())
    tensors = load_file(save_packed(model, tmp_path / 'net.safetensors'))
    assert tensors.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert (tensors[key].dtype, tensors[key].shape) == (value.dtype, value.shape)


def test_a_fresh_process(tmp_path):
    """Only the file and a builder go over; the outputs are equal to the last bit."""
    model = net(method='recu')
    x = torch.randn(2, 3, 14, 11)
    expected = model(x)
    save_packed(pack_(model), tmp_path / 'net.safetensors')
    save_file({'x': x}, tmp_path / 'x.safetensors')
    script = '''
import sys, torch, bnn_kernels, bnn_plugins
from safetensors.torch import load_file, save_file
from test_deploy.nets import Net
from bnn_plugins import load_packed_
model = load_packed_(Net(method='recu'), 'net.safetensors')
save_file({str(i): y for i, y in enumerate(model(load_file('x.safetensors')['x']))}, 'y.safetensors')
assert 'mmdet' not in sys.modules
assert all(module.__file__.startswith(sys.argv[1]) for module in (bnn_kernels, bnn_plugins)), 'not of this checkout'
'''
    tests = Path(__file__).parents[1]
    subprocess.run([sys.executable, '-c', script, str(tests.parent)], cwd=tmp_path, check=True,
                   env={'PYTHONPATH': f'{tests}{os.pathsep}{os.environ["PYTHONPATH"]}', 'OMP_NUM_THREADS': '1', 'PATH': ''})
    out = load_file(tmp_path / 'y.safetensors')
    assert same([out[str(i)] for i in range(len(out))], expected)


def test_folded_norms_and_half_precision(tmp_path):
    fuse_conv_bn = pytest.importorskip('mmcv.cnn').fuse_conv_bn
    for convert in (fuse_conv_bn, nn.Module.bfloat16, nn.Module.double):
        model, fresh = convert(net()), convert(net(1))
        x = torch.randn(1, 3, 14, 11).to(next(model.parameters()).dtype)
        expected = model(x)
        path = save_packed(pack_(model), tmp_path / 'net.safetensors')
        assert same(load_packed_(fresh, path)(x), expected)


@pytest.mark.parametrize('pack', [True, False])
def test_folded_factor_arrives_in_a_fresh_layer(pack, tmp_path):
    def build():
        return nn.Sequential(BinaryConv2d(8, 4, 3, method='bireal')).eval()

    model, fresh = build(), build()
    model[0].fold_(torch.tensor([-1.0, 0.0, 2.0, -0.3]))
    x = torch.randn(1, 8, 5, 5)
    expected = model(x)
    path = save_packed(pack_(model), tmp_path / 'net.safetensors')
    assert torch.equal(load_packed_(pack_(fresh) if pack else fresh, path)(x), expected)


def test_fused_file_for_an_unfused_model(tmp_path):
    fuse_conv_bn = pytest.importorskip('mmcv.cnn').fuse_conv_bn
    path = save_packed(pack_(fuse_conv_bn(net())), tmp_path / 'net.safetensors')
    with pytest.raises(ValueError, match='is for another config'):
        load_packed_(net(), path)


def test_tied_tensors(tmp_path):
    """Layers that share their bits, and parameters that share memory, which safetensors alone refuses."""
    def build():
        model = nn.Sequential(BinaryLinear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)).append(BinaryLinear(8, 8)).eval()
        model.append(model[0])
        model[2].weight = model[1].weight
        return model

    model, x = build(), torch.randn(3, 8)
    expected = model(x)
    path = save_packed(pack_(model), tmp_path / 'net.safetensors')
    assert torch.equal(load_packed_(build(), path)(x), expected)
    written = set(load_file(path))
    assert not {name for name in written if name.startswith('4.') or name == '2.weight'}, 'each tensor is written once'
    assert {'1.weight', '2.bias', '3.weight_bits'} <= written, 'equal values are no twins'


def test_a_twin_of_nothing(small, tmp_path):
    _, data, header = small
    content = json.loads(data[8:header])
    content['__metadata__']['twins'] = json.dumps({'9.weight': 'nothing'})
    metadata = content['__metadata__']
    path = write(tmp_path / 'net.safetensors', data)
    metadata['checksum'] = packed_file.checksum(load_file(path), metadata)
    write(path, save(load_file(path), metadata))
    with pytest.raises(ValueError, match="cut short or damaged \\('nothing'\\)"):
        read_packed(path)


def test_empty_and_scalar_tensors(tmp_path):
    def build(value):
        model = nn.Sequential(BinaryLinear(8, 8))
        model.register_buffer('empty', torch.zeros(0, 3))
        model.register_buffer('scalar', torch.tensor(value))
        model.register_buffer('flags', torch.tensor([value > 0, True]))
        model.register_buffer('transposed', torch.arange(6.0).view(2, 3).t() * value)
        return model

    loaded = load_packed_(build(2.0), save_packed(pack_(build(7.0)), tmp_path / 'net.safetensors'))
    assert (loaded.scalar.item(), loaded.empty.shape) == (7, (0, 3))
    assert torch.equal(loaded.transposed, build(7.0).transposed)


def test_unpacked_models_are_refused(tmp_path):
    for model in (net(), nn.Linear(3, 3)):
        with pytest.raises(ValueError, match=f'this {type(model).__name__} has no packed layer: call pack_ first'):
            save_packed(model, tmp_path / 'net.safetensors')
    assert not list(tmp_path.iterdir())


class TestDamage:
    """Every altered file raises ``ValueError``."""

    def refuse(self, path, data, match='cut short|damaged|altered|not a packed model|update bnn_plugins|pack the checkpoint'):
        write(path, data)
        with pytest.raises(ValueError, match=match) as error:
            read_packed(path)
        assert str(path) in str(error.value)

    def test_the_original_is_fine(self, small, tmp_path):
        model, data, _ = small
        file = read_packed(write(tmp_path / 'a.safetensors', data))
        assert all(torch.equal(file.tensors[key], value) for key, value in model.state_dict().items())

    def test_cut_short_anywhere(self, small, tmp_path):
        _, data, header = small
        lengths = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(data) - 4, len(data) - 1, *range(0, len(data), 23)}
        for length in lengths:
            self.refuse(tmp_path / 'a.safetensors', data[:length], 'is cut short or damaged')

    def test_longer(self, small, tmp_path):
        for tail in (b'\0', b'\0' * 1000, small[1]):
            self.refuse(tmp_path / 'a.safetensors', small[1] + tail, 'is cut short or damaged')

    @pytest.mark.parametrize('mask', [0x01, 0x20, 0x80, 0xff], ids=hex)
    def test_one_byte_of_the_header(self, mask, small, tmp_path):
        """Its length, names, dtypes, shapes, offsets, versions, checksum, config: every second byte."""
        _, data, header = small
        positions = [*range(8), *range(8 + mask % 2, len(data[:header].rstrip()), 2)]
        assert len(positions) > 500
        for position in positions:
            self.refuse(tmp_path / 'a.safetensors', data[:position] + bytes([data[position] ^ mask]) + data[position + 1:])

    @pytest.mark.parametrize('mask', [0x01, 0x80, 0xff], ids=hex)
    def test_one_byte_of_the_tensors(self, mask, small, tmp_path):
        _, data, header = small
        positions = [*range(header, len(data), 5), len(data) - 1]
        assert len(positions) > 60
        for position in positions:
            self.refuse(tmp_path / 'a.safetensors', data[:position] + bytes([data[position] ^ mask]) + data[position + 1:],
                        'was altered after it was written')

    def test_digits_of_the_header(self, small, tmp_path):
        """Every digit one up: shapes, offsets and versions that stay well-formed JSON."""
        _, data, header = small
        digits = [i for i in range(8, header) if chr(data[i]).isdigit()]
        assert len(digits) > 100
        for position in digits:
            digit = str((int(chr(data[position])) + 1) % 10).encode()
            self.refuse(tmp_path / 'a.safetensors', data[:position] + digit + data[position + 1:])

    def test_well_formed_changes(self, small, tmp_path):
        """Another dtype of the same size, swapped names, another config: only the checksum can see these."""
        _, data, _ = small
        for old, new in ((b'"I32"', b'"F32"'), (b'"I32"', b'"U32"'), (b'0.bias', b'0.bait'), (b'cat', b'cow'),
                         (b'Net', b'Nut'), (b'stride (1, 1)', b'stride (2, 1)'), (b'pad_value 0', b'pad_value 1'),
                         (b'[4]', b'[2]')):
            assert old in data, old
            self.refuse(tmp_path / 'a.safetensors', data.replace(old, new, 1))

    @settings(max_examples=150)
    @given(data=st.data())
    def test_any_bytes(self, data, small, tmp_path_factory):
        """A stretch overwritten, removed or inserted: refused, or nothing but white space of the header has changed."""
        _, original, _ = small
        start = data.draw(st.integers(0, len(original) - 1))
        removed = data.draw(st.integers(0, 20))
        altered = original[:start] + data.draw(st.binary(max_size=20)) + original[start + removed:]
        path = write(tmp_path_factory.getbasetemp() / 'any.safetensors', altered)
        try:
            file = read_packed(path)
        except ValueError:
            return
        expected = read_packed(write(path, original))
        for field in ('layers', 'versions', 'config', 'meta'):
            assert getattr(file, field) == getattr(expected, field)
        assert file.tensors.keys() == expected.tensors.keys()
        assert all(torch.equal(file.tensors[key], value) for key, value in expected.tensors.items())

    @settings(max_examples=50)
    @given(data=st.binary(max_size=200))
    def test_random_files(self, data, tmp_path_factory):
        path = write(tmp_path_factory.getbasetemp() / 'random.safetensors', data)
        with pytest.raises(ValueError, match=r'cut short or damaged|not a packed model'):
            read_packed(path)

    def test_huge_header_length(self, tmp_path):
        for length in (2**63, 2**64 - 1, 10**8):
            self.refuse(tmp_path / 'a.safetensors', length.to_bytes(8, 'little') + b'{}', 'cut short or damaged')

    def test_no_file(self, tmp_path):
        for path in (tmp_path / 'none.safetensors', str(tmp_path)):
            with pytest.raises(FileNotFoundError, match='does not exist'):
                read_packed(path)

    def test_other_safetensors(self, tmp_path):
        for metadata in (None, {}, {'format': 'pt'}, {'format': 'bnn_plugins.packed2'}):
            save_file({'a': torch.ones(2)}, tmp_path / 'a.safetensors', metadata)
            with pytest.raises(ValueError, match=r'is a safetensors file, but not a packed model of bnn_plugins'):
                read_packed(tmp_path / 'a.safetensors')

    def test_a_failed_load_says_which_file(self, small, tmp_path):
        path = write(tmp_path / 'cut.safetensors', small[1][:-1])
        with pytest.raises(ValueError, match=r'cut\.safetensors is cut short'):
            load_packed_(small[0], path)


class TestVersions:
    @pytest.mark.parametrize('name', ['schema_version', 'layout_version'])
    @pytest.mark.parametrize(('change', 'advice'), [(1, 'update bnn_plugins'), (-1, 'pack the checkpoint again')])
    def test_other_versions(self, name, change, advice, small, tmp_path, monkeypatch):
        """A well-formed file of another version, with a right checksum: what a later release will write."""
        constant = name.upper()
        known = getattr(packed_file, constant)
        with monkeypatch.context() as patch:
            patch.setattr(packed_file, constant, known + change)
            path = save_packed(small[0], tmp_path / 'a.safetensors')
            read_packed(path)
        with pytest.raises(ValueError, match=f'has {name} {known + change}, this version .* reads {known}: {advice}'):
            read_packed(path)

    @pytest.mark.parametrize('found', ['', 'x', '1.0', '-1', '²'])
    def test_versions_that_are_no_numbers(self, found, small, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(packed_file, 'SCHEMA_VERSION', found)
            path = save_packed(small[0], tmp_path / 'a.safetensors')
        with pytest.raises(ValueError, match='schema_version'):
            read_packed(path)

    def test_versions_are_checked_before_the_content(self, small, tmp_path):
        """A newer file may have another checksum: the sentence must be about its version."""
        data = small[1].replace(b'"schema_version":"1"', b'"schema_version":"2"')
        assert data != small[1]
        with pytest.raises(ValueError, match='update bnn_plugins'):
            read_packed(write(tmp_path / 'a.safetensors', data))


class TestOtherConfig:
    """A file for a model that is not this one."""

    @pytest.fixture
    def path(self, tmp_path):
        return save_packed(pack_(net()), tmp_path / 'net.safetensors')

    @pytest.mark.parametrize(('change', 'message'), [
        (dict(method='bireal'), r"layer 'body.0.conv' is .*method bireal.* in the model, but .*method reactnet.* in the file"),
        (dict(pad_value=1), r'pad_value 1.* in the model, but .*pad_value 0'),
        (dict(width=8), r'conv 8->8 .* in the model, but .*conv 16->16'),
        (dict(extra=True), r"layer 'extra' is .* in the model, but .not binary. in the file"),
    ], ids=str)
    def test_other_binary_layers(self, path, change, message):
        for model in (Net(**change), pack_(Net(**change))):
            before = [type(module) for module in model.modules()]
            with pytest.raises(ValueError, match=f'net.safetensors is for another config: .*{message}'):
                load_packed_(model, path)
            assert [type(module) for module in model.modules()] == before, 'the model is left alone'

    def test_missing_binary_layer(self, path):
        model = Net()
        del model.neck
        with pytest.raises(ValueError, match=r"the layer 'neck' is .not binary. in the model, but .linear 32->16"):
            load_packed_(model, path)

    @pytest.mark.parametrize(('name', 'make', 'message'), [
        ('neck', lambda: nn.Linear(32, 16), "'neck' is .not binary. in the model"),
        ('predict', lambda: BinaryConv2d(32, 5, 1), "'predict' is .*conv 32->5.* but .not binary. in the file"),
        ('predict', lambda: nn.Conv2d(32, 6, 1), r'size mismatch for predict'),
        ('predict', lambda: nn.Conv2d(32, 5, 1, bias=False), "1 tensors unknown to the model, such as 'predict.bias'"),
        ('classify', lambda: nn.Identity(), "2 tensors unknown to the model, such as 'classify"),
        ('aux', lambda: nn.Linear(2, 2), "2 tensors missing in the file, such as 'aux"),
    ])
    def test_other_layers(self, path, name, make, message):
        model = Net()
        setattr(model, name, make())
        with pytest.raises(ValueError, match=rf'(?s)is for another config: .*{message}'):
            load_packed_(model, path)

    def test_float_model(self, path):
        with pytest.raises(ValueError, match=r"the layer 'body.0.conv' is .not binary. in the model, but .conv 16->16"):
            load_packed_(nn.Sequential(nn.Conv2d(3, 3, 3)), path)


def sealed_with(path, **entries):
    """The bytes of a packed file with other entries in its metadata, under a right checksum; ``None`` for without."""
    tensors, metadata = packed_file.read_checked(path)
    return packed_file.sealed(tensors, {key: value for key, value in (metadata | entries).items() if value is not None})


def forbidden(*args, **kwargs):
    raise AssertionError('a packed file is read without pickle')


@pytest.fixture
def no_pickle(monkeypatch):
    for module, name in ((torch, 'load'), (pickle, 'load'), (pickle, 'loads'), (pickle, 'Unpickler'), (pickle, '_Unpickler'),
                         (torch.serialization, 'load'), (torch.serialization, '_load')):
        monkeypatch.setattr(module, name, forbidden)
    for module, name in ((torch, 'save'), (pickle, 'dump'), (pickle, 'dumps'), (pickle, 'Pickler')):
        monkeypatch.setattr(module, name, forbidden)


class Bomb:
    def __reduce__(self):
        return forbidden, ()


class TestNoCode:
    def test_no_pickle_is_called(self, no_pickle, tmp_path):
        model = pack_(net())
        path = save_packed(model, tmp_path / 'net.safetensors', CONFIG, META)
        load_packed_(net(1), path)

    def test_no_pickle_in_mmengine(self, no_pickle, tmp_path):
        runner = pytest.importorskip('mmengine.runner')
        path = save_packed(pack_(net()), tmp_path / 'net.safetensors')
        runner.load_checkpoint(net(1), str(path), strict=True)

    def test_a_pickle_under_this_name_is_not_run(self, tmp_path):
        data = pickle.dumps(Bomb())
        for content in (data, data.ljust(400, b'\0')):
            with pytest.raises(ValueError, match='cut short or damaged'):
                read_packed(write(tmp_path / 'a.safetensors', content))
        with (tmp_path / 'b.safetensors').open('wb') as file:
            torch.save({'state_dict': Bomb()}, file)
        with pytest.raises(ValueError, match='cut short or damaged'):
            load_packed_(net(), tmp_path / 'b.safetensors')

    @pytest.mark.parametrize('text', ["raise SystemExit('run')", 'model = dict(size=(3, 4), a=[])', '[1]', '{"()": [1]}', '{'])
    def test_a_config_that_is_no_data_is_not_read(self, text, tmp_path):
        made = save_packed(pack_(net()), tmp_path / 'a.safetensors')
        path = write(tmp_path / 'old.safetensors', sealed_with(made, config=text))
        with pytest.warns(UserWarning, match=r'the config in .*old\.safetensors is not data and was not read: .* bnn convert'):
            assert read_packed(path).config == {}

    def test_conversion(self, tmp_path):
        """The text of an earlier version is shown, and parsed; what would run in it is refused. Mutation: eval(text)."""
        path, out, shown = tmp_path / 'old.safetensors', tmp_path / 'new.safetensors', []
        model = pack_(net())
        text = "model = dict(type='Net', size=(1, -2.5), names=['a'], more={'b': None, 3: inf})\nwork_dir = 'x'\n"
        write(path, sealed_with(save_packed(model, tmp_path / 'a.safetensors', meta=META), config=text))
        file = read_packed(packed_file.convert_packed(path, out, shown.append))
        assert shown == [text]
        model_config = {'type': 'Net', 'size': (1, -2.5), 'names': ['a'], 'more': {'b': None, 3: float('inf')}}
        assert file.config == {'model': model_config, 'work_dir': 'x'}
        assert file.meta == META
        assert all(torch.equal(file.tensors[key], value) for key, value in model.state_dict().items())
        assert read_packed(packed_file.convert_packed(out, tmp_path / 'again.safetensors', shown.append)).config == file.config
        for text, line in (('import os', 1), ("model = dict()\na = __import__('os').system('x')", 2),
                           ('a = [x for x in y]', 1), ('a = dict(**b)', 1), ('a = {**b}', 1), ('a, b = 1, 2', 1)):
            write(path, sealed_with(tmp_path / 'a.safetensors', config=text))
            with pytest.raises(ValueError, match=f'line {line} '):
                packed_file.convert_packed(path, tmp_path / 'refused.safetensors', shown.append)
        assert not (tmp_path / 'refused.safetensors').exists()

    @pytest.mark.parametrize(('value', 'sentence'), [
        (torch.ones(1), r'config\.model\.a\[1\] is a Tensor, and a packed file keeps plain values only'),
        (print, r'config\.model\.a\[1\] is a builtin_function_or_method'), ({1}, 'is a set')])
    def test_a_config_of_other_than_plain_values(self, value, sentence, small, tmp_path):
        with pytest.raises(ValueError, match=sentence):
            save_packed(small[0], tmp_path / 'a.safetensors', {'model': {'a': [1, value]}})


class TestMmengine:
    """``load_checkpoint`` and everything on top of it: ``Runner``, ``DetInferencer``, ``init_detector``."""

    @pytest.fixture(autouse=True)
    def load_checkpoint(self, monkeypatch):
        monkeypatch.setenv('BNN_PLUGINS_FUSE', '0')
        self.load = pytest.importorskip('mmengine.runner').load_checkpoint

    @pytest.mark.parametrize('strict', [True, False])
    def test_latent_layers_become_packed(self, strict, tmp_path):
        model, fresh = pack_(net()), net(1)
        x = torch.randn(2, 3, 14, 11)
        path = str(save_packed(model, tmp_path / 'net.safetensors', CONFIG, META))
        loaded = self.load(fresh, path, strict=strict)
        assert not any(isinstance(module, BinaryLayer) for module in fresh.modules())
        assert same(fresh.eval()(x), model(x))
        assert loaded['meta'] == META
        assert loaded['message_hub']['runtime_info']['cfg'].file.config == CONFIG

    def test_what_is_loaded_is_fused(self, tmp_path, monkeypatch):
        monkeypatch.setenv('BNN_PLUGINS_FUSE', '1')
        model, fresh = pack_(net()), net(1).train()
        path = str(save_packed(model, tmp_path / 'net.safetensors'))
        self.load(fresh, path)
        assert dict(fused_parts(fresh))
        assert all((fresh.training, fresh.stem[1].training)), 'as it was'
        x = torch.randn(2, 3, 14, 11)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(fresh.eval()(x), model(x), strict=True))
        with pytest.raises(ValueError, match=r"net.safetensors is for another config: the layer 'body.0.conv' is .not binary"):
            self.load(nn.Conv2d(3, 4, 1), path, strict=False)

    def test_into_a_packed_model(self, tmp_path):
        model, fresh = pack_(net()), pack_(net(1))
        x = torch.randn(2, 3, 14, 11)
        self.load(fresh, str(save_packed(model, tmp_path / 'net.safetensors')))
        assert same(fresh(x), model(x))

    def test_with_renamed_keys(self, tmp_path):
        """``revise_keys`` keeps the signatures where they belong."""
        inner = net()
        x = torch.randn(2, 3, 14, 11)
        expected = inner(x)
        path = str(save_packed(pack_(nn.ModuleDict({'backbone': inner})), tmp_path / 'net.safetensors'))
        fresh = net(1)
        self.load(fresh, path, revise_keys=[(r'^backbone\.', '')])
        assert same(fresh.eval()(x), expected)

    @pytest.mark.parametrize('load', ['mmengine', 'load_packed_'])
    def test_versions_of_modules(self, load, tmp_path):
        """mmdet's heads rename keys when they find no version, so a state without versions would not load into them."""
        found = {}

        class Versioned(nn.Linear):
            _version = 3

            def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
                found[prefix] = local_metadata.get('version')
                super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

        class Plain(Versioned):
            _version = 1

        def build():
            return nn.Sequential(BinaryLinear(8, 8), Versioned(8, 8), Plain(8, 8))

        path = save_packed(pack_(build()), tmp_path / 'net.safetensors')
        if load == 'mmengine':
            self.load(build(), str(path))
            self.load(build(), str(path), revise_keys=[])
        else:
            load_packed_(build(), path)
        assert found == {'1.': 3, '2.': 1}

    def test_damage(self, tmp_path):
        data = serialize(pack_(net()))
        path = write(tmp_path / 'net.safetensors', data[:-3])
        with pytest.raises(ValueError, match='cut short'):
            self.load(net(1), str(path))

    @pytest.mark.parametrize('change', [dict(method='bireal'), dict(pad_value=-1)], ids=str)
    def test_other_method(self, change, tmp_path):
        """Bits of the same shapes that would mean something else."""
        path = str(save_packed(pack_(net()), tmp_path / 'net.safetensors'))
        for model in (net(1, **change), pack_(net(1, **change))):
            with pytest.raises(ValueError, match=r"is for another config: the layer 'body.0.conv' is"):
                self.load(model, path)

    def test_binary_layer_that_the_file_does_not_have(self, tmp_path):
        """mmengine would only log the missing key, and the layer would run with random latents."""
        path = str(save_packed(pack_(net()), tmp_path / 'net.safetensors'))
        with pytest.raises(ValueError, match=r"config: the layer 'extra' is .* in the model, but .not binary. in the file"):
            self.load(net(1, extra=True), path)

    def test_binary_layer_that_is_float_in_the_file(self, tmp_path):
        """Its float weights fit the latents, and it would compute something else without a word."""
        model = net()
        model.neck = nn.Linear(32, 16)
        path = str(save_packed(pack_(model), tmp_path / 'net.safetensors'))
        with pytest.raises(ValueError, match=r"config: the layer 'neck' is .* in the model, but .not binary. in the file"):
            self.load(net(1), path)

    def test_float_checkpoints_still_load(self, tmp_path):
        model, fresh = net(), net(1)
        torch.save(model.state_dict(), tmp_path / 'latent.pth')
        self.load(fresh, str(tmp_path / 'latent.pth'), strict=True)
        x = torch.randn(1, 3, 14, 11)
        assert same(fresh(x), model(x))


def test_a_content_that_was_read_is_checked_as_a_file_is(tmp_path):
    model = net()
    x = torch.randn(2, 3, 14, 11)
    expected = model(x)
    file = read_packed(save_packed(pack_(model), tmp_path / 'net.safetensors'))
    assert same(load_packed_(net(1), file)(x), expected)
    with pytest.raises(ValueError, match=r'net\.safetensors is for another config: the layer'):
        load_packed_(net(1, method='bireal'), file)
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"weights of a packed model, but the layer 'body.0.conv' is latent"):
            net(1).load_state_dict(file.tensors, strict=strict)


def test_the_checksum_covers_everything(small):
    """Names, dtypes, shapes, data and each metadata entry, and not the order they come in."""
    model, *_ = small
    tensors = dict(model.state_dict())
    metadata = {'config': 'a', 'meta': '{}'}
    base = packed_file.checksum(tensors, metadata)
    assert packed_file.checksum(dict(reversed(tensors.items())), dict(reversed(metadata.items()))) == base
    assert packed_file.checksum(tensors, {**metadata, 'checksum': 'x'}) == base
    scale = tensors['3.weight_scale']
    for change in ({'3.weight_scale': scale.view(torch.int32)}, {'3.weight_scale': scale[None]},
                   {'3.weight_scale': scale.nextafter(scale + 1)}, {'more': scale}):
        assert packed_file.checksum({**tensors, **change}, metadata) != base
    for change in ({'config': 'b'}, {'more': ''}):
        assert packed_file.checksum(tensors, {**metadata, **change}) != base


@pytest.mark.parametrize('entries', [
    {'layers': None}, {'layers': '{'}, {'versions': None}, {'meta': None}, {'config': None}, {'layers': '[]'},
    {'layers': '{"0": 3}'}, {'versions': '{"0": "x"}'}, {'meta': 'null'}, {'twins': '[["a", "b"]]'}, {'twins': '{"a": ["b"]}'},
    {'meta': '[' * 100_000},
    {'meta': '{"a": {"{}": [[[], 1]]}}'}, {'meta': '{"a": {"{}": [[1]]}}'}, {'twins': '{"a": "' + 'b' * 5_000_000 + '"}'},
], ids=lambda entries: str(entries)[:40])
def test_crafted_metadata(entries, small, tmp_path):
    """A right checksum over a missing or broken entry is a bad file, not a crash, and one line says so."""
    path = write(tmp_path / 'a.safetensors', small[1])
    with pytest.raises(ValueError, match=r'a\.safetensors is cut short or damaged') as error:
        read_packed(write(path, sealed_with(path, **entries)))
    assert len(str(error.value)) < 500


def test_meta_must_be_json(small, tmp_path):
    with pytest.raises(TypeError, match='JSON'):
        save_packed(small[0], tmp_path / 'a.safetensors', meta={'a': torch.ones(1)})
    assert json.loads(json.dumps(META)) == META


@pytest.mark.skipif(sys.platform != 'linux', reason='reads what Linux says of mapped files')
def test_a_loaded_file_is_mapped(tmp_path):
    """One copy in memory for all processes of a machine, which a new file of that name leaves alone. Mutation: values copied
    into the model."""
    def build():
        return nn.Sequential(BinaryLinear(512, 512, method='xnor'), nn.BatchNorm1d(512))
    x = torch.randn(2, 512)
    packed = pack_(build())
    path = save_packed(packed, tmp_path / 'model.safetensors')
    model = load_packed_(build(), path)
    mapped = [[int(edge, 16) for edge in line.split()[0].split('-')]
              for line in Path('/proc/self/maps').read_text().splitlines() if line.endswith(str(path))]
    for name in ('0.weight_bits', '1.running_mean'):
        address = model.state_dict()[name].data_ptr()
        assert any(start <= address < end for start, end in mapped), name
    save_packed(pack_(build()), path)
    assert same(model(x), packed(x))
    assert not same(load_packed_(build(), path)(x), packed(x))


def test_a_second_name_that_only_training_gives(tmp_path):
    """As in DDQ of mmdet, whose decoder gets the branches of the head in its first training step.

    Mutation: second names are unknown to the model, as other tensors are."""
    def build():
        model = nn.Module()
        model.body, model.head = BinaryConv2d(8, 8, 3, method='xnor'), nn.Conv2d(8, 4, 1)
        return model
    trained = pack_(build())
    trained.decoder = trained.head
    path = save_packed(trained, tmp_path / 'net.safetensors')
    assert torch.equal(load_packed_(build(), path).head.weight, trained.head.weight)
    trained.decoder = nn.Conv2d(8, 4, 1)
    with pytest.raises(ValueError, match='is for another config: 2 tensors unknown to the model'):
        load_packed_(build(), save_packed(trained, tmp_path / 'other.safetensors'))
