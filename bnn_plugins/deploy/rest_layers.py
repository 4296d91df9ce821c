"""The classes of real layers in fewer bits, by what they are."""

from torch import nn

from .bfloat16_layers import BFLOAT16_CLASSES
from .int8_layers import INT8_CLASSES, PIXEL_CLASSES
from .rest_layer import RestLayer

REST_CLASSES: dict[str, dict[type[nn.Module], type[RestLayer]]] = {
    'int8': INT8_CLASSES, 'int8-pixels': PIXEL_CLASSES, 'bfloat16': BFLOAT16_CLASSES}


def rest_forms(model: nn.Module, layers: dict[str, str]) -> dict[nn.Module, RestLayer]:
    """``{real layer: its form}``, whatever its values, for those whose form ``layers``, ``{name: signature}``, names."""
    classes = {name: REST_CLASSES.get(signature.partition(' ')[0], {}) for name, signature in layers.items()}
    return {module: classes[name][type(module)].from_latent(module) for name, module in model.named_modules()
            if type(module) in classes.get(name, {})}
