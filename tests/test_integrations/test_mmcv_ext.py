"""The stand-in for mmcv._ext against loops written from the definitions, through mmcv's own wrappers where there are any."""

import itertools
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnn_plugins.integrations import mmcv_ext
from bnn_plugins.integrations.mmcv_ext import ops

pytest.importorskip('mmdet')
mmcv_ext.install()
mmcv_ops = pytest.importorskip('mmcv.ops')

ROOT = Path(__file__).parents[2]
without_compiled_ops = pytest.mark.skipif(not mmcv_ext.active(), reason='this mmcv has its compiled operators')


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    """Thousands of tiny products: threads that share a loaded core with other runs only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def python(code, *paths, **env):
    """Run code in a fresh interpreter; the last line that it printed, or its error output."""
    path = os.pathsep.join(map(str, (*paths, ROOT, ROOT / 'kernels')))
    clean = {k: v for k, v in os.environ.items() if k != 'BNN_PLUGINS_MMCV_EXT'}
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)],
        env={**clean, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', **env}, capture_output=True, text=True, timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


# ---------------------------------------------------------------------------------------------------- finding the module


@without_compiled_ops
def test_mmdet_registers_everything_in_a_fresh_process():
    assert python("""
        import sys
        from bnn_plugins.integrations import mmcv_ext
        before = set(sys.modules)
        mmcv_ext.install()
        assert mmcv_ext.active()
        assert not {name.split('.')[0] for name in set(sys.modules) - before} & {'mmcv', 'mmdet', 'torch'}
        assert sum(type(finder).__name__ == 'StandInFinder' for finder in sys.meta_path) == 1

        import mmdet
        from mmdet.utils import register_all_modules
        register_all_modules()

        import importlib.util, inspect, pkgutil
        import mmcv, mmcv._ext
        from mmcv.utils.ext_loader import check_ops_exist, load_ext
        assert importlib.util.find_spec('mmcv._ext') is mmcv._ext.__spec__
        assert not hasattr(pkgutil, 'find_loader') or (check_ops_exist() and pkgutil.find_loader('mmcv._ext'))
        assert load_ext('_ext', ['nms', 'deform_conv_forward']) is mmcv._ext and mmcv_ext.active()
        assert not hasattr(mmcv._ext, '__path__') and inspect.getmodule(mmcv._ext.nms)
        print('registered')
    """) == 'registered'


@without_compiled_ops
def test_environment_opts_out():
    assert python("""
        from bnn_plugins.integrations import mmcv_ext
        assert not mmcv_ext.active()
        try:
            import mmcv.ops
        except ModuleNotFoundError as error:
            print(error.name)
    """, BNN_PLUGINS_MMCV_EXT='0') == 'mmcv._ext'


@pytest.mark.parametrize('compiled', [True, False])
def test_steps_aside_for_a_real_module(tmp_path, compiled):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').write_text('imported = True')
    if compiled:
        (tmp_path / 'mmcv' / '_ext.py').write_text("get_compiler_version = lambda: 'real'")
    assert python("""
        import sys
        from bnn_plugins.integrations import mmcv_ext
        mmcv_ext.install()
        before = mmcv_ext.active()
        assert 'mmcv' not in sys.modules
        import mmcv._ext
        assert mmcv_ext.active() == before
        print(before, mmcv._ext.get_compiler_version()[:4])
    """, tmp_path) == ('False real' if compiled else 'True none')


def test_is_not_active_without_mmcv(monkeypatch):
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    assert not mmcv_ext.active()


@without_compiled_ops
def test_other_operators_refuse_when_called():
    x = torch.rand(1, 2, 5, 5)
    with pytest.raises(NotImplementedError, match=r"'psamask_forward' needs mmcv .* MMCV_WITH_OPS=1 pip install"):
        mmcv_ops.PSAMask('collect', (3, 3))(torch.rand(1, 9, 5, 5))
    with pytest.raises(NotImplementedError, match="'roi_pool_forward'"):
        mmcv_ops.roi_pool(x, torch.tensor([[0.0, 0, 0, 3, 3]]), (2, 2), 1.0)
    assert 'stand in' in mmcv_ops.get_compiler_version()


# ----------------------------------------------------------------------------------------------------------------- boxes


def iou(a, b, offset=0):
    """IoU of two boxes in float32, as NumPy scalars so that 0 / 0 is NaN."""
    one = np.float32(offset)
    with np.errstate(invalid='ignore', divide='ignore'):
        inter = max(np.float32(0), min(a[2], b[2]) - max(a[0], b[0]) + one) * max(
            np.float32(0), min(a[3], b[3]) - max(a[1], b[1]) + one)
        area_a, area_b = ((c[2] - c[0] + one) * (c[3] - c[1] + one) for c in (a, b))
        return inter / (area_a + area_b - inter)


def nms_by_definition(boxes, scores, threshold, offset, beats=np.greater):
    """Greedy NMS, one pair at a time: [(kept, [suppressed, ...]), ...]."""
    left = sorted(range(len(scores)), key=lambda i: -scores[i])  # sorted is stable
    groups = []
    while left:
        first, *left = left
        beaten = [j for j in left if beats(iou(boxes[first], boxes[j], offset), np.float32(threshold))]
        groups.append((first, beaten))
        left = [j for j in left if j not in beaten]
    return groups


@st.composite
def box_lists(draw, most=25):
    """Boxes on a coarse grid, so that identical, touching, empty and inside-out ones are common; scores with ties."""
    corner, side = st.integers(0, 6), st.integers(-1, 6)
    rows = draw(st.lists(st.tuples(corner, corner, side, side, st.integers(1, 6)), max_size=most))
    rows = np.array(rows, np.float32).reshape(-1, 5)
    return np.concatenate((rows[:, :2], rows[:, :2] + rows[:, 2:4]), 1), rows[:, 4] / np.float32(7)


@settings(max_examples=150, deadline=None)
@given(box_lists(), st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.7, 1.0]), st.sampled_from([0, 1]))
def test_nms_is_its_definition(drawn, threshold, offset):
    boxes, scores = drawn
    got = ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold, offset)
    assert got.tolist() == [kept for kept, _ in nms_by_definition(boxes, scores, threshold, offset)]


@settings(max_examples=60, deadline=None)
@given(box_lists(), st.sampled_from([0.25, 0.5, 1.0]))
def test_nms_match_is_its_definition(drawn, threshold):
    boxes, scores = drawn
    got = mmcv_ops.nms_match(np.concatenate((boxes, scores[:, None]), 1), threshold)
    want = nms_by_definition(boxes, scores, threshold, 0, beats=np.greater_equal)
    assert [group.tolist() for group in got] == [[kept, *beaten] for kept, beaten in want]


@pytest.mark.parametrize('spread', [20, 200])
def test_nms_over_several_blocks(spread):
    rng = np.random.default_rng(spread)
    corner = rng.uniform(0, spread, (700, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(1, 30, (700, 2))), 1).astype(np.float32)
    scores = (rng.integers(0, 40, 700) / 40).astype(np.float32)
    _, kept = mmcv_ops.nms(boxes, scores, 0.5)
    assert kept.tolist() == [i for i, _ in nms_by_definition(boxes, scores, 0.5, 0)]


def test_nms_through_the_wrappers():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    scores = torch.tensor([0.5, 0.9, 0.9, 0.05])
    dets, kept = mmcv_ops.nms(boxes, scores, 0.5, score_threshold=0.1)
    assert kept.tolist() == [1]
    assert torch.equal(dets, torch.tensor([[0, 0, 10, 10, 0.9]]))
    assert mmcv_ops.nms(boxes, scores, 0.5, max_num=1)[1].tolist() == [1]
    dets, kept = mmcv_ops.batched_nms(boxes, scores, torch.tensor([0, 1, 0, 1]), {'type': 'nms', 'iou_threshold': 0.5})
    assert sorted(kept.tolist()) == [1, 2, 3]  # classes do not suppress one another
    empty, none = mmcv_ops.nms(boxes[:0], scores[:0], 0.5)
    assert empty.shape == (0, 5)
    assert none.dtype == torch.long
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert ops.nms(boxes.to(dtype), scores.to(dtype), 0.5, 0).tolist() == [1, 3]


def soft_nms_by_definition(boxes, scores, threshold, sigma, min_score, method, offset):
    """Fig. 2 of the paper; boxes without area aside there are no ties, so the order is that of the scores."""
    left, scores, taken = list(range(len(boxes))), scores.copy(), []
    while left:
        best = max(left, key=lambda i: scores[i])
        left.remove(best)
        taken.append((best, scores[best]))
        for i in left:
            overlap = iou(boxes[best], boxes[i], offset)
            if method == 'gaussian':
                scores[i] *= np.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                scores[i] *= 1 - overlap if method == 'linear' else 0
        left = [i for i in left if scores[i] >= min_score]
    return taken


@pytest.mark.parametrize(('method', 'offset'), itertools.product(('naive', 'linear', 'gaussian'), (0, 1)))
@pytest.mark.parametrize('min_score', [0.0, 1e-3, 0.2])
def test_soft_nms_is_its_definition(method, offset, min_score):
    rng = np.random.default_rng(len(method))
    for count in (1, 2, 40, 80):
        corner = rng.uniform(0, 40, (count, 2))
        boxes = np.concatenate((corner, corner + rng.uniform(1, 30, (count, 2))), 1)
        scores = rng.permutation(count) / count + 0.01
        dets, kept = mmcv_ops.soft_nms(boxes, scores, 0.3, 0.5, min_score, method, offset)
        want = soft_nms_by_definition(boxes, scores, 0.3, 0.5, min_score, method, offset)
        alive = [(i, s) for i, s in want if s > 0]
        assert kept.tolist()[: len(alive)] == [i for i, _ in alive]
        assert sorted(kept) == sorted(i for i, _ in want)  # naive and min_score=0: the order among scores of 0 is free
        np.testing.assert_allclose(dets[:, 4], [s for _, s in want], rtol=1e-6)
        np.testing.assert_array_equal(dets[:, :4], boxes[kept])


def test_soft_nms_ties_follow_the_working_order_of_mmcv():
    """What mmcv's compiled softnms returned for these (checked once against its CPU source, built by hand)."""
    apart = np.array([[0, 0, 1, 1], [5, 0, 6, 1], [9, 0, 10, 1], [13, 0, 14, 1]], np.float32)
    _, kept = mmcv_ops.soft_nms(apart[:3], np.array([0.5, 0.5, 0.9], np.float32))
    assert kept.tolist() == [2, 1, 0]  # taking box 2 puts box 0 in its place, behind box 1
    twin = apart[[0, 0, 2, 3]]
    dets, kept = mmcv_ops.soft_nms(twin, np.array([0.9, 0.8, 0.5, 0.5], np.float32), method='naive')
    assert kept.tolist() == [0, 3, 2]  # the last box fills the place of box 1
    assert dets.shape == (3, 5)
    half = np.array([[0, 0, 2, 2], [0, 0, 2, 1], [9, 9, 10, 10]], np.float32)  # an overlap of exactly the threshold decays
    scores = np.array([0.75, 0.5, 0.25], np.float32)
    for method, decayed in (('linear', [0.75, 0.25, 0.25]), ('naive', [0.75, 0.25, 0])):
        dets, _ = mmcv_ops.soft_nms(half, scores, 0.5, min_score=0.0, method=method)
        assert sorted(dets[:, 4].tolist()) == sorted(decayed)
    assert mmcv_ops.soft_nms(half, scores, 0.5, min_score=0.25)[1].tolist() == [0, 1, 2], 'a score of exactly min_score stays'
    dets, kept = mmcv_ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)
    _, kept = mmcv_ops.soft_nms(apart, np.full(4, 1e-4, np.float32))
    assert kept.tolist() == [0]  # the first box is taken whatever its score
    point = np.array([[3, 1, 3, 1]] * 3, np.float32)  # 0 / 0 overlaps
    assert len(mmcv_ops.soft_nms(point, np.array([0.9, 0.5, 0.4], np.float32))[1]) == 3
    assert np.isnan(mmcv_ops.soft_nms(point, np.array([0.9, 0.5, 0.4], np.float32), method='gaussian')[0][1:, 4]).all()


