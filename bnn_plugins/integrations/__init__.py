"""Plugs into mmengine, mmdet, mmcv and diffusers. What they change there at import is the table of :mod:`.import_hooks`."""
