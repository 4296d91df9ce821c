"""For mmdet: checked datasets, clips and their sampler, a detector of clips, rules (which layers stay float). Needs mmdet,
but for :mod:`.rules`."""
