#!/usr/bin/env python
"""Write text with a character model: configs/sequence/blstm_text.py and its checkpoint or packed file."""

from bnn_plugins.apps.command_line import tool

if __name__ == '__main__':
    tool('sample_text')
