"""``BinaryUNet2DModel``: diffusers' UNet with binary blocks. Saved pipelines name this module: one that
moves the class adds the old name to ``alias_old_modules`` of :mod:`bnn_plugins.integrations.import_hooks`."""

from dataclasses import replace

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (diffusers looks for it beside the class it loads)
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from ...binarize.lookup import check_keys, unknown
from ...layers import FirstCopy, Tile, expanded_width
from . import bi_diffsr, scan_blocks, transformer  # noqa: F401  (register their blocks)
from .blocks import BLOCKS, BlockOptions, binarize_block_
from .cross_timestep import CrossTimestepConnection
from .quantizer import align_, guard_

PREFIX = 'Binary'
HOST_BLOCKS = {
    'down': ('DownBlock2D', 'AttnDownBlock2D', 'ResnetDownsampleBlock2D', 'SkipDownBlock2D', 'AttnSkipDownBlock2D'),
    'mid': ('UNetMidBlock2D',),
    'up': ('UpBlock2D', 'AttnUpBlock2D', 'ResnetUpsampleBlock2D', 'SkipUpBlock2D', 'AttnSkipUpBlock2D'),
}


class BucketedTimesteps(nn.Module):
    """The timestep projection with the one-hot code of the timestep's bucket behind it. ``[N]`` -> ``[N, C + buckets]``."""

    def __init__(self, time_proj: nn.Module, buckets: int, num_train_timesteps: int):
        super().__init__()
        self.time_proj, self.buckets, self.num_train_timesteps = time_proj, buckets, num_train_timesteps

    def forward(self, timesteps: Tensor) -> Tensor:
        bucket = (timesteps * self.buckets // self.num_train_timesteps).long().clamp(0, self.buckets - 1)
        embedding = self.time_proj(timesteps)
        return torch.cat([embedding, nn.functional.one_hot(bucket, self.buckets).to(embedding.dtype)], 1)


class BucketedTimeEmbedding(nn.Module):
    """Embeds the projection and hands the bucket on. ``[N, C + buckets]`` -> ``[N, temb_channels + buckets]``."""

    def __init__(self, time_embedding: nn.Module, buckets: int):
        super().__init__()
        self.time_embedding, self.buckets = time_embedding, buckets

    def forward(self, sample: Tensor) -> Tensor:
        return torch.cat([self.time_embedding(sample[:, :-self.buckets]), sample[:, -self.buckets:]], 1)


class BinaryUNet2DModel(UNet2DModel):
    """``UNet2DModel`` whose blocks may be binary: ``'BinaryX'`` for ``X`` of diffusers, and every name of ``register_block``.

    Real stay ``conv_in``, ``conv_out``, the embeddings, norms, shortcuts between widths and the attention's scores. Float
    blocks may stand beside binary ones. Every stream is as wide as in the float model; with ``expand`` it is ``tau * groups``
    times wider at the same number of binary weights and operations.

    Args:
        method (str | dict): see :func:`bnn_plugins.list_methods`.
        pad_value (int): -1, 0 or 1.
        expand (dict | None): ``dict(tau=2, ...)``, see :class:`bnn_plugins.layers.Expansion`.
        time_buckets (int): timestep buckets with thresholds and RPReLUs of their own (BI-DiffSR uses 5), 0 for none; the
            timestep embedding shifts every threshold in any case.
        block_methods (dict | None): ``{'mid_block': method, 'down_blocks.1': method}``, where a block has a method of its own
            (BinaryDM has two bases in the outer blocks only).
        cross_timestep (dict | None): ``dict(buckets=100, initial=0.0)`` adds a :class:`CrossTimestepConnection`.
        the others: as in ``UNet2DModel``. ``num_train_timesteps`` (default 1000) also divides the buckets.

    Raises:
        ValueError: for an unknown block, method or option; for float blocks together with ``time_buckets`` or ``expand``.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = 'positional',
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ('BinaryDownBlock2D', 'BinaryAttnDownBlock2D', 'BinaryAttnDownBlock2D',
                                             'BinaryAttnDownBlock2D'),
        mid_block_type: str | None = 'BinaryUNetMidBlock2D',
        up_block_types: tuple[str, ...] = ('BinaryAttnUpBlock2D', 'BinaryAttnUpBlock2D', 'BinaryAttnUpBlock2D',
                                           'BinaryUpBlock2D'),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = 'conv',
        upsample_type: str = 'conv',
        dropout: float = 0.0,
        act_fn: str = 'silu',
        attention_head_dim: int | None = 8,
        norm_num_groups: int | None = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = 'default',
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        method: str | dict = 'reactnet',
        pad_value: int = 0,
        expand: dict | None = None,
        time_buckets: int = 0,
        cross_timestep: dict | None = None,
        block_methods: dict[str, str | dict] | None = None,
    ):
        mid_block_types = [] if mid_block_type is None else [mid_block_type]
        names = dict(down=list(down_block_types), mid=mid_block_types, up=list(up_block_types))
        plain = {kind: [host_block(kind, name) for name in names[kind]] for kind in names}
        is_float = [name for kind in names for name in names[kind] if name in HOST_BLOCKS[kind]]
        if is_float and (time_buckets or expand):
            raise ValueError(f'time_buckets and expand change what every block gets, and {is_float[0]!r} is a float block: '
                             f'write {PREFIX}{is_float[0]}')
        time_embedding_dim = time_embedding_dim or block_out_channels[0] * 4
        widths = [expanded_width(channels, expand) for channels in block_out_channels]
        # By keyword: the host takes what is not for a default, which from_config leaves out.
        super().__init__(
            sample_size=sample_size, in_channels=in_channels, out_channels=out_channels,
            center_input_sample=center_input_sample, time_embedding_type=time_embedding_type,
            time_embedding_dim=time_embedding_dim, freq_shift=freq_shift, flip_sin_to_cos=flip_sin_to_cos,
            down_block_types=tuple(plain['down']), mid_block_type=plain['mid'][0] if plain['mid'] else None,
            up_block_types=tuple(plain['up']), block_out_channels=tuple(widths), layers_per_block=layers_per_block,
            mid_block_scale_factor=mid_block_scale_factor, downsample_padding=downsample_padding,
            downsample_type=downsample_type, upsample_type=upsample_type, dropout=dropout, act_fn=act_fn,
            attention_head_dim=attention_head_dim, norm_num_groups=norm_num_groups,
            attn_norm_num_groups=attn_norm_num_groups, norm_eps=norm_eps, resnet_time_scale_shift=resnet_time_scale_shift,
            add_attention=add_attention, class_embed_type=class_embed_type, num_class_embeds=num_class_embeds,
            num_train_timesteps=num_train_timesteps)
        # What the host registered are its own block names and the wide widths.
        self.register_to_config(down_block_types=down_block_types, mid_block_type=mid_block_type,
                                up_block_types=up_block_types, block_out_channels=block_out_channels,
                                time_embedding_dim=time_embedding_dim)
        blocks_of = dict(down='down_blocks.{}', mid='mid_block', up='up_blocks.{}')
        known = [blocks_of[kind].format(index) for kind in names for index in range(len(names[kind]))]
        check_keys('block in block_methods', block_methods or {}, known)

        def build_block(kind: str, index: int, name: str, host: nn.Module) -> nn.Module:
            own = (block_methods or {}).get(blocks_of[kind].format(index), method)
            return binary_block(kind, name, host, replace(options, method=own))

        groups = norm_num_groups or min(block_out_channels[0] // 4, 32)  # as the host's last norm
        options = BlockOptions(method, pad_value, expand, time_embedding_dim, time_buckets, groups, norm_eps)
        for kind, blocks in (('down', self.down_blocks), ('up', self.up_blocks)):
            for index, name in enumerate(names[kind]):
                blocks[index] = build_block(kind, index, name, blocks[index])
        if mid_block_type is not None:
            self.mid_block = build_block('mid', 0, mid_block_type, self.mid_block)
        if time_buckets:
            self.time_proj = BucketedTimesteps(self.time_proj, time_buckets, num_train_timesteps or 1000)
            self.time_embedding = BucketedTimeEmbedding(self.time_embedding, time_buckets)
        copies = widths[0] // block_out_channels[0]
        if copies > 1:
            # The stem and the head of the base network: the copies are made behind the one, the first feeds the other.
            first = block_out_channels[0]
            self.conv_in = nn.Sequential(nn.Conv2d(in_channels, first, 3, padding=1), Tile(copies))
            self.conv_norm_out = nn.Sequential(FirstCopy(copies), nn.GroupNorm(groups, first, norm_eps))
            self.conv_out = nn.Conv2d(first, out_channels, 3, padding=1)
        if cross_timestep is not None:
            CrossTimestepConnection(self, num_train_timesteps=num_train_timesteps or 1000, **cross_timestep)
        guard_(self)

    def forward(self, sample: Tensor, *args, **kwargs):
        """As ``UNet2DModel``; raises ``ValueError`` for a height or width that cannot be halved by every level."""
        divisor = 2 ** (len(self.down_blocks) - 1)
        if any(side % divisor for side in sample.shape[-2:]):
            raise ValueError(f'height and width must be multiples of {divisor}, which the {len(self.down_blocks)} levels of '
                             f'this UNet halve, but got {sample.shape[-2]} x {sample.shape[-1]}')
        return super().forward(sample, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        align_(model)
        return (model, info) if output_loading_info else model


def host_block(kind: str, name: str) -> str:
    """The block of diffusers that is built in the place of ``name``."""
    known = {**{host: host for host in HOST_BLOCKS[kind]}, **{PREFIX + host: host for host in HOST_BLOCKS[kind]},
             **{own: stands_for for own, (stands_for, _) in BLOCKS[kind].items()}}
    if name not in known:
        raise ValueError(unknown(f'{kind} block', name, known))
    return known[name]


def binary_block(kind: str, name: str, host: nn.Module, options: BlockOptions) -> nn.Module:
    if name in HOST_BLOCKS[kind]:
        return host
    if name in BLOCKS[kind]:
        return BLOCKS[kind][name][1](host, options)
    return binarize_block_(host, options)
