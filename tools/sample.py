#!/usr/bin/env python
"""Draw pictures from a saved diffusion pipeline, latent, packed on the way, or packed already."""

from bnn_plugins.apps.command_line import tool

if __name__ == '__main__':
    tool('sample')
