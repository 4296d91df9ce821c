"""Text drawn from a trained character model; what ``tools/sample_text.py`` calls."""

import torch
from mmengine.runner import load_checkpoint

from ..deploy import load_packed_
from ..integrations.mmengine.run import load_config
from ..registry import DATASETS, MODELS


def sample_text(config: str, checkpoint: str, prompt: str = '\n', length: int = 300, temperature: float = 0.8, seed: int = 0,
                cfg_options: dict | None = None) -> str:
    """``prompt`` and ``length`` characters behind it, from a checkpoint or a packed file.

    Raises:
        ValueError: for a prompt with characters that the text of the config does not have.
    """
    cfg = load_config(config, cfg_options=cfg_options)
    characters = DATASETS.build(cfg.test_dataloader.dataset).characters
    unknown = sorted(set(prompt) - set(characters))
    if unknown:
        raise ValueError(f'the prompt has {unknown[0]!r}, which the text of the model does not have')
    model = MODELS.build(cfg.model)
    if checkpoint.endswith('.safetensors'):
        load_packed_(model, checkpoint)
    else:
        load_checkpoint(model, checkpoint, map_location='cpu')
    tokens = torch.tensor([characters.index(character) for character in prompt])
    drawn = model.eval().generate(tokens, length, temperature, seed)
    return prompt + ''.join(characters[token] for token in drawn)
