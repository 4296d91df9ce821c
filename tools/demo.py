#!/usr/bin/env python
"""Train a binary detector on handwritten digits, pack it, run the bits, write one page about it. Interrupted? Run it again."""

from bnn_plugins.apps.command_line import tool

if __name__ == '__main__':
    tool('demo')
