"""The rules that hold for any model: for torch's own layers, and for names that many libraries share."""

from torch.nn.modules.conv import _ConvNd

from .rules import Candidate, RuleSet, known

IMAGE_CHANNELS = 4  # grey, RGB, RGBA


def channel_attention(c: Candidate) -> str | None:
    return 'channel attention: its input is a vector of means' if c.inside(*known('channel_attention')) else None


def reads_image(c: Candidate) -> str | None:
    if isinstance(c.module, _ConvNd) and c.module.in_channels <= IMAGE_CHANNELS:
        return f'reads the image ({c.module.in_channels} channels)'
    return None


def depthwise(c: Candidate) -> str | None:
    if isinstance(c.module, _ConvNd) and c.module.groups == c.module.in_channels > 1:
        return f'depthwise: sums of only {c.module.weight[0].numel()} signs'
    return None


def real_shortcut(c: Candidate) -> str | None:
    if isinstance(c.module, _ConvNd) and set(c.module.kernel_size) == {1} and known('shortcuts') & set(c.parts):
        return 'shortcut: carries the real-valued stream'
    return None


RULES = RuleSet(
    'generic',
    structure=(channel_attention, reads_image, depthwise, real_shortcut),
    names={
        'part of the stem': {'stem', 'conv_stem', 'patch_embed', 'focus'},
        'prediction layer': {'fc', 'classifier'},
        'adapter beside a layer': {'lora_A', 'lora_B'},  # peft's, a few numbers that start as zeros
    },
    shortcuts={'downsample', 'shortcut', 'skip', 'residual'},
    channel_attention={'SqueezeExcite', 'SEModule'},
    roles={'recurrent': lambda c: c.inside('*LSTM*')},
)
