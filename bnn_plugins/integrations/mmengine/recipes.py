"""Recipes: overrides that a config takes from several files, ``configs/_base_/recipes``."""

from mmengine.config import Config

PREFIX = 'recipe_'


def apply_recipes_(cfg: Config) -> None:
    """Merge the values of the keys ``recipe_*`` into ``cfg``, in their order, and remove these keys.

    mmengine refuses two files in ``_base_`` that have a key in common. Recipes are dicts under keys of their own, so that one
    line each in ``_base_`` adds them to any config. What stands in a recipe wins over the files before it.
    """
    for key in [key for key in cfg if key.startswith(PREFIX)]:
        recipe = cfg.pop(key)
        spell_out_(cfg, recipe)
        cfg.merge_from_dict(recipe)


def spell_out_(cfg: dict, overrides: dict) -> None:
    """A dict on a name sets options of it: ``method='recu'`` becomes ``dict(type='recu')`` before ``dict(tau_min=0.9)`` is
    merged into it."""
    for key, value in overrides.items():
        if isinstance(value, dict) and key in cfg:
            if isinstance(cfg[key], str):
                cfg[key] = dict(type=cfg[key])
            elif isinstance(cfg[key], dict):
                spell_out_(cfg[key], value)
