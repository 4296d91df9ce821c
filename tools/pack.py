#!/usr/bin/env python
"""Pack a checkpoint: bits, scales, the layers that stay real and the config in one .safetensors file."""

from bnn_plugins.apps.command_line import tool

if __name__ == '__main__':
    tool('pack')