@pytest.mark.parametrize('offset', [0, 1])
def test_bbox_overlaps(offset):
    a, b = torch.rand(2, 6, 4).sort().values * 20
    want = torch.tensor([[float(iou(p, q, offset)) for q in b.numpy()] for p in a.numpy()])
    torch.testing.assert_close(mmcv_ops.bbox_overlaps(a, b, offset=offset), want)
    torch.testing.assert_close(mmcv_ops.bbox_overlaps(a, b, aligned=True, offset=offset), want.diag())
    inside = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 0, 9, 9]])
    assert mmcv_ops.bbox_overlaps(*inside, mode='iof').item() == 0.5


# -------------------------------------------------------------------------------------------------------------- RoIAlign


def bilinear(size, at):
    """Neighbours and weights of one coordinate, or nothing outside [-1, size]."""
    if at < -1 or at > size:
        return []
    at = min(max(at, 0), size - 1)
    low = min(int(at), size - 1)
    return [(low, 1 - (at - low)), (min(low + 1, size - 1), at - low)]


def roi_align_by_definition(x, rois, pooled, scale, ratio, mode, aligned, grad=None):
    """Output and, given the gradient by it, the gradient by x: one sample at a time."""
    out, grad_x = np.zeros((len(rois), x.shape[1], *pooled)), np.zeros_like(x)
    for n, (image, *box) in enumerate(rois):
        x1, y1, x2, y2 = (c * scale - 0.5 * aligned for c in box)
        height, width = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1), max(x2 - x1, 1))
        cell = height / pooled[0], width / pooled[1]
        grid = [ratio or int(np.ceil(np.float32(side))) for side in cell]
        for p, q, c in np.ndindex(*pooled, x.shape[1]):
            samples = []  # value, [(row, column, weight), ...]
            for i, j in np.ndindex(*grid):
                y = y1 + p * cell[0] + (i + 0.5) * cell[0] / grid[0]  # in mmcv's order: a sample may lie on the border
                z = x1 + q * cell[1] + (j + 0.5) * cell[1] / grid[1]
                taps = [(r, s, u * v) for r, u in bilinear(x.shape[2], y) for s, v in bilinear(x.shape[3], z)]
                samples.append((sum(x[int(image), c, r, s] * w for r, s, w in taps), taps))
            if mode == 'max':
                value, taps = max(samples, key=lambda sample: sample[0], default=(-10000, []))
                share = 1
            else:
                share = max(len(samples), 1)
                value, taps = sum(v for v, _ in samples) / share, [tap for _, each in samples for tap in each]
            out[n, c, p, q] = value
            if grad is not None:
                for r, s, w in taps:
                    grad_x[int(image), c, r, s] += grad[n, c, p, q] * w / share
    return out, grad_x


