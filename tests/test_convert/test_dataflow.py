"""The data flow of a forward pass: what it says about layers, and what ``binarize_`` makes of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnn_plugins import RuleSet, binarize_, register_rules, remove_rules
from bnn_plugins.convert.dataflow import trace
from bnn_plugins.convert.flow import Probe, tensors
from bnn_plugins.layers import BinaryLayer

X, T = torch.randn(2, 8, 6, 5), torch.tensor([3, 40])


class Everything(nn.Module):
    """One layer of each kind; names say nothing."""

    def __init__(self):
        super().__init__()
        for name in ('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k'):
            setattr(self, name, nn.Conv2d(8, 8, 3, padding=1))
        self.grid = nn.Conv2d(8, 2, 1)
        self.t1, self.t2, self.t3 = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.s1, self.s2, self.spatial = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 1, 3, padding=1)
        self.norm, self.scale, self.shift = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.read, self.first, self.second = nn.Linear(8, 8), nn.ReLU(), nn.ReLU()

    def forward(self, x, t):
        angles = t[:, None] * torch.arange(1, 5)
        emb = self.t2(F.silu(self.t1(torch.cat([angles.sin(), angles.cos()], 1))))
        x = self.a(x)
        x = x + self.b(F.silu(x)) * 0.5                                          # residual block: features
        x = x + self.t3(F.silu(emb))[:, :, None, None]
        x = x * self.s2(self.s1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()  # channel attention
        x = x * self.spatial(x).sigmoid()                                        # of a place, not of a vector
        y = self.c(x)
        x = x + y * torch.sigmoid(y)                                             # Swish: no gate of other features
        x = self.norm(self.d(x)) * (1 + self.scale(x)) + self.shift(x)
        x = F.grid_sample(self.e(x), self.grid(x).permute(0, 2, 3, 1).tanh(), align_corners=False)
        x = self.first(self.norm(x))
        x = self.f(x)
        x = self.norm(F.max_pool2d(F.relu(x), 3, 1, 1))
        x = self.g(x)
        x = self.h(F.relu(x))                                                    # a ReLU that is no module
        tokens = x.flatten(2).mT
        scores = (self.query(tokens) @ self.key(tokens).mT).softmax(-1)
        tokens = F.linear(tokens + scores @ self.value(tokens), self.read.weight)  # without a call
        x = self.second(tokens.mT.reshape(x.shape))
        return {'boxes': [self.i(x).exp()], 'loss': F.mse_loss(self.norm(self.j(x)), x)}


@pytest.fixture
def rules():
    register_rules(RuleSet('everything', probe=lambda model: Probe([lambda m: m(X, T)], [X], [T]) if isinstance(
        model, Everything) else None))
    yield
    remove_rules('everything')


@pytest.fixture
def report(rules):
    return binarize_(Everything(), dict(method='bireal', act='hardtanh'))


FEATURES = {'a', 'b', 'c', 'd', 'e', 'f', 'g', 'query', 'key', 'value'}


def test_features_become_binary_and_nothing_else(report):
    assert {row.name for row in report.binary} == FEATURES | {'k'}, 'k is never called: rules decide'


@pytest.mark.parametrize(('names', 'reason'), [
    ('i j', 'prediction: the outputs of the model, or its loss, read it (data flow)'),
    ('t1 t2', 'computed from a timestep, a condition or a position alone (data flow)'),
    ('t3 scale shift', 'its output modulates other features (data flow)'),
    ('s2 spatial', 'its output is a gate of other features (data flow)'),
    ('s1', 'only gates or modulations are computed from it (data flow)'),
    ('grid', 'its output is positions or offsets (data flow)'),
    ('h', 'its sign would always be +1: Everything calls a ReLU before it as a function'),
    ('read', 'Everything uses its weight without calling it')])
def test_reasons(report, names, reason):
    assert {row.reason for row in report.rows if row.name in names.split()} == {reason}


def test_only_relus_before_signs_are_replaced(report):
    assert report.replaced.keys() == {'first'}, 'behind the second are only real layers'
    assert report.traced == 'a forward pass decided, then names and classes'
    assert report.traced in ' '.join(str(report).split())


def test_a_relu_as_a_function_matters_to_signs_only(rules):
    binary = {row.name for row in binarize_(Everything(), 'dorefa').binary}
    assert 'h' in binary


def test_the_users_rules_go_before_the_data_flow(rules):
    report = binarize_(Everything(), dict(method='bireal', rules={'[ai]': 'binary', 'read': 'binary', 't1': 'binary'}))
    assert {'a', 'i', 't1'} <= {row.name for row in report.binary}
    assert 'read' not in {row.name for row in report.binary}, 'it would never run'


@pytest.mark.parametrize('inputs', [(X, T), dict(x=X, t=T)], ids=['tuple', 'dict'])
def test_inputs_of_a_model_that_no_rule_set_knows(inputs):
    report = binarize_(Everything(), dict(method='bireal', act='hardtanh'), inputs)
    assert {row.name for row in report.binary} == FEATURES | {'k'}
    with pytest.raises(ValueError, match='inputs has no tensor'):
        binarize_(Everything(), 'bireal', (3,))


def test_features_are_no_predictions():
    """The last layer of a backbone is binary."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    probe = Probe([lambda m: m(X)], [X], predicts=False)
    assert trace(model, probe).layers['1'].uses == {'output'}
    register_rules(RuleSet('backbones', probe=lambda model: probe))
    try:
        assert len(binarize_(model, 'bireal').binary) == 2
    finally:
        remove_rules('backbones')


