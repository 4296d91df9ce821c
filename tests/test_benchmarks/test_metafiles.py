"""The index files of the configs are those that the command writes, with a paper where a name has a method's."""

import pytest

from benchmarks import metafiles


def test_the_files_are_up_to_date():
    assert [path.name for path, text in metafiles.files().items() if path.read_text() != text] == []


@pytest.mark.parametrize(('name', 'number'), [
    ('resnet20_es-recu-tau2_cifar10', '2503.23709'), ('resnet20_dorefa-w1a2_cifar10', '1606.06160'),
    ('ddpm_bidm_digits', '2412.05926'), ('retinanet_r18_fpn_bccd', None), ('resnet20_rebnn_cifar10', '2302.00956')])
def test_paper(name, number):
    assert metafiles.paper(name) == number


def test_what_was_never_trained_says_so():
    entries = {entry['Name']: entry for entry in metafiles.models('classification')}
    assert entries['bnext-l_imagenet']['Results'] == 'not yet run'
    assert entries['resnet20_recu_cifar10']['Published'].startswith('top-1 87.5 %')
