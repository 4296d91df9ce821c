"""What ``pack_`` replaces and what it refuses; what stays of a layer: its places, attributes, hooks, dtype."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from bnn_plugins import list_methods, load_packed_, pack_, save_packed, summarize, weight_levels
from bnn_plugins.deploy import (
    PACKED,
    PackedAttention,
    PackedCell,
    PackedConv2d,
    PackedLinear,
    PackedModule,
    read_packed,
    register_packed,
)
from bnn_plugins.deploy.packed import PACKED_CLASSES
from bnn_plugins.layers import BinaryAttention, BinaryConv2d, BinaryLayer, BinaryLinear, BinaryLSTM, BinaryLSTMCell

from .nets import EarlierLayers, EveryLayer, net, randomise_, same

# Those of hosts' own convolutions are tested with the hosts.
OF_DEPLOY = {cls for cls in PACKED_CLASSES.values() if cls.__module__.startswith('bnn_plugins.deploy')}
EVERY_LAYER = Path(__file__).with_name('every_layer.safetensors')


class Twice(nn.Module):
    """One layer that has three names and is called twice."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.again, self.rest = layer, layer, nn.ModuleList([nn.Identity(), nn.Sequential(layer)])

    def forward(self, x):
        return self.rest[1](self.layer(x))


def linear(**kwargs):
    return randomise_(BinaryLinear(8, 8, **kwargs)).eval()


def snapshot(model):
    """What a refusal must leave as it was."""
    return [(name, type(module), id(module), module.training, set(vars(module)), module.state_dict(keep_vars=True).keys(),
             [(id(p), p.requires_grad, p._version) for p in module.parameters()]) for name, module in model.named_modules()]


def refuse(layer, match, copyable=True):
    """In a model between layers that could be packed: one sentence with its name, and nothing is half packed."""
    model = nn.Sequential(linear(), layer, linear()).train()
    before = snapshot(model)
    for call in (pack_, lambda model: load_packed_(model, EVERY_LAYER)):
        with pytest.raises(ValueError, match=rf"^the {type(layer).__name__} '1' cannot be packed: {match}") as error:
            call(model)
        assert '\n' not in str(error.value)
        assert snapshot(model) == before
    if copyable:
        assert summarize(model, torch.randn(2, 8)).totals.bops == 2 * 8 * 8, 'a summary counts it as it is'


# --- places ----------------------------------------------------------------------------------------------------------------

def test_a_layer_of_several_parents_is_one_packed_layer_everywhere():
    layer, x = linear(), torch.randn(3, 8)
    shared = nn.ModuleDict({'one': Twice(layer), 'other': Twice(layer), 'direct': layer})
    expected = shared['one'](x)
    assert pack_(shared) is shared
    found = {id(m) for _, m in shared.named_modules(remove_duplicate=False) if isinstance(m, PackedModule | BinaryLayer)}
    assert found == {id(shared['direct'])}
    assert type(shared['direct']) is PackedLinear
    assert torch.equal(shared['one'](x), expected)
    assert torch.equal(shared['other'](x), expected)


@pytest.mark.parametrize(('build', 'packed_class', 'inputs'), [
    (lambda: BinaryConv2d(4, 4, 3, method='reactnet'), PackedConv2d, [torch.randn(2, 4, 5, 5)]),
    (lambda: BinaryLSTMCell(4, 4, gates='binary'), PackedCell, [torch.randn(2, 4)]),
    (lambda: BinaryAttention(4, 2), PackedAttention, [torch.randn(2, 3, 4)] * 3)], ids=['conv', 'cell', 'attention'])
