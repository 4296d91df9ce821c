"""Which layers of mmdet's models must stay float. Neither mmdet nor mmcv is imported."""

from ...convert import RuleSet
from .forms import FORMS
from .probe import probe

RULES = RuleSet(
    'mmdet',
    # Swin's merging is between the stages: no shortcut goes around it.
    classes={'projection of the real-valued stream': {'PatchMerging'},
             # PointRend: beside features each layer reads coarse predictions, which begin with one sign.
             'reads predictions': {'MaskPointHead'}},
    names={
        'prediction layer': {
            'retina_cls', 'retina_reg', 'conv_cls', 'conv_reg', 'conv_obj', 'conv_centerness', 'atss_cls', 'atss_reg',
            'atss_centerness', 'gfl_cls', 'gfl_reg', 'rtm_cls', 'rtm_reg', 'rtm_obj', 'rpn_cls', 'rpn_reg', 'fc_cls', 'fc_reg',
            'cls_score', 'bbox_pred', 'convs_pred', 'multi_level_conv_cls', 'multi_level_conv_reg', 'multi_level_conv_obj',
            'cls_branches', 'reg_branches', 'heatmap_head', 'wh_head', 'offset_head', 'conv_logits',
        },
        'fully connected layer of a box head': {'shared_fcs'},
        # Of deformable attention: where it samples, and how much each sample counts.
        'positions and weights of samples: numbers, not features': {'sampling_offsets', 'attention_weights'},
    },
    channel_attention={'SELayer', 'ChannelAttention', 'SplitAttentionConv2d', 'DyReLU'},
    # mmcv's Conv2d and Linear only add a case for empty inputs, which torch has handled itself since 1.5.
    plain_modules={'mmcv.cnn.bricks.wrappers'},
    forms=FORMS,
    probe=probe,
)