ROIS = np.array([
    [0, 3.3, 2.1, 17.9, 12.4],
    [1, 0.0, 0.0, 26.0, 18.0],  # the image
    [1, -9.7, -7.2, 5.1, 3.9],  # over the upper left corner
    [0, 20.2, 11.6, 39.5, 31.3],  # over the lower right corner
    [0, 60.0, 60.0, 70.0, 70.0],  # outside
    [1, 7.5, 6.25, 7.5, 6.25],  # a point
    [0, 4.0, 9.0, 5.3, 9.0],  # a line
])
FLIPPED = [0, 12.0, 8.0, 5.0, 3.0]  # malformed: only aligned=False takes it


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 1, 2])
@pytest.mark.parametrize('scale', [0.5, 1.0])
def test_roi_align_is_its_definition(mode, aligned, ratio, scale):
    rng = np.random.default_rng(ratio)
    x, rois = rng.normal(size=(2, 2, 9, 13)), ROIS if aligned else np.vstack((ROIS, FLIPPED))
    grad = rng.normal(size=(len(rois), 2, 3, 2))
    args = (3, 2), scale, ratio, mode, aligned
    out, grad_x = roi_align_by_definition(x, rois, *args, grad)

    features = torch.from_numpy(x).requires_grad_()
    pooled = mmcv_ops.roi_align(features, torch.from_numpy(rois), *args)
    np.testing.assert_allclose(pooled.detach(), out, atol=1e-12)
    pooled.backward(torch.from_numpy(grad))
    np.testing.assert_allclose(features.grad, grad_x, atol=1e-12)


