"""A stand-in for ``mmcv._ext`` in plain torch, for an mmcv that was installed without its compiled operators.

``pip install onedl-mmcv`` builds without the operators unless torch is visible to the build, and mmdet cannot even be
imported then. :func:`install` makes ``mmcv._ext`` importable in that case, and only then: an mmcv that has its
compiled operators keeps them. ``import bnn_plugins`` calls it, see :mod:`bnn_plugins.integrations.import_hooks`.

Importing this package costs nothing: torch and mmcv are imported when ``mmcv._ext`` is.

==========================  =================================================================
operator                    of which mmcv function
==========================  =================================================================
nms, softnms, nms_match     ``mmcv.ops.nms``, ``soft_nms``, ``batched_nms``, ``nms_match``
roi_align_forward/backward  ``mmcv.ops.roi_align``, ``RoIAlign``: 'avg' and 'max'
bbox_overlaps               ``mmcv.ops.bbox_overlaps``
sigmoid_focal_loss_*        ``mmcv.ops.sigmoid_focal_loss`` (mmdet's RetinaNet calls it on GPU)
deform_conv_*               ``mmcv.ops.deform_conv2d``, ``DeformConv2d`` and its packs
modulated_deform_conv_*     ``mmcv.ops.modulated_deform_conv2d`` (DCNv2) and its packs
carafe_*, carafe_naive_*    ``mmcv.ops.carafe``, ``CARAFE``, ``CARAFEPack``
masked_im2col/col2im_*      ``mmcv.ops.masked_conv2d``: guided anchoring's tests
get_compiler_version, ...   the environment report of a training log names the stand-in
anything else               can be imported; raises NotImplementedError with the remedy when called
==========================  =================================================================
"""

from .finder import active, install

__all__ = ['active', 'install']
