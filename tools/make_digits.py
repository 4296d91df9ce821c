#!/usr/bin/env python
"""Make the digits set: real handwritten digits of scikit-learn on small canvases, COCO format, no download."""

from bnn_plugins.apps.command_line import tool

if __name__ == '__main__':
    tool('make_digits')
