"""The sweep over the models of the hosts: its stages, its processes, and one model of each kind."""

import os
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.rows import read_rows
from benchmarks.zoo import run as command
from benchmarks.zoo.fresh import Fresh
from benchmarks.zoo.run import run_case
from benchmarks.zoo.stages import Case, outputs_of, run
from benchmarks.zoo.structure import must_be_real, steady_layers
from benchmarks.zoo.tables import OK, PIPELINE_STAGES, SKIPPED, STAGES
from bnn_plugins import BNNConfig, binarize_, pack_


def toy(rules=(), reload=lambda latent, packed: (latent, packed), **changes) -> Case:
    x = torch.randn(2, 3, 8, 8)

    def build():
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
                             nn.Conv2d(8, 4, 1))

    def binary(model):
        return model, binarize_(model, BNNConfig('bireal', rules=dict(rules)), x)
    case = Case(build, binary, lambda model: [model(x)], lambda model: [model(x)], ((x,), {}),
                lambda latent, packed, folder: [outputs_of(case, model) for model in reload(latent, packed)])
    vars(case).update(changes)
    return case


def said(case, tmp_path, facts=None):
    return dict(run(case, tmp_path, {} if facts is None else facts))


def test_all_stages(tmp_path):
    facts = {}
    assert said(toy(), tmp_path, facts) == dict.fromkeys(STAGES, OK)
    assert (facts['layers'], facts['binary'], facts['wrong']) == (3, 1, 0)


def test_each_stage_can_fail(tmp_path):
    """Mutations: each stage that says OK whatever it sees."""
    assert '4' in said(toy(rules={'4': 'binary'}), tmp_path)['real']

    def forgets(latent, packed):
        nn.init.zeros_(latent[4].weight)
        return latent, packed
    assert said(toy(reload=forgets), tmp_path)['saved'].startswith('latent: 1 of 1 outputs differ')
    found = said(toy(losses=lambda model: [model(torch.full((2, 3, 8, 8), torch.nan))]), tmp_path)
    assert found == {'float': 'the loss of the float model is not finite'}
    found = said(toy(losses=lambda model: [(model(torch.randn(2, 3, 8, 8)) * 0).sum()]), tmp_path)
    assert found['gradients'] == OK, 'the float model has none either'

    def cut(model):
        return [model[4](model[:4](torch.randn(2, 3, 8, 8)).detach() if type(model[2]) is not nn.Conv2d
                         else model[:4](torch.randn(2, 3, 8, 8)))]
    assert said(toy(losses=cut), tmp_path)['gradients'] == "none or zero: ['2.weight']"
    raising = toy(binary_model=lambda model: 1 / 0)
    assert said(raising, tmp_path) == {'float': OK, 'build': 'ZeroDivisionError: division by zero'}


def test_a_process_that_knows_only_the_folder():
    """Mutation: one that is forked when it is asked knows what came before."""
    known = [1]
    elsewhere = Fresh(lambda number: known[0] + number if number else 1 / number)
    known[0] = 10
    assert (elsewhere(1), elsewhere(2)) == (2, 3)
    with pytest.raises(RuntimeError, match='in a new process: ZeroDivisionError: division by zero'):
        elsewhere(0)
    assert elsewhere(3) == 4


def test_predictions_positions_and_gates_by_the_graph():
    """Mutations: without SAMPLERS, or without ``ends_in_sigmoid``."""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ('body', 'where', 'gate', 'swish', 'out'):
                setattr(self, name, nn.Conv2d(2, 2, 1))

        def forward(self, x):
            x = self.body(x)
            x = nn.functional.grid_sample(x, self.where(x).permute(0, 2, 3, 1), align_corners=False)
            y = self.swish(x * self.gate(x).sigmoid())
            return self.out(y * y.sigmoid()).relu()
    net = Net()
    assert must_be_real(net, [net(torch.randn(1, 2, 4, 4))]) == {'where', 'gate', 'out'}


def test_what_the_timestep_alone_decides():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, t):
            return self.body(x + self.embed(t))
    net = Net()
    assert steady_layers(net, lambda shift, factor: net(torch.ones(2, 4) + shift, factor * torch.ones(2, 4))) == {'embed'}


def host(model, way, facts):
    if model == 'endless':
        return toy(losses=lambda model: [time.sleep(60)])
    if model == 'crash':
        return toy(losses=lambda model: os._exit(7))
    if way == 'none':
        raise LookupError('it has no backbone')
    return toy()


def test_a_process_each(monkeypatch, tmp_path):
    """Mutations: a limit that is not kept; a crash that ends the sweep."""
    models = SimpleNamespace(case=host, names=lambda: ['good', 'crash'], WAYS=['whole'], small_networks=nullcontext)
    monkeypatch.setattr(command, 'host', lambda name: models)
    monkeypatch.setattr(command, 'PATIENCE', 1)
    row = run_case('mmdet', 'good', 'whole', 20, 8)
    assert {row[stage] for stage in STAGES} == {OK}
    row = run_case('mmdet', 'endless', 'whole', 1, 8)
    assert (row['float'], row['build']) == ('takes more than 1 s', SKIPPED)
    assert run_case('mmdet', 'crash', 'whole', 20, 8)['float'] == 'the process ended with 7'
    assert run_case('mmdet', 'good', 'none', 20, 8)['float'] == 'no such way: it has no backbone'

    for given in ([], [], ['--missing']):
        monkeypatch.setattr('sys.argv', ['run', 'mmdet', *given, '--out', str(tmp_path)])
        monkeypatch.setattr(command, 'commit', lambda now='other' if given else 'same': now)
        command.main()
        monkeypatch.setattr(command, 'run_case', lambda *_: pytest.fail('a row is not made again'))
    assert [row['name'] for row in read_rows(tmp_path / 'mmdet.csv')] == ['crash', 'good']


