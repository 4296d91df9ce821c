"""Sets that do not fit into memory: what is wanted is read, in an order of the epoch that all processes share."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bnn_plugins.apps.diffusion import data as data_module
from bnn_plugins.apps.diffusion.data import build_dataset, split
from bnn_plugins.apps.diffusion.lazy import KEPT, LazyImages


@pytest.fixture
def shards(tmp_path):
    """Two parquet files of 5 and 2 row groups of 4 pictures; each picture is grey as its number."""
    def encoded(number):
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(buffer, 'png')
        return dict(bytes=buffer.getvalue())
    for name, numbers in (('a', range(20)), ('b', range(20, 28))):
        table = pa.table(dict(img=[encoded(number) for number in numbers], label=list(numbers)))
        pq.write_table(table, tmp_path / f'{name}.parquet', row_group_size=4)
    return dict(type='parquet', path=str(tmp_path))


def test_a_large_set_is_the_small_one_read_later(shards, monkeypatch):
    whole = build_dataset(shards, 4)
    monkeypatch.setattr(data_module, 'DECODED_BYTES', 100)
    lazy = build_dataset(shards, 4)
    assert isinstance(lazy, LazyImages)
    assert len(lazy) == len(whole) == 28
    for index in (0, 19, 20, 27):
        for key, value in whole[index].items():
            assert torch.equal(lazy[index][key], value)
    rest, held = split(lazy, 0.25)
    assert held.labels.tolist() == list(range(7))
    assert [int(rest[i]['label']) for i in (0, 20)] == [7, 27]


def test_pictures_of_a_folder_are_opened_when_they_are_wanted(tmp_path, monkeypatch):
    for kind in ('cat', 'dog'):
        (tmp_path / kind).mkdir()
        Image.fromarray(np.full((4, 4, 3), 7 if kind == 'cat' else 9, np.uint8)).save(tmp_path / f'{kind}/1.png')
    monkeypatch.setattr(data_module, 'DECODED_BYTES', 10)
    lazy = build_dataset(dict(type='imagefolder', path=str(tmp_path)), 4)
    assert [int(lazy[i]['label']) for i in (0, 1)] == [0, 1]
    (tmp_path / 'dog/1.png').write_bytes(b'')
    assert lazy[0]['input'].shape == (3, 4, 4)


def test_the_order_of_an_epoch_reads_each_group_once(shards, monkeypatch):
    """All rows once, another order in each epoch, and few groups in memory. Mutation: rows in any order."""
    monkeypatch.setattr(data_module, 'DECODED_BYTES', 100)
    data, _ = split(build_dataset(shards, 4), 0.1)
    monkeypatch.setattr('bnn_plugins.apps.diffusion.lazy.KEPT', 2)
    assert KEPT > 2
    reads, read = [], data.read
    data.read = lambda group: reads.append(group) or read(group)
    order = data.sampler(3)
    orders = []
    for epoch in (0, 1, 0):
        order.set_epoch(epoch)
        orders.append(list(order))
        assert sorted(orders[-1]) == list(range(25))
    assert orders[0] == orders[2] != orders[1]
    for index in orders[0]:
        data[index]
    assert sorted(reads) == list(range(7))
    assert len(data._groups) == 2