def test_the_model_and_random_numbers_stay(rules):
    model = Everything()
    model.register_buffer('counter', torch.zeros(1))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    trace(model, Probe([lambda m: (m.train()(X, T), torch.rand(5), m.counter.add_(1))], [X], [T]))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items()), 'running statistics, too'
    assert not model.a._forward_hooks
    assert not hasattr(model.a, 'flow')


def test_a_call_that_fails_says_what_it_can(rules):
    model = Everything()
    model.value = nn.Linear(7, 7)
    report = binarize_(model, 'bireal')
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons['t1'].startswith('computed from a timestep')
    assert reasons['i'] == 'default'
    assert report.traced.startswith('forward pass incomplete (RuntimeError: mat1 and mat2 shapes cannot be multiplied')


def test_inputs_that_do_not_fit():
    """What the user gives is no guess: it has to work."""
    model = Everything()
    with pytest.raises(ValueError, match=r'this Everything cannot be called with these inputs: RuntimeError: Given groups=1'):
        binarize_(model, 'bireal', (torch.randn(2, 7, 6, 5), T))
    assert not any(isinstance(module, BinaryLayer) for module in model.modules())


def test_a_probe_that_fails():
    def probe(model):
        raise KeyError('image_size')

    register_rules(RuleSet('broken', probe=probe))
    try:
        report = binarize_(nn.Sequential(nn.Conv2d(8, 8, 3)), 'bireal')
    finally:
        remove_rules('broken')
    assert report.traced.startswith("forward pass incomplete (KeyError: 'image_size')")


def test_a_model_that_nobody_can_call():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    report = binarize_(model, 'bireal')
    assert report.traced == 'no forward pass: names and classes decided'
    assert report.replaced.keys() == {'1'}


class Context(nn.Module):
    """As SCNet's global context: features are averaged and added to other features, and read by a layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(8, 8, 1) for _ in range(4))

    def forward(self, x):
        features = self.a(x)
        context = (features + self.b(features)).mean((2, 3), keepdim=True)
        return self.d(self.c(x) + context)


def test_what_layers_read_is_features_even_where_its_mean_modulates():
    report = binarize_(Context(), 'bireal', X)
    assert {row.name for row in report.rows if row.binary} == {'a', 'c'}


class Sampling(torch.autograd.Function):
    """As mmcv's: features, where to sample them, filters."""

    @staticmethod
    def forward(ctx, x, offset, weight):
        return x * 2 + offset.mean()

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


sample = Sampling.apply  # kept under a name of its own, as mmcv does


class Deformed(nn.Module):
    def __init__(self):
        super().__init__()
        self.x, self.where, self.out = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.filters = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return self.out(sample(self.x(x), self.where(x), self.filters))


def test_custom_functions():
    found = trace(Deformed(), Probe([lambda m: m(X)], [X])).layers
    assert found['where'].uses == {'position'}
    assert (found['x'].uses, found['x'].readers) == (set(), {''}), 'the function has filters: it is a layer'
    assert found['out'].sources == {'stream'}


@pytest.mark.parametrize('kind', ['binary', None])
def test_zero_initialised_layers(kind):
    """Method and rule cannot help: mean|w| is 0, and so is each gradient."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    nn.init.zeros_(model[1].weight)
    report = binarize_(model, dict(method='xnor', rules={'1': kind} if kind else {}))
    assert [row.reason for row in report.rows] == ['default', 'all its weights are zero: initialise them first']
    assert not isinstance(model[1], BinaryLayer)


def test_the_refusal_of_a_constant_sign_names_the_layer():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    binarize_(model, 'bireal')
    with pytest.raises(ValueError, match=r"^1: BinaryConv2d.*never below.*rules=\{'1': 'float'\} keeps the layer real"):
        model[1].train()(torch.rand(2, 8, 9, 9) + 1)


class Summed(nn.Module):
    """Sums that begin with zeros, as those of region extractors and decoders."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(8, 8, 1) for _ in range(4))
        self.act = nn.ReLU()

    def forward(self, x):
        called, written = x.new_zeros(x.shape), torch.zeros_like(x)
        called += F.relu(self.a(x))
        written[:1] = self.act(self.a(x))[:1]
        return self.d(self.b(called) + self.c(written) + x)


