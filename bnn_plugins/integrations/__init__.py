"""What is added to mmengine, mmdet, mmcv, diffusers and PEFT, one folder for each.

What ``import bnn_plugins`` changes in these packages is the table of :mod:`.import_hooks`. The rule sets (``rules.py`` of a
folder: which layers of its models stay float) import nothing of the package that they are about.
"""
