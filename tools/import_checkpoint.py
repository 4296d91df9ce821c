#!/usr/bin/env python
"""A checkpoint that the authors of a paper published becomes one of this project: --from reactnet model_best.pth out.pth"""

from bnn_plugins.apps.command_line import tool

if __name__ == '__main__':
    tool('import_checkpoint')
