"""The machine code of the tensor-core kernels: all compile, none spills, all are what the committed profile says."""

import math

import pytest

pytest.importorskip('triton', reason='the Triton kernels need triton')

import torch

from benchmarks.gpu import latency, pipeline, profile
from bnn_kernels.triton import tensorcore
from bnn_kernels.triton.offline import compiling_for
from bnn_kernels.triton.tensorcore_offline import compiled

GOLDEN = profile.read(profile.path()) if profile.path().exists() else None
PRODUCTS = {'64 3x3': 6000, '128 3x3': 10500, '256 3x3': 14500, '512 3x3': 13500, '1024 3x3': 10000}  # per clock, by the model


def launch_of(target, layer, epilogue):
    return profile.launch_of(target, profile.LAYERS[layer], epilogue)


@pytest.mark.parametrize('case', profile.cases(), ids=' '.join)
def test_profile(case):
    if GOLDEN is None:
        pytest.skip(f'no profile for this Triton: python -m benchmarks.gpu.profile --update writes {profile.path().name}')
    target, layer, epilogue = case
    row = profile.profile(*case)
    assert profile.differences({case: GOLDEN[case]}, {case: row}) == [], 'python -m benchmarks.gpu.profile --update, if wanted'
    channels, _, kernel, *_ = profile.LAYERS[layer]
    steps = math.ceil(kernel**2 * channels / 256)
    block_m, block_n = map(int, row['tile'].split('x'))
    instructions = dict(pair.split(':') for pair in row['mix'].split())
    assert row['spilled'] == '0'
    assert not {'LDL', 'STL', 'BAR', 'IMMA', 'HMMA', 'IGMMA', 'HGMMA', 'I2F', 'F2I', 'F2F'} & set(instructions)
    if target == 'sm_90a wgmma':
        assert row['mma_name'] == f'BGMMA.64x{block_n}x256.AND.POPC'
        twice = 1 + (epilogue == 'sign' and kernel**2 * channels // 32 <= tensorcore.XNOR_WORDS)
        assert int(row['mma']) == twice * steps * block_m // 64
        assert int(row['waits']) == math.ceil(steps / 16)  # more: ptxas has made the asynchronous instructions wait
        if epilogue == 'sign' and layer in PRODUCTS:
            assert int(row['products_per_clock']) >= PRODUCTS[layer]
    else:
        assert row['mma_name'] == f'BMMA.168256.{"AND" if "90" in target else "XOR"}.POPC'
        assert int(row['mma']) == steps * block_m // 64 * block_n // 8


@pytest.mark.parametrize('case', [case for case in profile.cases() if 'wgmma' in case[0]], ids=' '.join)
def test_nothing_touches_the_registers_of_wgmma_in_flight(case):
    loop = profile.disassembled(compiled(*launch_of(*case), (9, 0)).cubin).loop()
    assert profile.hazards(loop) == []


def test_hazards():
    """Two k-steps, a wait, and one instruction at each place: what may stand there, and what may not."""
    first, second, wait = (pipeline.Instruction(0, *text) for text in (
        ('BGMMA.64x64x256.AND.POPC', 'R24, R4, gdesc[UR8], !UPT'),
        ('BGMMA.64x64x256.AND.POPC', 'R24, R8, gdesc[UR12], R24, gsb0'), ('WARPGROUP.DEPBAR.LE', 'gsb0, 0x0')))
    for name, operands, fine in (
            ('POPC', 'R60, R4', True), ('LDG.E.128', 'R12, desc[UR4][R60.64]', True), ('MOV', 'R7, R60', False),
            ('LDG.E.128', 'R1, desc[UR4][R60.64]', False), ('IADD3', 'R60, R55, R1, RZ', False),
            ('STG.E', 'desc[UR4][R60.64], R24', False),
            ('SHFL.BFLY', 'PT, R5, R60, 0x1, 0x1f', False), ('ISETP.GE.AND', 'P0, PT, R4, R60, PT', True),
            ('IMAD.WIDE', 'R2, R60, 0x4, R12', True), ('IMAD.WIDE', 'R3, R60, 0x4, R12', False)):
        other = pipeline.Instruction(16, name, operands)
        assert (profile.hazards([first, other, second, wait]) == []) == fine, other
        assert profile.hazards([first, second, wait, other]) == []


@pytest.mark.parametrize('case', profile.cases(), ids=' '.join)
def test_as_many_blocks_as_are_launched_fit_at_once(case):
    target, layer, epilogue = case
    channels, _, kernel, *_ = profile.LAYERS[layer]
    golden = profile.read(profile.RESULTS / 'profile_triton-3.6.0.csv')  # registers differ a little between versions
    row, machine = golden[case], tensorcore.Machine(profile.TARGETS[target][0], 1, profile.TARGETS[target][1])
    words = kernel**2 * channels // 32
    op = tensorcore.operation(machine, epilogue, words, 1)
    blocks = tensorcore.residents(machine, epilogue, op, words, *map(int, row['tile'].split('x')))
    assert blocks * 128 * 8 * math.ceil(int(row['registers']) / 8) <= 65536
    assert blocks == 1 or blocks * (int(row['shared']) + 1024) <= tensorcore.SHARED_BYTES[machine.capability]


def test_the_golden_file_has_every_case():
    assert GOLDEN is None or set(GOLDEN) == set(profile.cases())


def test_differences_name_what_changed():
    old = {('a', 'b', 'c'): dict(loop='10', clocks='5')}
    new = {('a', 'b', 'c'): dict(loop='11', clocks='5'), ('d', 'e', 'f'): dict(loop='1')}
    assert profile.differences(old, new) == ['a b c: loop 10 -> 11', 'd e f: loop - -> 1']
    assert profile.differences(new, new) == []


def test_how_long_each_unit_is_busy():
    names = ('LOP3.LUT', 'POPC', 'LDG.E.128', 'BMMA.168256.XOR.POPC', 'IMAD', 'FADD')
    loop = [pipeline.Instruction(0, name, '') for name in names]
    assert profile.occupancy(loop, (8, 0), 4) == dict(issue=6, alu=2, float=3, special=8, memory=16, tensor=8)
    gmma = [pipeline.Instruction(0, 'BGMMA.64x128x256.AND.POPC', '')]
    assert profile.occupancy(gmma, (9, 0), 4)['tensor'] == 64


def test_the_latency_model():
    """A load, what waits for it, and wgmma: alone, twice, and by two warps, which share the wait but not the unit."""
    load, use = (pipeline.Step('memory', 4, -1, 1, (0,), (), (), False), pipeline.Step('alu', 2, 5, 3, (), (), (0,), False))
    assert pipeline.walked([load, use], 1, 1, 750) == 754 + 3
    assert pipeline.walked([load, use], 1, 2, 750) == 2 * (754 + 3)
    assert pipeline.walked([load, use], 2, 1, 750) == 7 + 754 + 3  # the second one begins 7 clocks later
    busy = pipeline.Step('alu', 100, 0, 1, (), (), (), False)
    assert pipeline.walked([busy], 2, 1, 750) == 100 + 1
    product, wait = pipeline.Step('tensor', 32, 60, 1, (), (), (), False), pipeline.Step('other', 0, 6, 2, (), (), (), True)
    assert pipeline.walked([product, product, wait], 1, 1, 750) == 32 + 32 + 60 + 2


def test_control_words():
    """Stall count, the scoreboards that are set, freed and waited for; loads with a predicate are not of a table."""
    control = 4 << 41 | 2 << 46 | 7 << 49 | 0b101 << 52
    gmma = pipeline.Instruction(0, 'BGMMA.64x64x256.AND.POPC', '')
    table, late = (pipeline.Instruction(16, 'LDG.E.64', '', guarded, control) for guarded in (False, True))
    first, other, last = pipeline.steps([gmma, table, late])
    assert first == ('tensor', 32, pipeline.WGMMA, 1, (), (), (), False)
    assert other == ('memory', 8, pipeline.TABLE, 4, (2,), (), (0, 2), False)
    assert last == other._replace(latency=-1)


def test_what_the_model_says_of_a_layer():
    layer = latency.networks(224)['ResNet-18'][0]
    cold, warm = (latency.times(layer, 128, 'sign', 790e12, wait) for wait in (pipeline.COLD, pipeline.WARM))
    assert cold.memory < warm.ours < cold.ours < cold.cudnn / 3  # 2.1 without loading a tile ahead


def test_a_kernel_that_was_not_rewritten_does_not_assemble(monkeypatch, tmp_path, capsys):
    from triton import knobs
    from triton.runtime.errors import PTXASError

    from bnn_kernels.triton import tensorcore_offline, tensorcore_rewrite
    launch = launch_of('sm_90a wgmma', '64 3x3', 'sign')
    compiled(*launch, (9, 0))
    monkeypatch.setattr(knobs.cache, 'dir', str(tmp_path))
    monkeypatch.setattr(tensorcore_rewrite, 'install', lambda: None)
    monkeypatch.setattr(knobs.runtime, 'add_stages_inspection_hook', None)
    tensorcore_offline._compiled.cache_clear()
    with pytest.raises(PTXASError, match='bnn_b1_required'):
        compiled(*launch, (9, 0))


@pytest.mark.parametrize('case', [('sm_90a wgmma', '64 3x3', 'block'), ('sm_90a mma', '64 3x3', 'sign'),
                                  ('sm_90a mma', '128 3x3', 'sums')], ids=' '.join)
def test_a_launch_compiles_what_is_emulated_and_profiled(case):
    launch, tensors = launch_of(*case)
    offline = compiled(launch, tensors, (9, 0))
    with compiling_for('sm_90') as gpu:
        launch(*tensors)
    assert gpu.launches[0].kernel.compiled['ptx'] == offline.ptx
    assert gpu.launches[0].kernel.compiled['cubin'] == offline.cubin


def test_profiles_need_no_gpu():
    assert not torch.cuda.is_initialized()