def test_a_layer_that_is_the_model(build, packed_class, inputs, tmp_path):
    """It cannot be replaced: the packed one is returned, and the latent one could be trained on."""
    layer = randomise_(build()).train()
    before = snapshot(layer)
    packed = pack_(layer)
    assert snapshot(layer) == before
    assert type(packed) is packed_class
    assert not any(m.training for m in packed.modules())
    assert not any(p.requires_grad for p in packed.parameters())
    own = {t.data_ptr() for t in layer.state_dict().values()}
    assert not own & {t.data_ptr() for t in packed.state_dict().values()}
    with torch.no_grad():
        expected, found = layer.eval()(*inputs), packed(*inputs)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    path = save_packed(packed, tmp_path / 'layer.safetensors')
    fresh = build()
    loaded = load_packed_(fresh, path)
    assert type(fresh) is type(layer)
    for one, other in zip(loaded(*inputs), found, strict=True):
        assert torch.equal(one, other)


def test_no_layer_changes_its_class():
    model = EveryLayer()
    latent = {name: (module, type(module)) for name, module in model.named_modules()}
    pack_(model)
    packed = dict(model.named_modules())
    replaced = {name for name, module in packed.items() if isinstance(module, PackedModule)}
    assert {type(packed[name]) for name in replaced} == OF_DEPLOY
    for name, (module, cls) in latent.items():
        assert type(module) is cls
        assert name not in packed or (packed[name] is module) == (name not in replaced)


# --- subclasses and methods ------------------------------------------------------------------------------------------------

class Renamed(BinaryLinear):
    """A subclass that computes the same."""

    def __init__(self, *args, note='', **kwargs):
        super().__init__(*args, **kwargs)
        self.note = note

    def extra_repr(self):
        return f'{super().extra_repr()}, {self.note}'


class Clamped(BinaryLinear):
    def forward(self, input):
        return super().forward(input).clamp(-1, 1)


class Helpful(BinaryLinear):
    def decay(self):
        return self.weight.abs().mean()


def test_a_subclass_that_computes_the_same():
    layer, x = Renamed(8, 8, note='the neck').eval(), torch.randn(3, 8)
    expected = layer(x)
    packed = pack_(nn.Sequential(layer))
    assert type(packed[0]) is PackedLinear
    assert packed[0].note == 'the neck'
    assert torch.equal(packed(x), expected)


@pytest.mark.parametrize(('cls', 'name'), [(Clamped, 'forward'), (Helpful, 'decay')])
def test_a_subclass_with_methods_is_refused(cls, name):
    refuse(cls(8, 8), f'its class defines {name}, which a PackedLinear has not: register a packed class')


def test_a_subclass_with_a_packed_class_of_its_own(monkeypatch):
    monkeypatch.setitem(PACKED_CLASSES, Clamped, None)  # taken out again afterwards

    class PackedClamped(PackedLinear):
        def forward(self, input):
            return super().forward(input).clamp(-1, 1)

    assert register_packed(Clamped)(PackedClamped) is PackedClamped
    model, x = nn.Sequential(Clamped(8, 8), Renamed(8, 8)).eval(), torch.randn(3, 8)
    expected = model(x)
    assert [type(m) for m in pack_(model)] == [PackedClamped, PackedLinear]
    assert torch.equal(model(x), expected)


def test_methods_set_on_the_object_are_refused():
    layer = linear()
    layer.forward = lambda x: x
    refuse(layer, 'forward was set on this object')
    layer = linear()
    layer.norm_of_rows = BinaryLinear.extra_repr.__get__(layer)
    refuse(layer, 'norm_of_rows was set on this object')
    layer = linear()
    layer.note, layer.kind, layer.function = 'kept', int, torch.relu
    packed = pack_(nn.Sequential(layer))[0]
    assert (packed.note, packed.kind, packed.function) == ('kept', int, torch.relu)


# --- hooks and parametrizations --------------------------------------------------------------------------------------------

def test_forward_hooks_stay_and_their_handles_remove_them():
    layer, x, seen = linear(), torch.randn(3, 8), []
    handles = [layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
               layer.register_forward_hook(lambda module, args, out: out * 2),
               layer.register_forward_hook(lambda module, args, kwargs, out: seen.append(module), with_kwargs=True)]
    expected = layer(x)
    model = pack_(nn.Sequential(layer))
    assert torch.equal(model(x), expected)
    assert seen == [layer, model[0]]
    for handle in handles:
        handle.remove()
    assert torch.equal(model(x), model[0].forward(x))
    assert len(seen) == 2