def test_roi_align_module():
    x, rois = torch.randn(2, 2, 9, 13), torch.from_numpy(ROIS).float()
    for mode in ('avg', 'max'):
        out, _ = roi_align_by_definition(x.numpy(), rois.numpy(), (3, 2), 0.5, 2, mode, True)
        np.testing.assert_allclose(mmcv_ops.RoIAlign((3, 2), 0.5, 2, mode, True)(x, rois), out, atol=1e-5)


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_gradcheck(mode, aligned, ratio):
    torch.manual_seed(0)
    x, rois = torch.randn(2, 1, 4, 5, dtype=torch.double, requires_grad=True), torch.from_numpy(ROIS[:4]) / 5
    rois[:, 0] = torch.tensor([0, 1, 1, 0])
    assert torch.autograd.gradcheck(lambda t: mmcv_ops.roi_align(t, rois, (2, 3), 0.7, ratio, mode, aligned), x)


def test_roi_align_over_several_chunks_of_boxes():
    rng = np.random.default_rng(0)
    x, corner = torch.randn(2, 3, 10, 11), rng.uniform(-2, 9, (150, 2))
    rois = torch.from_numpy(np.hstack((rng.integers(0, 2, (150, 1)), corner, corner + rng.uniform(0, 9, (150, 2))))).float()
    for mode in ('avg', 'max'):
        whole = mmcv_ops.roi_align(x, rois, 2, 1.0, 0, mode, True)
        parts = [mmcv_ops.roi_align(x, part, 2, 1.0, 0, mode, True) for part in rois.split(7)]
        torch.testing.assert_close(whole, torch.cat(parts))
    assert mmcv_ops.roi_align(x, rois[:0], 2, 1.0, 0, 'avg', True).shape == (0, 3, 2, 2)


