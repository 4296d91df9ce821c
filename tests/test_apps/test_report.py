"""The report page from small made-up inputs: complete, self-contained, well-formed, and honest about names with markup."""

import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

pytest.importorskip('jinja2')
pytest.importorskip('matplotlib')

from bnn_plugins.analysis import Summary, SummaryRow
from bnn_plugins.apps.report import Boxes, Report, Sample, data_uri, draw_curves, ink, read_scalars, write_report

NUMBERS = {'latent_map50': 0.931, 'packed_map50': 0.929, 'bytes_float': 12_000_000, 'bytes_packed': 1_500_000,
           'minutes': 6.25, 'minutes_training': 4.25}
VOID = ('meta', 'source', 'img', 'br')


def summary() -> Summary:
    rows = [
        SummaryRow('backbone.conv1', 'Conv2d', '32x64x64', flops=9_000_000, params_float=4704, bytes_float=18816,
                   bytes_latent=18816, bytes_packed=18816),
        SummaryRow('backbone.layer1.0.conv1', 'BinaryConv2d', '32x32x32', '1x1', 9216, 32, bops=9_437_184, bytes_float=36864,
                   bytes_latent=36992, bytes_packed=1280),
    ]
    totals = SummaryRow('total', 'RetinaNet', bits='', params_binary=9216, bytes_float=55680, bytes_latent=55808,
                        bytes_packed=20096, bops=9_437_184, flops=9_000_000)
    return Summary(rows, totals, 20500, 'cpu')


@pytest.fixture
def report(tmp_path):
    image = tmp_path / 'image.png'
    cv2.imwrite(str(image), np.full((96, 128, 3), 120, np.uint8))
    truth = Boxes([(10, 20, 40, 60), (100, 1, 127, 30)], [0, 1])
    found = Boxes([(11, 20, 41, 60)], [0], [0.876])
    samples = [Sample(image, 128, 96, {'ground truth': truth, 'latent': found, 'packed': found})] * 2
    return Report(
        title='Digits & <cells>', lead='What ran.', numbers=NUMBERS, facts={'Training': '20 epochs', 'Backend': 'cpu'},
        commands=['python tools/demo.py'], classes=('one', '<two>'), palette=[(200, 0, 0), (255, 255, 0)], samples=samples,
        training={'loss': {50: 1.0, 100: 0.5}}, validation={'bbox_mAP_50': {1: 0.4, 2: 0.8}}, summary=summary())


class Balance(HTMLParser):
    """Collects what does not close, and every address outside of the page."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for key, value in attrs if key in ('src', 'href', 'srcset')]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [value for key, value in attrs if key in ('src', 'href', 'srcset')]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_is_complete_and_stands_alone(report, tmp_path):
    page = write_report(report, tmp_path / 'new' / 'folder').read_text()
    balance = Balance()
    balance.feed(page)
    assert balance.open == balance.wrong == []
    assert all(address.startswith(('data:', '#')) for address in balance.addresses)
    for part in ('0.931', '0.929', '11.4 MiB', '1.4 MiB', '8.0 times smaller', '4.2 min', '6.2 min in all', '20 epochs',
                 'ground truth', 'one 0.88', 'backbone.layer1.0.conv1', 'BinaryConv2d', '1x1', 'python tools/demo.py',
                 'Ran: cpu', 'prefers-color-scheme: dark'):
        assert part in page, part
    assert page.count('<svg') == 6
    assert page.count('stroke-dasharray') == 2 * 2  # ground truth of two boxes on two images


def test_names_are_escaped(report, tmp_path):
    page = write_report(report, tmp_path).read_text()
    assert 'Digits &amp; &lt;cells&gt;' in page
    assert '&lt;two&gt;' in page
    assert '<two>' not in page


def test_the_json_holds_the_numbers(report, tmp_path):
    write_report(report, tmp_path)
    numbers = json.loads((tmp_path / 'report.json').read_text())
    assert {key: numbers[key] for key in NUMBERS} == NUMBERS
    assert numbers['facts']['Backend'] == 'cpu'


@pytest.mark.parametrize('number', [float('inf'), float('nan')])
def test_the_json_is_json(number, report, tmp_path):
    """Infinity and NaN are none."""
    report.numbers = NUMBERS | {'difference': number}
    with pytest.raises(ValueError, match='not JSON compliant'):
        write_report(report, tmp_path)


def test_no_samples_no_curves(report, tmp_path):
    report.samples, report.training, report.validation = [], {}, {}
    assert 'Training' in write_report(report, tmp_path).read_text()


def test_labels_stay_inside_of_the_image(report, tmp_path):
    page = write_report(report, tmp_path).read_text()
    for x, width in re.findall(r'<rect x="([\d.-]+)" y="[\d.-]+" width="([\d.]+)"', page):
        assert float(x) >= 0
        assert float(x) + float(width) <= 128.01


def test_scalars_of_a_resumed_run(tmp_path):
    def log(run, *records):
        path = tmp_path / run / 'vis_data' / 'scalars.json'
        path.parent.mkdir(parents=True)
        path.write_text(''.join(json.dumps(record) + '\n' for record in records))

    log('20250101_000000', {'loss': 3.0, 'loss_cls': 2.0, 'time': 0.1, 'step': 50},
        {'coco/bbox_mAP_50': 0.1, 'time': 0.3, 'step': 1}, {'loss': 2.5, 'step': 100})
    log('20250101_000100', {'loss': 2.0, 'step': 100}, {'coco/bbox_mAP_50': 0.2, 'step': 2})
    training, validation = read_scalars(tmp_path)
    assert training == {'loss': {50: 3.0, 100: 2.0}, 'loss_cls': {50: 2.0}, 'time': {50: 0.1}}
    assert validation == {'bbox_mAP_50': {1: 0.1, 2: 0.2}, 'time': {1: 0.3}}


def test_curves_are_the_same_each_time():
    curves = {'loss': {1: 1.0, 2: 0.5}}, {'bbox_mAP_50': {1: 0.5}}
    assert draw_curves(*curves) == draw_curves(*curves)


def test_small_helpers(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'abc')
    assert data_uri(tmp_path / 'a.png') == 'data:image/png;base64,YWJj'
    assert (ink((255, 255, 0)), ink((0, 0, 128))) == ('#000', '#fff')


@pytest.mark.parametrize('module', ['jinja2', 'matplotlib'])
def test_says_what_is_missing(report, tmp_path, monkeypatch, module):
    monkeypatch.setitem(__import__('sys').modules, module, None)
    with pytest.raises(ImportError, match=f'pip install {module}'):
        write_report(report, tmp_path)
