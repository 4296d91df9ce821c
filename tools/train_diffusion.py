"""Trains a binary (or float) diffusion model: python tools/train_diffusion.py configs/diffusion/ddpm_bidm_digits.py"""

import sys

import bnn_plugins  # noqa: F401
from bnn_plugins.apps.diffusion.train import main

if __name__ == '__main__':
    try:
        print(f'the pipeline is in {main()}')
    except (FileNotFoundError, FileExistsError, ValueError, FloatingPointError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