def test_roi_align_precisions():
    x, rois = torch.randn(2, 4, 9, 13), torch.from_numpy(ROIS).float()
    want = mmcv_ops.roi_align(x, rois, 3, 0.5, 2, 'avg', True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(mmcv_ops.roi_align(x, rois, 3, 0.5, 2, 'avg', True), want)
    half = mmcv_ops.roi_align(x.half(), rois.half(), 3, 0.5, 2, 'avg', True)
    assert half.dtype == torch.half
    torch.testing.assert_close(half.float(), want, atol=2e-2, rtol=0)
    x = x.half().requires_grad_()
    mmcv_ops.roi_align(x, rois.half(), 3, 0.5, 2, 'max', True).sum().backward()
    assert x.grad.dtype == torch.half
    assert x.grad.any()


@pytest.mark.parametrize(
    ('roi', 'match'),
    [
        (FLIPPED, 'x2 >= x1'),
        ([0, 0, 0, float('nan'), 1], 'finite'),
        ([2, 0, 0, 1, 1], 'the 2 images'),
        ([-1, 0, 0, 1, 1], 'the 2 images'),
    ],
)
@without_compiled_ops
def test_roi_align_refuses(roi, match):
    with pytest.raises(ValueError, match=match):
        mmcv_ops.roi_align(torch.rand(2, 1, 4, 4), torch.tensor([roi]).float(), 2, 1.0, 2, 'avg', True)


# ------------------------------------------------------------------------------------------------------------ focal loss


@without_compiled_ops
def test_sigmoid_focal_loss():
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    x = torch.randn(8, 4, dtype=torch.double, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 4, 4, 0, 2])  # 4 is background
    one_hot = torch.nn.functional.one_hot(target, 5)[:, :4]
    got = mmcv_ops.sigmoid_focal_loss(x, target, 2.0, 0.25, None, 'none')
    torch.testing.assert_close(got, py_sigmoid_focal_loss(x, one_hot, reduction='none'))
    weight = torch.rand(4, dtype=torch.double)
    for args in ((1.5, 0.3, None, 'sum'), (2.0, 0.25, None, 'mean')):
        assert torch.autograd.gradcheck(lambda t, args=args: mmcv_ops.sigmoid_focal_loss(t, target, *args), x)
    assert torch.autograd.gradcheck(lambda t: mmcv_ops.sigmoid_focal_loss(t, target[:4], 2.0, 0.25, weight, 'sum'), x[:4])
    torch.testing.assert_close(  # a weight is that of the target class, for all logits of the row
        mmcv_ops.sigmoid_focal_loss(x[:4], target[:4], 2.0, 0.25, weight, 'none'), got[:4] * weight[target[:4], None])
    sure = torch.tensor([[40.0]])
    assert mmcv_ops.sigmoid_focal_loss(sure, torch.tensor([1]), 2.0, 0.25, None, 'sum').item() == pytest.approx(30.0)


