"""Every method on one and on several processes: DistributedDataParallel, and sharded by ``fully_shard``."""

import pytest
import torch

import bnn_plugins
from tests.processes import together
from tests.test_scale.programs import network, train_methods
from tests.test_scale.test_diffusion import assert_equal

METHODS = [*bnn_plugins.list_methods(), ('bop', dict(method='binarynet'))]
ONES = ['rebnn', 'rbnn', 'binarynet', 'irnet', ('bop', dict(method='binarynet'))]  # each rule once


def results(count: int, folder, methods, sharded: bool = False) -> list[dict]:
    together(count, train_methods, methods, sharded, folder, folder=folder)
    return [torch.load(folder / f'{"sharded" if sharded else "ddp"}{count}-{rank}.pth') for rank in range(count)]


def test_every_method_is_equal_on_processes_and_to_one(tmp_path):
    """Weights, buffers and the optimizer's state. Mutation: a binarizer that draws or counts by itself in each process."""
    one, = results(1, tmp_path, METHODS)
    for count in (2, 3):
        ranks = results(count, tmp_path, METHODS)
        for rank in ranks[1:]:
            assert_equal(ranks[0], rank)
        for method in one:
            assert_equal(one[method], ranks[0][method], 1e-4)


@pytest.mark.parametrize('methods', [ONES, pytest.param(METHODS, marks=pytest.mark.scale)], ids=['rules', 'all'])
def test_sharded_training_is_that_of_whole_parameters(methods, tmp_path):
    """FSDP2: the same weights, buffers and optimizer, whole in every process; and they pack. Mutations: a rule that takes its
    share of a weight for the weight; a state dict of shards."""
    whole, sharded = (results(2, tmp_path, methods, sharded) for sharded in (False, True))
    assert_equal(*sharded)
    for method in whole[0]:
        assert_equal(whole[0][method], sharded[0][method], 1e-4)
    for method in set(whole[0]) - {'bop'}:
        model = network(method)
        model.load_state_dict(sharded[0][method]['weights'])
        x = torch.randn(2, 3, 6, 6)
        expected = model.eval()(x)
        torch.testing.assert_close(bnn_plugins.pack_(model)(x), expected, rtol=1e-5, atol=1e-5)
