"""From a trained latent model to bits: packing, the packed layers, the packed file. Needs torch and safetensors only."""

from .bfloat16_layers import Bfloat16Conv2d, Bfloat16ConvTranspose2d, Bfloat16Linear
from .file import PackedFile, is_packed_file, load_packed_, read_packed, save_packed
from .fused import FusionReport, fuse_, fused_parts, fused_steps, unfuse_
from .int8_layers import Int8Conv2d, Int8ConvTranspose2d, Int8Linear, Int8Pixels2d
from .pack import PACKED, pack_
from .packed import PackedConv2d, PackedLayer, PackedLinear, PackedModule, register_packed, weight_levels
from .packed_attention import PackedAttention
from .packed_cells import PackedCell, PackedGateConv2d, PackedGateLinear
from .packed_convs import PackedConv1d, PackedConv3d, PackedConvTranspose2d
from .rest import RESTS, RestReport, quantize_rest_
from .verify import VerificationReport, verify

__all__ = ['PACKED', 'RESTS', 'Bfloat16Conv2d', 'Bfloat16ConvTranspose2d', 'Bfloat16Linear', 'FusionReport', 'Int8Conv2d',
           'Int8ConvTranspose2d', 'Int8Linear', 'Int8Pixels2d', 'PackedAttention',
           'PackedCell', 'PackedConv1d', 'PackedConv2d', 'PackedConv3d', 'PackedConvTranspose2d', 'PackedFile',
           'PackedGateConv2d', 'PackedGateLinear', 'PackedLayer', 'PackedLinear', 'PackedModule', 'RestReport',
           'VerificationReport', 'fuse_', 'fused_parts', 'fused_steps', 'is_packed_file', 'load_packed_', 'pack_',
           'quantize_rest_', 'read_packed', 'register_packed', 'save_packed', 'unfuse_', 'verify', 'weight_levels']