# ------------------------------------------------------------------------------------ deformable convolutions, CARAFE, im2col


def pixel(plane, y, x):
    """One bilinear sample, by its definition: outside of the image all is 0."""
    total = 0.0
    for py in (int(np.floor(y)), int(np.floor(y)) + 1):
        for px in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= py < plane.shape[0] and 0 <= px < plane.shape[1]:
                total += (1 - abs(y - py)) * (1 - abs(x - px)) * plane[py, px].item()
    return total


def deformed(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups):
    """Equation 1 of Deformable ConvNets v2, as loops."""
    (images, channels, *_), (filters, per_group, kh, kw) = x.shape, weight.shape
    out = torch.zeros(images, filters, *offset.shape[2:], dtype=x.dtype)
    for n, o, i, j in np.ndindex(*out.shape):
        total = 0.0 if bias is None else bias[o].item()
        for c, p, q in np.ndindex(per_group, kh, kw):
            channel = c + o // (filters // groups) * per_group
            tap = channel // (channels // deform_groups) * kh * kw + p * kw + q
            y = i * stride[0] - padding[0] + p * dilation[0] + offset[n, 2 * tap, i, j].item()
            at = j * stride[1] - padding[1] + q * dilation[1] + offset[n, 2 * tap + 1, i, j].item()
            factor = 1 if mask is None else mask[n, tap, i, j].item()
            total += weight[o, c, p, q].item() * factor * pixel(x[n, channel], y, at)
        out[n, o, i, j] = total
    return out


GEOMETRIES = [dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, deform_groups=1),
              dict(stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2, deform_groups=2),
              dict(stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=1, deform_groups=4)]


def deformable(geometry, dtype=torch.float64, whole=False):
    """Tensors of a deformable convolution with 3x2 filters on a 6x5 image; ``whole``: offsets of whole pixels."""
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(
        (6, 5), (3, 2), geometry['stride'], geometry['padding'], geometry['dilation'], strict=True)]
    x, weight, bias = draw(2, 4, 6, 5), draw(6, 4 // geometry['groups'], 3, 2), draw(6)
    offset = draw(2, 12 * geometry['deform_groups'], *size) * 2
    mask = draw(2, 6 * geometry['deform_groups'], *size).sigmoid()
    return x, offset.round() if whole else offset, mask, weight, bias


@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize('whole', [False, True])
def test_deformable_convolutions_are_their_definition(geometry, whole):
    x, offset, mask, weight, bias = deformable(geometry, whole=whole)
    arguments = geometry.values()
    torch.testing.assert_close(mmcv_ops.deform_conv2d(x, offset, weight, *arguments),
                               deformed(x, offset, None, weight, None, **geometry))
    torch.testing.assert_close(mmcv_ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *arguments),
                               deformed(x, offset, mask, weight, bias, **geometry))