def test_state_dict_hooks_stay():
    layer, x = linear(), torch.randn(3, 8)
    layer.register_state_dict_post_hook(lambda module, state, prefix, _: state.update({prefix + 'note': torch.ones(1)}))
    layer._register_load_state_dict_pre_hook(lambda state, prefix, *args: state.pop(prefix + 'note', None))
    model = pack_(nn.Sequential(layer))
    assert '0.note' in model.state_dict()
    expected = model(x)
    again = pack_(nn.Sequential(linear()))
    again[0]._register_load_state_dict_pre_hook(lambda state, prefix, *args: state.pop(prefix + 'note', None))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), expected)
    model.load_state_dict(model.state_dict())


def test_a_load_hook_that_is_bound_to_the_layer_is_refused():
    layer = linear()
    layer.register_load_state_dict_pre_hook(lambda module, *args: None)
    refuse(layer, 'a hook of its load_state_dict is bound to the latent layer')


@pytest.mark.filterwarnings('ignore:.*weight_norm.*:FutureWarning')
@pytest.mark.parametrize('add', [
    parametrizations.weight_norm, parametrizations.spectral_norm, nn.utils.weight_norm, nn.utils.spectral_norm,
    lambda layer: prune.l1_unstructured(layer, 'weight', 0.5),
    lambda layer: parametrize.register_parametrization(layer, 'bias', nn.Identity())],
    ids=['weight_norm', 'spectral_norm', 'old_weight_norm', 'old_spectral_norm', 'prune', 'bias'])
def test_computed_weights_are_refused(add):
    layer = linear()
    add(layer)
    refuse(layer, 'its weight is computed', copyable=parametrize.is_parametrized(layer))


def test_what_a_removed_parametrization_leaves_is_packed():
    layer, x = linear(), torch.randn(3, 8)
    parametrizations.weight_norm(layer)
    parametrize.remove_parametrizations(layer, 'weight')
    expected = layer(x)
    assert torch.equal(pack_(nn.Sequential(layer))(x), expected)


def test_a_refusal_of_a_host_leaves_the_model(monkeypatch):
    def no(model):
        raise ValueError('not this one')

    monkeypatch.setattr('bnn_plugins.deploy.pack.PACKED', [*PACKED, no])
    model = net().train()
    before = snapshot(model)
    with pytest.raises(ValueError, match='not this one'):
        pack_(model)
    assert snapshot(model) == before


# --- mode, device, dtype, copies -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_mode_device_and_dtype(dtype):
    layer = linear(method='xnor').to(dtype).train()
    packed = pack_(nn.Sequential(layer))[0]
    assert (packed.bias.dtype, packed.weight_scale.dtype, packed.weight_bits.dtype) == (dtype, dtype, torch.int32)
    assert not packed.training
    assert not any(t.requires_grad for t in (*packed.parameters(), *packed.buffers()))
    on_meta = pack_(nn.Sequential(BinaryLinear(8, 8, method='xnor', device='meta')))
    assert all(t.is_meta for t in on_meta.state_dict().values())


@pytest.mark.parametrize('load', ['pack_', 'load_packed_'])
def test_copies_modes_and_casts_of_a_packed_model(load, tmp_path):
    torch.manual_seed(0)
    model, x = randomise_(EveryLayer()).eval(), torch.randn(2, 6, 7, 9)
    expected = model(x)
    pack_(model)
    if load == 'load_packed_':
        model = load_packed_(EveryLayer().train(), save_packed(model, tmp_path / 'model.safetensors'))
    assert not any(module.training for module in model.modules())
    assert same(model(x), expected)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).double().float()):
        assert same(twin(x), expected)
        assert {type(m) for m in twin.modules() if isinstance(m, PackedModule)} == OF_DEPLOY
        own = {t.data_ptr() for t in model.state_dict().values() if t.numel()}
        assert not own & {t.data_ptr() for t in twin.state_dict().values()}
    words = {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.int32}
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert {name for name, tensor in half.state_dict().items() if tensor.dtype == torch.int32} == words
    model.train()
    assert all((model.training, model.conv.training, model.conv[1].training)), 'float layers'
    assert not any(m.training for p in model.modules() if isinstance(p, PackedModule) for m in p.modules())
    assert not any(p.requires_grad for m in model.modules() if isinstance(m, PackedModule) for p in m.parameters())
    model.conv[1].eval()
    assert same(model(x), expected)


