"""Binary (1-bit) detectors and diffusion models through their config."""

from .hosts import mmcv_ext
from .version import __version__

mmcv_ext.install()