def test_offsets_of_a_larger_level():
    """DyHead hands a level the offsets of the larger one below; mmcv's kernels take them as they lie in memory."""
    geometry = GEOMETRIES[0]
    x, offset, mask, weight, bias = deformable(geometry)
    grown = [torch.cat([t.flatten(1), torch.randn(2, 3 * t[0].numel())], 1).reshape(2, t.shape[1], 2 * t.shape[2], -1)
             for t in (offset, mask)]
    torch.testing.assert_close(mmcv_ops.modulated_deform_conv2d(x, *grown, weight, bias, *geometry.values()),
                               deformed(x, offset, mask, weight, bias, **geometry))


def test_zero_offsets_are_a_convolution():
    x, offset, mask, weight, bias = deformable(GEOMETRIES[0])
    expected = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    offset, mask = torch.zeros_like(offset), torch.ones_like(mask)
    torch.testing.assert_close(mmcv_ops.modulated_deform_conv2d(x, offset, mask, weight, bias, 1, 1), expected)
    torch.testing.assert_close(mmcv_ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1) + bias[:, None, None],
                               expected)


@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_deformable_convolutions_gradcheck(geometry):
    x, offset, mask, weight, bias = (t.requires_grad_() for t in deformable(geometry))
    torch.autograd.gradcheck(lambda *t: mmcv_ops.deform_conv2d(*t, *geometry.values()), (x, offset, weight))
    tensors = (x, offset, mask, weight, bias)
    torch.autograd.gradcheck(lambda *t: mmcv_ops.modulated_deform_conv2d(*t, *geometry.values()), tensors)


def test_the_derivative_at_a_whole_pixel_is_the_one_to_its_right():
    """Offsets begin at zero, where the interpolation has a kink."""
    x = torch.tensor([[[[1., 2, 5]]]])
    offset = torch.zeros(1, 2, 1, 3, requires_grad=True)
    mmcv_ops.deform_conv2d(x, offset, torch.ones(1, 1, 1, 1)).sum().backward()
    assert offset.grad[0, 1, 0].tolist() == [1, 3, -5]
    offset = torch.zeros(1, 2, 1, 5, requires_grad=True)
    mmcv_ops.deform_conv2d(x, offset, torch.ones(1, 1, 1, 1), 1, (0, 1)).sum().backward()
    assert offset.grad[0, 1, 0].tolist() == [0, 1, 3, -5, 0], 'one at -1 is outside, and has no derivative'


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_deformable_convolutions_in_half_precision(dtype):
    tensors = deformable(GEOMETRIES[1], dtype)
    out = mmcv_ops.modulated_deform_conv2d(*tensors, *GEOMETRIES[1].values())
    exact = mmcv_ops.modulated_deform_conv2d(*(t.float() for t in tensors), *GEOMETRIES[1].values())
    assert torch.equal(out, exact.to(dtype))


@pytest.mark.parametrize(('kernel', 'groups', 'scale'), [(3, 1, 2), (5, 2, 1), (1, 4, 3)])
def test_carafe_is_its_definition(kernel, groups, scale):
    x, masks = torch.randn(2, 4, 3, 5, dtype=torch.float64), torch.randn(2, groups * kernel**2, 3 * scale, 5 * scale,
                                                                         dtype=torch.float64)
    expected, reach = torch.zeros(2, 4, 3 * scale, 5 * scale, dtype=torch.float64), kernel // 2
    for n, c, i, j in np.ndindex(*expected.shape):
        for p, q in np.ndindex(kernel, kernel):
            y, at, group = i // scale + p - reach, j // scale + q - reach, c // (4 // groups)
            if 0 <= y < 3 and 0 <= at < 5:
                expected[n, c, i, j] += masks[n, group * kernel**2 + p * kernel + q, i, j] * x[n, c, y, at]
    torch.testing.assert_close(mmcv_ops.carafe(x, masks, kernel, groups, scale), expected)
    torch.testing.assert_close(mmcv_ops.carafe_naive(x, masks, kernel, groups, scale), expected)
    tensors = (x.requires_grad_(), masks.requires_grad_())
    torch.autograd.gradcheck(lambda *t: mmcv_ops.carafe(*t, kernel, groups, scale), tensors)


