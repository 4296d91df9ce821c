"""What the stand-in for ``mmcv._ext`` holds: the operators below, and a clear refusal for every other one.

Names, argument names and their order are those that mmcv's Python wrappers call (mmcv 2.x and onedl-mmcv 2.3). As in
mmcv, results are written into the tensors that the caller passes, and gradients are the wrappers' business.
"""

import functools

from .bbox import bbox_overlaps, nms, nms_match, softnms
from .deform_conv import (
    carafe_backward,
    carafe_forward,
    carafe_naive_backward,
    carafe_naive_forward,
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    masked_col2im_forward,
    masked_im2col_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from .focal_loss import sigmoid_focal_loss_backward, sigmoid_focal_loss_forward
from .roi_align import roi_align_backward, roi_align_forward

__all__ = [
    'bbox_overlaps',
    'carafe_backward',
    'carafe_forward',
    'carafe_naive_backward',
    'carafe_naive_forward',
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'nms',
    'nms_match',
    'roi_align_backward',
    'roi_align_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softnms',
]


def get_compiler_version() -> str:
    """What mmcv prints as 'MMCV Compiler' in the environment report of a run."""
    return 'none: plain torch operators of bnn_plugins stand in for mmcv._ext'


def get_compiling_cuda_version() -> str:
    """What mmcv prints as 'MMCV CUDA Compiler' in the environment report of a run."""
    return 'not available'


@functools.cache
def unsupported(name: str):
    """The module's ``__getattr__``: mmcv must be able to import every operator, so the refusal waits for the call.

    Raises:
        AttributeError: for names with a leading underscore, so that Python's own look-ups on modules keep working.
    """
    if name.startswith('_'):
        raise AttributeError(f"module 'mmcv._ext' (torch stand-in of bnn_plugins) has no attribute {name!r}")

    def refuse(*args, **kwargs):
        raise NotImplementedError(
            f"mmcv operator '{name}' needs mmcv with its compiled ops, and this mmcv was installed without them: "
            'MMCV_WITH_OPS=1 pip install --no-build-isolation --force-reinstall --no-deps onedl-mmcv'
        )

    refuse.__name__ = refuse.__qualname__ = name
    return refuse
