"""Draws pictures from a diffusion pipeline: python tools/sample.py work_dirs/ddpm_bidm_digits --pack"""

import sys

import bnn_plugins  # noqa: F401
from bnn_plugins.apps.diffusion.sample import main

if __name__ == '__main__':
    try:
        main()
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
