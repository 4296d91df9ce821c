#!/usr/bin/env python
"""Train a detector, a classifier or a sequence model: the flags of mmdet's tools/train.py."""

from bnn_plugins.apps.command_line import tool

if __name__ == '__main__':
    tool('train')
