"""Packages of both libraries (bnn_plugins, and bnn_kernels in kernels/) and the version; the rest is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

version = re.search(r"__version__ = '(.+)'", Path(__file__).with_name('bnn_plugins').joinpath('version.py').read_text())

setup(
    version=version.group(1),
    packages=find_packages(include=['bnn_plugins*']) + find_packages('kernels', include=['bnn_kernels*']),
    package_dir={'bnn_kernels': 'kernels/bnn_kernels'},
    # .mim links to configs and tools: OpenMMLab's convention for finding them in an installed package.
    package_data={'bnn_plugins': ['.mim/**/*.py', '.mim/**/*.yml', 'hosts/mmdet/*.j2']},
)
