#!/usr/bin/env python
"""Train a binary (or float) diffusion model: the flags of diffusers' example. A config file sets the defaults."""

from bnn_plugins.apps.command_line import tool

if __name__ == '__main__':
    tool('train_diffusion')
