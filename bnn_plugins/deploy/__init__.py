"""From a trained latent model to bits: packing, the packed layers, the packed file. Needs torch and safetensors only."""

from .file import PackedFile, is_packed_file, load_packed_, read_packed, save_packed
from .fused import FusionReport, fuse_, fused_parts, fused_steps, unfuse_
from .int8 import Int8Report, quantize_rest_
from .int8_layers import Int8Conv2d, Int8ConvTranspose2d, Int8Linear
from .pack import PACKED, pack_
from .packed import PackedConv2d, PackedLayer, PackedLinear, PackedModule, register_packed, weight_levels
from .packed_attention import PackedAttention
from .packed_cells import PackedCell, PackedGateConv2d, PackedGateLinear
from .packed_convs import PackedConv1d, PackedConv3d, PackedConvTranspose2d
from .verify import VerificationReport, verify

__all__ = ['PACKED', 'FusionReport', 'Int8Conv2d', 'Int8ConvTranspose2d', 'Int8Linear', 'Int8Report', 'PackedAttention',
           'PackedCell', 'PackedConv1d', 'PackedConv2d', 'PackedConv3d', 'PackedConvTranspose2d', 'PackedFile',
           'PackedGateConv2d', 'PackedGateLinear', 'PackedLayer', 'PackedLinear', 'PackedModule', 'VerificationReport',
           'fuse_', 'fused_parts', 'fused_steps', 'is_packed_file', 'load_packed_', 'pack_', 'quantize_rest_', 'read_packed',
           'register_packed', 'save_packed', 'unfuse_', 'verify', 'weight_levels']
