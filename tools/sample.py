"""Draws pictures from a diffusion pipeline: python tools/sample.py work_dirs/ddpm_bidm_digits --pack"""

import bnn_plugins  # noqa: F401
from bnn_plugins.apps.command_line import run
from bnn_plugins.apps.diffusion.sample import main

if __name__ == '__main__':
    run(main)
