"""The scanning backbone and the necks with memory."""

import copy

import pytest
import torch

from bnn_plugins import fuse_, pack_, summarize, verify
from bnn_plugins.layers import BinaryLSTMCell, BinaryScan2d
from bnn_plugins.models import BNNBiLSTMNeck, BNNConvLSTMNeck, BNNRows, BNNSequencer


def test_scan_of_columns_and_rows():
    """Each direction carries what it saw along its own line only."""
    torch.manual_seed(0)
    scan = BinaryScan2d(8).eval()
    x = torch.randn(2, 8, 5, 6)
    out = scan(x)
    assert out.shape == x.shape
    changed = x.clone()
    changed[0, :, 2, 3] *= -1
    where = (scan(changed) != out).any(1)
    assert not where[1].any()
    assert where[0, 2, 3]
    line = torch.zeros(5, 6, dtype=torch.bool)
    line[2], line[:, 3] = True, True
    assert not where[0][~line].any()
    assert where[0][:, 3].sum() > 1
    assert where[0][2].sum() > 1
    columns = scan.columns(x[0].permute(1, 2, 0))[0].permute(2, 0, 1)
    torch.testing.assert_close(out[0, :4], columns)
    with pytest.raises(ValueError, match='no multiple of 4'):
        BinaryScan2d(6)


@pytest.mark.parametrize('options', [dict(), dict(expand=dict(tau=2)), dict(lstm=dict(cell='gated_linear')),
                                     dict(scan_stages=(1,), num_stages=2, strides=(1, 2), dilations=(1, 1),
                                          out_indices=(0, 1)),
                                     dict(with_cp=True, lstm=dict(gates='binary', norm='ln'))], ids=str)
