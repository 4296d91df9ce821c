"""Packages of both libraries (bnn_plugins, and bnn_kernels in kernels/), the compiled engine, and the version.

The rest is in pyproject.toml. The engine is optional: without a C++20 compiler the installation goes on and says what is lost.
"""

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.egg_info import egg_info

ROOT = Path(__file__).parent
SOURCES = Path('kernels/bnn_kernels/cpu/src')
FLAGS = ['-std=c++20', '-O3', '-g0', '-fvisibility=hidden', '-ffp-contract=off', '-Wall', '-Wextra',
         '-Wno-uninitialized', '-Wno-maybe-uninitialized']  # GCC 12 warns of the "undefined" vectors of its own headers
OPENMP = [] if sys.platform == 'darwin' else ['-fopenmp']  # Apple's clang has none: the engine is serial there
LOST = """
The engine of bnn_kernels was not compiled. Everything works, but packed operators run on slower backends: numba, plain torch.
To get it, install a C++20 compiler (g++ 12 or newer, or clang) and install this package again.
"""
version = re.search(r"__version__ = '(.+)'", ROOT.joinpath('bnn_plugins', 'version.py').read_text())


class BuildEngine(build_ext):
    """A plain shared library with a C interface: no Python headers, so neither its name nor its symbols depend on Python."""

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split('.')) + '.so'

    def get_export_symbols(self, ext):
        return []

    def build_extension(self, ext):
        compile_all = self.compiler.compile

        def compile_each(sources: list[str], **options) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # a compiler for each core
                objects = pool.map(lambda source: compile_all([source], **options), sources)
                return [made for each in objects for made in each]

        self.compiler.compile = compile_each
        try:
            super().build_extension(ext)
        except Exception:
            self.announce(LOST, level=30)  # a warning: pip shows it with --verbose, the backend's reason at run time
            raise


class BuildWheel(bdist_wheel):
    """One wheel for all versions of Python on a platform."""

    def get_tag(self):
        return 'py3', 'none', super().get_tag()[2]


class WriteMetadata(egg_info):
    """mmengine looks for configs in the first package that top_level.txt names; setuptools sorts them."""

    def run(self):
        super().run()
        Path(self.egg_info, 'top_level.txt').write_text('bnn_plugins\nbnn_kernels\n')


setup(
    version=version.group(1),
    packages=find_packages(include=['bnn_plugins*']) + find_packages('kernels', include=['bnn_kernels*']),
    package_dir={'bnn_kernels': 'kernels/bnn_kernels'},
    # .mim links to configs and tools: OpenMMLab's convention for finding them in an installed package.
    package_data={
        'bnn_kernels': ['py.typed', 'triton/*.toml'],
        'bnn_plugins': ['py.typed', *(f'.mim/**/*.{suffix}' for suffix in ('py', 'yml', 'yaml', 'sh', 'sbatch')), 'apps/*.j2',
                        'analysis/*.j2', 'analysis/*.css', 'zoo/*.json', 'zoo/*.safetensors'],
    },
    ext_modules=[Extension(
        'bnn_kernels.cpu._engine',
        sources=sorted(map(str, SOURCES.glob('*.cpp'))),
        depends=sorted(map(str, SOURCES.glob('*.hpp'))),
        language='c++',
        extra_compile_args=[*FLAGS, *OPENMP],
        extra_link_args=OPENMP,
        optional=True,
    )],
    cmdclass={'build_ext': BuildEngine, 'bdist_wheel': BuildWheel, 'egg_info': WriteMetadata},
)
