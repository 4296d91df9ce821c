# LWS-Det's teacher: the angle and the amplitude of each convolution. Needs float_twin = dict(config=..., checkpoint=...).
recipe_teacher_lws = dict(default_hooks=dict(teacher=dict(
    type='bnn_plugins.TeacherHook', losses=dict(lws=dict(type='bnn_plugins.LayerwiseLoss', angle=1.0, amplitude=0.1)))))