def test_sequencer(options):
    model = BNNSequencer(18, base_channels=16, **options)
    model.init_weights()
    outs = model.train()(torch.randn(2, 3, 64, 96))
    assert [out.shape[1:] for out in outs] == [(16 * 2**i, 16 // 2**i, 24 // 2**i) for i in range(len(outs))]
    sum(out.square().mean() for out in outs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    x = torch.randn(1, 3, 64, 96)
    model.eval()
    expected = model(x)
    packed = pack_(copy.deepcopy(model))
    for one, other in zip(packed(x), expected, strict=True):
        assert torch.equal(one, other)
    assert verify(model, packed, x).ok
    fused = fuse_(packed)
    assert fused.fused
    assert verify(model, packed, x).ok


def test_sequencer_keeps_the_initialisation_of_its_cells():
    model = BNNSequencer(18, base_channels=16)
    model.init_weights()
    cells = [m for m in model.modules() if isinstance(m, BinaryLSTMCell)]
    assert len(cells) == 2 * 4
    for cell in cells:
        assert cell.hidden.weight.abs().max() <= cell.hidden_size ** -0.5
        assert (cell.bias.view(4, -1)[1] == 1).all()
    with pytest.raises(ValueError, match='do not fit the stages'):
        BNNSequencer(18, scan_stages=(4,))
    with pytest.raises(KeyError, match='depth'):
        BNNSequencer(50)


def test_binary_operations_of_a_scan():
    """Four directions: inputs C to 4 C/4 gates, states C/4 to 4 C/4 gates, at each position."""
    row = summarize(BinaryScan2d(16), torch.randn(1, 16, 5, 6)).totals
    assert row.bops == 4 * (16 * 16 + 4 * 16) * 30


def test_rows_read_an_image_from_top_to_bottom():
    model = BNNRows(6, dict(type='bnn_plugins.BinaryLSTM', hidden_size=8)).eval()
    x = torch.randn(2, 1, 5, 6)
    features, = model(x)
    assert features.shape == (2, model.feat_dim)
    assert torch.equal(features, model.rnn(model.embedding(x[:, 0]))[0][:, -1])


def maps(count=2):
    return tuple(torch.randn(count, 8, size, size + 1) for size in (6, 3))


@pytest.mark.parametrize('neck', [BNNBiLSTMNeck, BNNConvLSTMNeck])
def test_a_new_neck_changes_nothing_and_learns(neck):
    torch.manual_seed(0)
    model, x = neck(8, 2).train(), maps()
    outs = model(x)
    assert all(torch.equal(out, one) for out, one in zip(outs, x, strict=True))
    sum(out.square().mean() for out in outs).backward()
    assert all(scale.grad.any() for scale in model.scales)
    with torch.no_grad():
        for scale in model.scales:
            scale.fill_(0.5)
    if neck is BNNConvLSTMNeck:
        model.set_frames([(0, 0), (0, 1)])  # a clip: the first frame alone reaches no weight of the hidden product
    sum(out.square().mean() for out in model(x)).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    only = neck(8, 2, levels=(1,))
    assert len(only.scales) == 1
    with pytest.raises(ValueError, match='do not fit the 2 levels'):
        neck(8, 2, levels=(2,))
    with pytest.raises(ValueError, match='built for 2 levels'):
        model(x[:1])


@pytest.mark.parametrize('neck', [BNNBiLSTMNeck, BNNConvLSTMNeck])
def test_necks_pack(neck):
    model, x = awake(neck(8, 2)), maps()
    expected = model(x)
    packed = pack_(copy.deepcopy(model))
    fuse_(packed)
    for one, other in zip(packed(x), expected, strict=True):
        assert torch.equal(one, other)


def awake(neck):
    for scale in neck.scales:
        torch.nn.init.uniform_(scale, 0.5, 1)
    return neck.eval()


def said(neck, x, frames):
    neck.set_frames(frames)
    return neck(x)


class TestMemory:
    def setup_method(self):
        torch.manual_seed(0)
        self.neck = awake(BNNConvLSTMNeck(8, 2))
        self.clip = maps(4)  # four frames of one clip
        self.whole = said(self.neck, self.clip, [(7, i) for i in range(4)])

    def frame(self, index):
        return tuple(level[index:index + 1] for level in self.clip)

    def check(self, outs, index):
        for out, whole in zip(outs, self.whole, strict=True):
            torch.testing.assert_close(out, whole[index:index + 1])

    def test_frames_one_by_one_are_the_clip(self):
        for index in range(4):
            self.check(said(self.neck, self.frame(index), [(7, index)]), index)

    def test_memory_matters(self):
        out = said(self.neck, self.frame(2), [(7, 0)])
        assert not torch.equal(out[0], self.whole[0][2:3])

    @pytest.mark.parametrize('frames', [[(8, 1)], [(7, 0)], [(7, 3)], None], ids=['other', 'again', 'gap', 'unknown'])
    def test_reset_between_clips(self, frames):
        """Another clip, the clip from its beginning, a gap, an image of which nothing is said: no memory."""
        fresh = awake(BNNConvLSTMNeck(8, 2))
        fresh.load_state_dict(self.neck.state_dict())
        said(self.neck, self.frame(0), [(7, 0)])
        for one, other in zip(said(self.neck, self.frame(1), frames), fresh(self.frame(1)), strict=True):
            assert torch.equal(one, other)

    def test_training_forgets(self):
        said(self.neck, self.frame(0), [(7, 0)])
        self.neck.train().eval()
        assert self.neck.before is None
        assert not self.neck.states

    def test_clips_side_by_side(self):
        """A training batch of two whole clips, and of clips of different lengths: each is by itself."""
        two = tuple(torch.cat([level, level.flip(0)]) for level in self.clip)
        frames = [(7, i) for i in range(4)] + [(9, i) for i in range(4)]
        self.neck.train()
        for norm in self.neck.norms:
            norm.eval()
        for out, whole in zip(said(self.neck, two, frames), self.whole, strict=True):
            torch.testing.assert_close(out[:4], whole, rtol=1e-4, atol=1e-5)
        uneven = tuple(torch.cat([level, level[:2]]) for level in self.clip)
        for out, whole in zip(said(self.neck, uneven, frames[:6]), self.whole, strict=True):
            torch.testing.assert_close(out[:4], whole, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(out[4:], whole[:2], rtol=1e-4, atol=1e-5)

    def test_a_batch_that_goes_on_with_one_clip_and_begins_another(self):
        """The state kept from the call before is that of the first clip only; what is kept now is that of the last."""
        first, second = self.frame(1), self.frame(2)
        alone = awake(BNNConvLSTMNeck(8, 2))
        alone.load_state_dict(self.neck.state_dict())
        expected, after = said(alone, second, [(8, 0)]), said(alone, self.frame(3), [(8, 1)])
        said(self.neck, self.frame(0), [(7, 0)])
        outs = said(self.neck, tuple(torch.cat(pair) for pair in zip(first, second, strict=True)), [(7, 1), (8, 0)])
        self.check([out[:1] for out in outs], 1)
        for out, one in zip(outs, expected, strict=True):
            torch.testing.assert_close(out[1:], one)
        for out, one in zip(said(self.neck, self.frame(3), [(8, 1)]), after, strict=True):
            torch.testing.assert_close(out, one)

    def test_a_wrong_number_of_frames(self):
        with pytest.raises(ValueError, match='3 frames were announced, but 4 images came'):
            said(self.neck, self.clip, [(7, 0)] * 3)