def test_masked_convolution_is_one_at_the_places_of_the_mask():
    x, weight, bias = torch.randn(1, 3, 6, 5), torch.randn(4, 3, 3, 3), torch.randn(4)
    mask = (torch.rand(1, 6, 5) > 0.5).float()
    expected = torch.nn.functional.conv2d(x, weight, bias, padding=1) * mask
    torch.testing.assert_close(mmcv_ops.masked_conv2d(x, mask, weight, bias, 1), expected)
    assert not mmcv_ops.masked_conv2d(x, mask * 0, weight, bias, 1).any()


# --------------------------------------------------------------------------------------------------- a detector, and time


def test_two_stage_detector_trains_and_predicts():
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmdet.utils import register_all_modules
    from mmengine.hub import get_config
    from mmengine.registry import DefaultScope

    register_all_modules(init_default_scope=False)
    torch.manual_seed(0)
    cfg = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    cfg.backbone.update(depth=18, base_channels=16, init_cfg=None, frozen_stages=-1, norm_eval=False)
    cfg.neck.update(in_channels=[16, 32, 64, 128], out_channels=32)
    cfg.rpn_head.update(in_channels=32, feat_channels=32)
    cfg.roi_head.bbox_roi_extractor.out_channels = 32
    cfg.roi_head.bbox_head.update(in_channels=32, fc_out_channels=64, num_classes=4)
    cfg.test_cfg.rcnn.score_thr = 0.0
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg)
        batch = model.data_preprocessor(demo_mm_inputs(2, [[3, 96, 128], [3, 90, 80]], num_classes=4), True)
        loss, logs = model.parse_losses(model.loss(batch['inputs'], batch['data_samples']))
        loss.backward()
        assert torch.isfinite(loss)
        assert {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox'} <= logs.keys()
        for name in ('backbone.conv1.weight', 'neck.fpn_convs.0.conv.weight', 'roi_head.bbox_head.fc_cls.weight'):
            assert model.get_parameter(name).grad.abs().sum() > 0, name
        model.eval()
        for nms in ({'type': 'nms', 'iou_threshold': 0.5}, {'type': 'soft_nms', 'iou_threshold': 0.5, 'min_score': 0.01}):
            model.roi_head.test_cfg.nms = nms
            with torch.no_grad():
                found = [sample.pred_instances for sample in model.predict(batch['inputs'], batch['data_samples'])]
            assert all(len(one) and one.bboxes.isfinite().all() for one in found)


@without_compiled_ops
def test_takes_no_longer_than_a_detector_can_wait():
    """Measured on one idle core: 30 ms, 60 ms and 55 ms; the bounds leave room for a loaded machine."""
    torch.manual_seed(0)
    corner = torch.rand(3000, 2) * 800
    boxes, scores = torch.cat((corner, corner + torch.rand(3000, 2) * 150 + 5), 1), torch.rand(3000)
    x, rois = torch.randn(1, 256, 100, 152), torch.cat((torch.zeros(512, 1), boxes[:512]), 1)  # stride 8

    def seconds(call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    assert min(seconds(lambda: mmcv_ops.nms(boxes, scores, 0.7)) for _ in range(3)) < 0.5
    assert min(seconds(lambda: mmcv_ops.soft_nms(boxes, scores, 0.5, min_score=0.05)) for _ in range(3)) < 1
    assert min(seconds(lambda: mmcv_ops.roi_align(x, rois, 7, 0.125, 0, 'avg', True)) for _ in range(3)) < 2
