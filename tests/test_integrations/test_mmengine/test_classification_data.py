"""Datasets in their real formats, the accuracy, and the batched augmentation against a loop over images."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from bnn_plugins.integrations.mmengine.classification import Accuracy, CifarBinary, DigitImages, ImageFolder, ParquetImages
from bnn_plugins.integrations.mmengine.classification.datasets import balanced
from bnn_plugins.models import ImagePreprocessor

from .classification import pictures, write_folder, write_parquet


@pytest.fixture
def parquet(tmp_path):
    images, labels = write_parquet(tmp_path / 'train.parquet', 60, 3)
    return str(tmp_path / 'train.parquet'), torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)


class TestParquet:
    def test_every_pixel_in_rgb_order(self, parquet):
        path, images, labels = parquet
        data = ParquetImages(path)
        assert len(data) == 60
        assert torch.equal(data.images, images)
        assert torch.equal(data.labels, labels)
        assert data.metainfo['classes'][3] == 'cat'

    def test_held_out_part_is_disjoint_balanced_and_always_the_same(self, parquet):
        path, images, _ = parquet
        train, val = (ParquetImages(path, part=part, held_out=20) for part in ('train', 'val'))
        assert (len(train), len(val)) == (40, 20)
        assert val.labels.bincount().tolist() == [2] * 10
        both = torch.cat([train.images, val.images]).flatten(1)
        assert len(both.unique(dim=0)) == len(images.flatten(1).unique(dim=0)) == 60
        assert torch.equal(ParquetImages(path, part='val', held_out=20).images, val.images)
        assert not torch.equal(ParquetImages(path, part='val', held_out=20, part_seed=1).images, val.images)

    def test_size_and_shrink(self, parquet):
        path, images, _ = parquet
        data = ParquetImages(path, part='train', held_out=20, size=23, shrink=2)
        assert sorted(data.labels.bincount().tolist()) == [2] * 7 + [3] * 3
        assert data.images.shape == (23, 3, 16, 16)
        whole = ParquetImages(path, shrink=2)
        expected = images.numpy().reshape(60, 3, 16, 2, 16, 2).astype(float).mean((3, 5)).round()
        assert abs(whole.images.numpy() - expected).max() == 0

    @pytest.mark.parametrize(('kwargs', 'sentence'), [
        (dict(part='test'), "unknown part 'test'"),
        (dict(part='val', held_out=70), 'need 7 of each, but class 0 has 6'),
        (dict(size=700), 'need 70 of each')])
    def test_bad_arguments(self, parquet, kwargs, sentence):
        with pytest.raises(ValueError, match=sentence):
            ParquetImages(parquet[0], **kwargs)

    def test_a_missing_file_is_named(self):
        with pytest.raises(FileNotFoundError, match=r"'nowhere\.parquet' do not exist: set data_root"):
            ParquetImages('nowhere.parquet')

    def test_whole_batches_reach_the_model(self, parquet):
        path, images, labels = parquet
        loader = Runner.build_dataloader(dict(batch_size=7, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                                              dataset=dict(type='bnn_plugins.ParquetImages', path=path)))
        batches = [ImagePreprocessor()(batch) for batch in loader]
        assert torch.equal(torch.cat([batch['inputs'] for batch in batches]), images / 255)
        assert torch.equal(torch.cat([batch['labels'] for batch in batches]), labels)


def test_cifar_binary(tmp_path):
    images, labels = pictures(30, 32, 0)
    for label_bytes in (1, 2):
        records = np.zeros((30, label_bytes + 3072), np.uint8)
        records[:, label_bytes - 1] = labels
        records[:, label_bytes:] = images.transpose(0, 3, 1, 2).reshape(30, -1)
        records[:20].tofile(tmp_path / 'data_batch_1.bin')
        records[20:].tofile(tmp_path / 'data_batch_2.bin')
        data = CifarBinary(str(tmp_path), ['data_batch_1.bin', 'data_batch_2.bin'], label_bytes, part='all')
        assert np.array_equal(data.images.permute(0, 2, 3, 1), images)
        assert data.labels.tolist() == labels.tolist()
    with pytest.raises(ValueError, match='no whole records of 3073'):
        CifarBinary(str(tmp_path), ['data_batch_1.bin'])
    with pytest.raises(FileNotFoundError, match=r'test_batch\.bin'):
        CifarBinary(str(tmp_path), ['test_batch.bin'])


def test_digits():
    train, test = DigitImages(), DigitImages(test=True, upscale=2)
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape[1:] == (1, 8, 8)
    assert test.images.shape[1:] == (1, 16, 16)
    for row in (0, 1):
        for column in (0, 1):
            assert torch.equal(test.images[:, :, row::2, column::2], DigitImages(test=True).images), 'each pixel four times'
    assert test.labels.bincount().tolist() == [36] * 10
    assert not {tuple(x) for x in test.images[:, 0, ::2, ::2].flatten(1).tolist()} & {
        tuple(x) for x in train.images.flatten(1).tolist()}


class TestFolder:
    def test_centre(self, tmp_path):
        """The middle of a wide image, after the shorter side became image_size / crop_ratio."""
        image = np.zeros((40, 80, 3), np.uint8)
        image[:, 20:60] = (10, 20, 200)  # blue, green, red
        (tmp_path / 'a').mkdir()
        cv2.imwrite(str(tmp_path / 'a/0.png'), image)
        sample = ImageFolder(str(tmp_path), image_size=20, crop_ratio=1.0)[0]
        assert sample['inputs'].shape == (3, 20, 20)
        assert sample['inputs'][:, 10, 10].tolist() == [200, 20, 10]
        assert (sample['inputs'][:, :, 1:-1] == torch.tensor([200, 20, 10])[:, None, None]).all()

    def test_the_centre_is_a_share_of_the_image(self, tmp_path):
        """With ``crop_ratio=0.5`` the middle half of the shorter side."""
        image = np.zeros((80, 120, 3), np.uint8)
        image[20:60, 40:80] = 200
        (tmp_path / 'a').mkdir()
        cv2.imwrite(str(tmp_path / 'a/0.png'), image)
        assert (ImageFolder(str(tmp_path), image_size=20, crop_ratio=0.5)[0]['inputs'] == 200).all()
        assert not ImageFolder(str(tmp_path), image_size=22, crop_ratio=0.55)[0]['inputs'][:, 0].any()

    def test_classes_and_random_parts(self, tmp_path):
        write_folder(tmp_path, 3, 4, 30)
        data = ImageFolder(str(tmp_path), image_size=16, train=True)
        assert len(data) == 12
        assert data.metainfo['classes'] == ('n00', 'n01', 'n02')
        batch, = data.__getitems__([0, 5, 11])
        assert batch['inputs'].shape == (3, 3, 16, 16)
        assert batch['labels'].tolist() == [0, 1, 2]
        assert not torch.equal(data[0]['inputs'], data[0]['inputs'])

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(ValueError, match='no folders of images'):
            ImageFolder(str(tmp_path))


def test_balanced_takes_each_class_alike():
    labels = torch.tensor([0] * 10 + [1] * 5 + [7] * 3)
    assert labels[balanced(labels, 8, 0)].tolist() == [0] * 3 + [1] * 3 + [7] * 2
    assert balanced(labels, 8, 0).tolist() == sorted(set(balanced(labels, 8, 0).tolist()))


class TestPreprocessor:
    def test_normalises(self):
        images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
        out = ImagePreprocessor(mean=[1, 2, 3], std=[4, 5, 6])(dict(inputs=[images], labels=[torch.tensor([3, 4])]))
        for channel in range(3):
            expected = (images[:, channel].numpy().astype(np.float32) - (channel + 1)) / (channel + 4)
            np.testing.assert_allclose(out['inputs'][:, channel].numpy(), expected, rtol=1e-6)
        assert out['labels'].tolist() == [3, 4]

    def test_single_images_are_stacked(self):
        images = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
        out = ImagePreprocessor()(dict(inputs=list(images), labels=[1, 2, 0]))
        assert torch.equal(out['inputs'], images / 255)
        assert out['labels'].tolist() == [1, 2, 0]

    @pytest.mark.parametrize(('pad', 'flip'), [(2, False), (0, True), (3, True)])
    def test_each_image_is_a_crop_of_the_padded_one(self, pad, flip):
        images = torch.randint(1, 256, (64, 2, 5, 6), dtype=torch.uint8)
        out = ImagePreprocessor(crop_padding=pad, flip=flip).augment(images)
        assert out.dtype == torch.uint8
        seen = set()
        for image, moved in zip(images.numpy(), out.numpy(), strict=True):
            padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
            found = {(top, left, mirror) for mirror in (False, True) for top in range(2 * pad + 1)
                     for left in range(2 * pad + 1)
                     if np.array_equal(np.flip(padded[:, top:top + 5, left:left + 6], 2) if mirror
                                       else padded[:, top:top + 5, left:left + 6], moved)}
            assert found
            seen |= found
        assert {mirror for *_, mirror in seen} == ({False, True} if flip else {False})
        assert len({(top, left) for top, left, _ in seen}) > (2 * pad + 1)**2 / 2
        assert min(seen)[0] == 0
        assert max(seen)[0] == 2 * pad

    def test_only_in_training(self):
        images = torch.randint(0, 256, (8, 1, 6, 6), dtype=torch.uint8)
        preprocessor, data = ImagePreprocessor(crop_padding=2, flip=True), dict(inputs=[images], labels=[torch.zeros(8)])
        assert torch.equal(preprocessor(data)['inputs'], images / 255)
        assert not torch.equal(preprocessor(data, training=True)['inputs'], images / 255)

    def test_channels_last(self):
        data = dict(inputs=[torch.zeros(2, 3, 4, 4, dtype=torch.uint8)], labels=[torch.zeros(2)])
        out = ImagePreprocessor(channels_last=True)(data)['inputs']
        assert out.is_contiguous(memory_format=torch.channels_last)


class TestAccuracy:
    def test_by_hand(self):
        scores = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [1.0, 0.0, 0.0]])
        metric = Accuracy(topk=(1, 2, 3, 5))
        metric.process(None, [dict(scores=scores[:3], labels=torch.tensor([2, 1, 0]))])
        metric.process(None, [dict(scores=scores[3:], labels=torch.tensor([0]))])
        result = metric.evaluate(4)
        # The third is a tie, which counts as the worse place.
        assert (result['top1'], result['top2']) == (50.0, 100.0)
        assert set(result) == {'top1', 'top2', 'loss'}, 'of three classes, the right one is always among three'
        assert result['loss'] == pytest.approx(-np.log([0.7, 0.3, 0.4, 1.0]).mean())

    def test_folds_are_every_other_image_of_all_batches(self):
        metric = Accuracy(topk=(1,), folds=2)
        metric.process(None, [dict(scores=torch.eye(3), labels=torch.tensor([0, 0, 2]))])
        metric.process(None, [dict(scores=torch.eye(3), labels=torch.tensor([0, 1, 0]))])
        result = metric.evaluate(6)
        assert (result['top1'], result['top1_fold0'], result['top1_fold1']) == pytest.approx((400 / 6, 300 / 3, 100 / 3))

    def test_images_that_were_dealt_twice_do_not_count(self):
        metric = Accuracy(topk=(1,))
        metric.process(None, [dict(scores=torch.eye(3), labels=torch.tensor([0, 1, 0]))])
        assert metric.evaluate(2)['top1'] == 100.0
