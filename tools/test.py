#!/usr/bin/env python
"""Evaluate a checkpoint, or a packed .safetensors file: the flags of mmdet's tools/test.py."""

from bnn_plugins.apps.command_line import tool

if __name__ == '__main__':
    tool('test')
