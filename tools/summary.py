#!/usr/bin/env python
"""Parameters, BOPs, FLOPs, OPs and memory of the model of a config, layer by layer."""

from bnn_plugins.apps.command_line import tool

if __name__ == '__main__':
    tool('summary')
