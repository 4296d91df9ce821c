#!/usr/bin/env python
"""Detections for all pictures below a folder, by several workers; a run that was interrupted goes on where it was."""

from bnn_plugins.apps.command_line import tool

if __name__ == '__main__':
    tool('predict')
