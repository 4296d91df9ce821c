# A published checkpoint as backbone: bnn import --from ... writes the file, docs/howto/import.md.
recipe_imported_backbone = dict(model=dict(backbone=dict(
    init_cfg=dict(type='Pretrained', checkpoint='imported.pth', prefix='backbone.'))))
