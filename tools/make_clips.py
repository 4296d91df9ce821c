#!/usr/bin/env python
"""Make clips of BCCD: data/bccd/BCCD work_dirs/bccd_clips"""

from bnn_plugins.apps.command_line import tool

if __name__ == '__main__':
    tool('make_clips')