def test_a_sum_that_begins_with_zeros_is_non_negative():
    """Mutation: zeros of unknown sign."""
    model = Summed()
    rows = {row.name: row for row in binarize_(model, 'bireal', X).rows}
    assert rows['b'].reason == 'its sign would always be +1: Summed calls a ReLU before it as a function'
    assert rows['c'].binary
    assert not isinstance(model.act, nn.ReLU), 'a ReLU that is a module is replaced'
    flow = trace(Summed(), Probe([lambda m: m.a(torch.zeros_like(X))], [X]))
    assert not flow.layers['a'].relus, 'zeros alone are no reason'


class Chained(nn.Module):
    """A ReLU of what is non-negative already, as in YOLACT's prototypes: both must go, or none can."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(8, 8, 1) for _ in range(4))
        self.first, self.second, self.third = nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU()

    def forward(self, x):
        x = self.second(F.interpolate(self.first(self.a(x)), scale_factor=2))
        return self.d(self.c(self.third(F.relu(self.b(x)))))


def test_relus_behind_relus():
    """Mutation: only the last one is known."""
    model = Chained()
    rows = {row.name: row for row in binarize_(model, 'bireal', X).rows}
    assert rows['b'].binary
    assert not isinstance(model.first, nn.ReLU)
    assert not isinstance(model.second, nn.ReLU)
    assert rows['c'].reason == 'its sign would always be +1: Chained calls a ReLU before it as a function'
    assert isinstance(model.third, nn.ReLU), 'one that would help nothing'
    model.train()(X).sum().backward()


class Pooled(nn.Module):
    """Extra levels of a pyramid, as pooled outputs of a ReLU."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 1) for _ in range(3))

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.c(self.b(F.max_pool2d(F.avg_pool2d(x, 2), 1, 2)))


def test_what_is_pooled_keeps_its_sign():
    rows = {row.name: row.reason for row in binarize_(Pooled(), 'bireal', X).rows}
    assert rows['b'] == 'its sign would always be +1: Pooled calls a ReLU before it as a function'


def test_memory_is_not_searched_for_tensors():
    """A forward pass that copies a tensor gives its storage to a function of torch: a DDQ would take minutes.

    Mutation: without the storages in NUMBERS."""
    x = torch.ones(2)
    long = [bytes(10**9), x.untyped_storage()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.UntypedStorage, '__iter__', lambda _: pytest.fail('a storage was read'), raising=False)
        patch.setattr(torch.UntypedStorage, '__getitem__', lambda *_: pytest.fail('a storage was read'))
        assert list(tensors([*long, {'x': (x, range(10**9))}])) == [x]


class Rotated(nn.Module):
    """Gates behind complex positions, and gates of a text: neither reads the latents as they are."""

    def __init__(self):
        super().__init__()
        for name in ('key', 'value', 'beta', 'text', 'text_gate', 'read', 'rest', 'out'):
            setattr(self, name, nn.Linear(8, 8))

    def forward(self, x, text):
        angles = torch.polar(torch.ones(5, 4), torch.arange(20.0).view(5, 4))
        key = torch.view_as_real(torch.view_as_complex(F.relu(self.key(x)).unflatten(-1, (4, 2))) * angles).flatten(-2)
        x = x + self.read((key * self.beta(x).sigmoid()) @ key.mT @ self.value(x)) + self.rest(key)
        text = self.text(text) * self.text_gate(text).sigmoid()
        return self.out(torch.cat([x, text], 1))


def test_gates_of_complex_numbers_and_of_conditions():
    """As in SanaWM's linear attention and Krea2's text blocks. Mutations: complex tensors carry nothing; only what comes
    from the latents can have a gate."""
    rows = {row.name: row for row in binarize_(Rotated(), 'bireal', (torch.randn(2, 5, 8), torch.randn(2, 3, 8))).rows}
    assert {name for name, row in rows.items() if row.binary} == {'key', 'value', 'text', 'read', 'rest'}
    assert rows['beta'].reason == rows['text_gate'].reason == 'its output is a gate of other features (data flow)'
