"""Trains a binary (or float) diffusion model: python tools/train_diffusion.py configs/diffusion/ddpm_bidm_digits.py"""

import bnn_plugins  # noqa: F401
from bnn_plugins.apps.command_line import run
from bnn_plugins.apps.diffusion.train import main

if __name__ == '__main__':
    run(lambda: print(f'the pipeline is in {main()}'))
