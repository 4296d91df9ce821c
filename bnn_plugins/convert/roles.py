"""What a layer does in a diffusers model, by the classes around it and its name."""

from collections.abc import Callable

ATTENTION_PROJECTIONS = {'to_q', 'to_k', 'to_v', 'to_out', 'to_qkv', 'add_q_proj', 'add_k_proj', 'add_v_proj', 'to_add_out'}


def _has(parents: tuple[str, ...], *words: str) -> bool:
    return any(word in parent for parent in parents for word in words)


# role -> does the layer of this dotted name, inside of modules of these classes, have it? In this order.
ROLES: dict[str, Callable[[list[str], tuple[str, ...]], bool]] = {
    'recurrent': lambda parts, parents: _has(parents, 'LSTM'),
    'resnet_conv': lambda parts, parents: _has(parents, 'ResnetBlock') and parts[-1] in ('conv1', 'conv2'),
    'resample_conv': lambda parts, parents: _has(parents, 'Downsample2D', 'Upsample2D'),
    'attn_proj': lambda parts, parents: _has(parents, 'Attention') and bool(ATTENTION_PROJECTIONS & set(parts)),
    'ff': lambda parts, parents: _has(parents, 'FeedForward'),
}


def role_of(name: str, parents: tuple[str, ...]) -> str | None:
    """The role of a layer, or ``None``. ``name`` is dotted, ``parents`` are the class names around it, outermost first."""
    return next((role for role, fits in ROLES.items() if fits(name.split('.'), parents)), None)
