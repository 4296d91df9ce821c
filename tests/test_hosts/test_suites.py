"""The hosts' own tests over binary models, see :mod:`.suites`; skipped without a checkout."""

import pytest

from .suites import HERE, Suite, suites

ALL = [(path.stem, suite) for path in sorted(HERE.glob('*.toml')) for suite in suites(path)]


@pytest.mark.parametrize(('host', 'suite'), ALL, ids=[
    '-'.join(filter(None, (host, suite.binary, suite.file))) for host, suite in ALL])
def test_suite(host, suite, tmp_path):
    if suite.absent:
        pytest.skip(suite.absent)
    unexpected, idle, passed = suite.compare(tmp_path)
    assert not unexpected
    assert not idle, 'they pass: take them from the list'
    assert passed
    print(f'{host}: {passed} tests of {suite.file} pass')  # pytest -rP shows it


def test_what_is_compared(tmp_path):
    """Mutation: a test that fails with the plugin alone is not told of, or one that the list names without need."""
    (tmp_path / 'test_toy.py').write_text(
        'import os\nimport sys\nimport pytest\n\nbinary = "toy_plugin" in sys.modules\n\n'
        'class TestToy:\n    def test_both(self):\n        assert os.environ["TOY"] == "1"\n\n'
        '    @pytest.mark.parametrize("x", [0, 1])\n    def test_one(self, x):\n        assert not (binary and x)\n\n'
        '    def test_neither(self):\n        assert False\n\n    def test_skipped(self):\n        pytest.skip("no")\n')
    (tmp_path / 'toy_plugin.py').write_text('')
    environment = {'TOY': '1'}

    def compared(fails, binary='toy_plugin'):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('PYTHONPATH', str(tmp_path), prepend=':')
            return Suite(tmp_path, 'test_toy.py', '', [], binary, fails, environment).compare(tmp_path)

    unexpected, idle, passed = compared({})
    assert [said.partition(': ')[0] for said in unexpected] == ['TestToy::test_one[1]']
    assert (idle, passed) == ([], 2)
    assert compared({'*::test_one[[]1]': 'odd'}) == ([], [], 2)
    assert compared({'*::test_one*': 'odd', '*::test_both': 'never'})[:2] == ([], ['*::test_both'])
    assert compared({'*::test_one*': 'odd', '*::test_neither': 'fails for all'})[1] == []
    unexpected, _, passed = compared({}, binary='')
    assert [said.partition(': ')[0] for said in unexpected] == ['TestToy::test_neither'], 'all has to pass'
    assert passed == 3
