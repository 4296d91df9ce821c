#!/usr/bin/env python
"""The model of a config against its float twin, in turns: throughput of the packed model, or with --train its training."""

from bnn_plugins.apps.command_line import tool

if __name__ == '__main__':
    tool('benchmark')
