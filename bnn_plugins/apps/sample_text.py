"""Text drawn from a trained character model; what ``tools/sample_text.py`` calls."""

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
    model = MODELS.build(cfg.model)
    model.dataset_meta = DATASETS.build(cfg.test_dataloader.dataset).metainfo
    model.tokens(prompt)  # before weights are read: what is wrong with it does not depend on them
    if checkpoint.endswith('.safetensors'):
        load_packed_(model, checkpoint)
    else:
        load_checkpoint(model, checkpoint, map_location='cpu')
    return model.eval().write(prompt, length, temperature, seed)