def test_a_row_names_no_folder_of_the_machine(tmp_path):
    """Mutation: the message as the host says it."""
    with pytest.raises(FileNotFoundError) as raised:
        (tmp_path / 'some' / 'config.py').open()
    assert command.sentence(raised.value) == "FileNotFoundError: [Errno 2] No such file or directory: 'config.py'"
    assert command.sentence(ValueError()) == 'ValueError: no message'


@pytest.mark.parametrize('name', [
    'AutoencoderTiny', 'AutoencoderDC', 'T2IAdapter',               # ReLUs, whose slopes a float checkpoint has not
    'DiTTransformer2DModel', 'ControlNetUnionModel',                # conditions that modulate; an nn.MultiheadAttention
    'Krea2Transformer2DModel', 'SanaWMTransformer3DModel',          # gates of a text, and of a linear attention
    'AnyFlowTransformer3DModel',                                    # a module that returns None
    'ZImageTransformer2DModel', 'WanAnimateTransformer3DModel', 'Kandinsky5Transformer3DModel'])  # weights read, not called
def test_a_class_of_diffusers_of_each_kind(name, tmp_path):
    pytest.importorskip('diffusers')
    from benchmarks.zoo.diffusers_models import case
    assert said(case(name, 'whole', {}), tmp_path) == dict.fromkeys(STAGES, OK)


def test_a_pipeline_of_diffusers(tmp_path):
    """One that needs no package besides. Mutation: a stage that says OK whatever it sees (another packed UNet)."""
    pytest.importorskip('diffusers')
    from benchmarks.zoo import pipelines_models as pipelines
    case = pipelines.case('DDPMPipeline', 'whole', {})
    assert dict(pipelines.run(case, tmp_path, {})) == dict.fromkeys(PIPELINE_STAGES, OK)
    other = [tensor + 1 for tensor in torch.load(tmp_path / 'packed.pt')]
    for stage in ('packed', 'saved'):
        case.build()
        binarize_(case.pipe.unet, pipelines.METHOD)
        pack_(case.pipe) if stage != 'packed' else None
        assert 'outputs differ' in pipelines.STAGES[stage](case, tmp_path, {'expected': other}, {})


def test_ways_to_offload(tmp_path):
    """Mutations: a way of ours that computes something else is the host's; one that the host refuses is ours."""
    pytest.importorskip('diffusers')
    from benchmarks.zoo.pipelines_offload import try_all

    def refuses(kind, folder):
        raise ValueError('no groups')

    right, wrong = [torch.ones(2)], [torch.zeros(2)]
    expected = {'packed': [right, wrong + wrong], 'float': [wrong]}
    found = {'good': lambda kind, _: right if kind == 'packed' else wrong, 'no groups': refuses}
    assert try_all(found, tmp_path / 'a', expected) == (OK, ['no groups'])
    said, host = try_all({**found, 'bad': lambda *_: wrong, 'later': refuses}, tmp_path / 'b', expected)
    assert said == 'bad: 1 of 1 outputs differ, by up to 1'
    assert host == ['no groups']


# A family of each kind, in about a minute of one core: ways, and what is particular to the family.
DETECTORS = {
    'whole': ['fcos',             # places
              'retinanet',        # anchors
              'reppoints',        # points, deformable convolutions of a head
              'centernet',        # heat maps
              'rtmdet',           # layers that levels share
              'condinst',         # masks by kernels that are predicted
              'yolact',           # masks of prototypes
              'solov2',           # masks of places
              'deformable_detr',  # positions that are sampled
              'dab_detr',         # queries
              'ld'],              # a teacher
    'parts': ['faster_rcnn',      # regions
              'cascade_rcnn',     # several heads behind each other
              'maskformer',       # panoptic
              'resnest',          # split attention
              'swin',             # a Transformer
              'bytetrack'],       # a tracker, YOLOX
    'BNNResNet': ['dcnv2',        # deformable convolutions of a backbone
                  'gcnet',        # plugins of a backbone
                  'point_rend',   # points of a mask
                  'soft_teacher'],  # a teacher that is an average
}


@pytest.mark.parametrize(('family', 'way'), [(family, way) for way, families in DETECTORS.items() for family in families])
def test_a_detector_of_each_kind(family, way, tmp_path):
    pytest.importorskip('mmdet')
    from benchmarks.zoo.mmdet_models import case, small_networks
    with small_networks():
        assert said(case(family, way, {}), tmp_path) == dict.fromkeys(STAGES, OK)
