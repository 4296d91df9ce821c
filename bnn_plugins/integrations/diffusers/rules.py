"""Which layers of diffusers' models must stay float, and the roles of the others. diffusers is not imported."""

from ...convert import Candidate, RuleSet
from .forms import FORMS
from .probe import probe

PROJECTIONS = {'to_q', 'to_k', 'to_v', 'to_out', 'to_qkv', 'add_q_proj', 'add_k_proj', 'add_v_proj', 'to_add_out'}


def resnet_conv(c: Candidate) -> bool:
    return c.inside('*ResnetBlock*') and c.parts[-1] in ('conv1', 'conv2')


def resample_conv(c: Candidate) -> bool:
    return c.inside('*Downsample2D*', '*Upsample2D*')


def attention_projection(c: Candidate) -> bool:
    return c.inside('*Attention*') and bool(PROJECTIONS & set(c.parts))


def feed_forward(c: Candidate) -> bool:
    return c.inside('*FeedForward*')


RULES = RuleSet(
    'diffusers',
    classes={'modulates a norm': {'AdaLayerNorm*', 'AdaGroupNorm*'}},
    names={
        'part of the stem': {'conv_in'},
        'prediction layer': {'conv_out'},
        'embedding or projection of a timestep, a class or a position': {
            'time_embed', 'time_embedding', 'time_embedder', 'timestep_embedder', 'time_emb_proj', 'time_proj', 'adaln_single',
            'class_embedding', 'add_embedding', 'label_emb', 'pos_embed', 'time_text_embed', 'context_embedder', 'x_embedder',
            'caption_projection', 'norm_out',
        },
        # Linear layers or 1x1 convolutions around a stack of Transformer blocks.
        'projection of the real-valued stream': {'proj_in', 'proj_out', 'proj_out_1', 'proj_out_2'},
    },
    shortcuts={'conv_shortcut'},
    roles={'resnet_conv': resnet_conv, 'resample_conv': resample_conv, 'attn_proj': attention_projection, 'ff': feed_forward},
    weight_readers={'FirDownsample2D', 'FirUpsample2D'},
    forms=FORMS,
    probe=probe,
)