# --- files of before -------------------------------------------------------------------------------------------------------

def test_a_file_of_an_earlier_version_loads(tmp_path):
    """``every_layer.safetensors`` was written by commit 4ef6f60, when layers changed their class: names, signatures, bits."""
    file = read_packed(EVERY_LAYER)
    torch.manual_seed(1)
    fresh = EarlierLayers()
    assert fresh.conv[0].folded_scale is not None
    loaded = load_packed_(fresh, EVERY_LAYER)
    assert loaded is fresh
    assert loaded.state_dict().keys() == file.tensors.keys()
    assert {name: m.signature() for name, m in loaded.named_modules() if isinstance(m, PackedModule)} == file.layers
    again = read_packed(save_packed(loaded, tmp_path / 'again.safetensors'))
    assert (again.layers, again.versions, again.config, again.meta) == (file.layers, file.versions, file.config, file.meta)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, file.tensors[name]), name


def test_a_file_into_latent_and_packed_models():
    """Everything that is computed comes from the file, nothing from the model that it is loaded into."""
    loaded, twin = load_packed_(EarlierLayers(), EVERY_LAYER), load_packed_(pack_(EarlierLayers()), EVERY_LAYER)
    x = torch.randn(2, 6, 7, 9)
    assert same(loaded(x), twin(x))


def test_lstm_of_a_model_keeps_its_cells_state():
    """A cell in the first, soft stage of its training is packed in the last, and the latent one goes on as it was."""
    lstm = BinaryLSTM(4, 4, gates='binary', soft_until=0.5)
    cell = lstm.cells[0]
    cell.set_progress(0.1)
    pack_(lstm)
    assert (cell.soft, lstm.cells[0].soft) == (True, False)
    assert isinstance(cell.input, BinaryLayer)
    assert isinstance(lstm.cells[0].input, PackedModule)


def test_a_state_dict_knows_what_its_bits_mean(tmp_path):
    """Bits of the same shapes from another method, in a plain checkpoint of torch."""
    torch.save(pack_(nn.Sequential(linear(method='bireal'))).state_dict(), tmp_path / 'packed.pth')
    state = torch.load(tmp_path / 'packed.pth', weights_only=True)
    pack_(nn.Sequential(linear(method='bireal'))).load_state_dict(state)
    with pytest.raises(ValueError, match=r"layer '0' is .*binarynet. in the model, but .* bireal. in the state dict"):
        pack_(nn.Sequential(linear(method='binarynet'))).load_state_dict(state)
    pack_(nn.Sequential(linear(method='binarynet'))).load_state_dict(dict(state))  # without metadata, torch's own checks only


@pytest.mark.parametrize('method', list_methods())
def test_weight_levels(method):
    """The same integers before and after, of the shape of the latent weight; of one bit, signs."""
    torch.manual_seed(0)
    for layer in (BinaryConv2d(6, 4, (3, 2), groups=2, method=method), BinaryLinear(40, 3, method=method)):
        latent = weight_levels(layer)
        assert latent.shape == (layer.bases * len(layer.weight), *layer.weight.shape[1:])
        assert layer.w_bits > layer.bases or set(latent.unique().tolist()) == {-1.0, 1.0}
        assert torch.equal(weight_levels(pack_(nn.Sequential(copy.deepcopy(layer)))[0]), latent)


def test_a_real_layer_has_no_levels():
    with pytest.raises(TypeError, match='takes a latent or a packed layer, but got a Linear'):
        weight_levels(nn.Linear(3, 3))
