"""The registries of the scope ``bnn_plugins``, children of mmengine's.

For ``type='bnn_plugins.X'`` in a config, mmengine imports this module, and the ``locations`` of the registry when X is built:
no ``custom_imports`` is needed. What needs mmdet is a location only where mmdet is installed.
"""

from importlib.util import find_spec

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import OPTIMIZERS as MMENGINE_OPTIMIZERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

SCOPE = 'bnn_plugins'

MODELS = Registry('model', parent=MMENGINE_MODELS, scope=SCOPE, locations=[
    'bnn_plugins.models', 'bnn_plugins.integrations.mmengine',
    *(['bnn_plugins.integrations.mmdet.clip_detector', 'bnn_plugins.integrations.mmdet.pixels'] if find_spec('mmdet')
      else [])])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope=SCOPE, locations=[
    'bnn_plugins.engine', *(['bnn_plugins.integrations.mmdet.teacher_hook'] if find_spec('mmdet') else [])])
OPTIM_WRAPPER_CONSTRUCTORS = Registry('optimizer wrapper constructor', parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS, scope=SCOPE,
                                      locations=['bnn_plugins.engine'])
OPTIMIZERS = Registry('optimizer', parent=MMENGINE_OPTIMIZERS, scope=SCOPE, locations=['bnn_plugins.engine'])
OPTIM_WRAPPERS = Registry('optim_wrapper', parent=MMENGINE_OPTIM_WRAPPERS, scope=SCOPE, locations=['bnn_plugins.engine'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope=SCOPE, locations=[
    'bnn_plugins.integrations.mmengine.classification', 'bnn_plugins.integrations.mmengine.sequence',
    *(['bnn_plugins.integrations.mmdet.datasets', 'bnn_plugins.integrations.mmdet.video'] if find_spec('mmdet') else [])])
DATA_SAMPLERS = Registry('data sampler', parent=MMENGINE_DATA_SAMPLERS, scope=SCOPE,
                         locations=['bnn_plugins.integrations.mmdet.video'])
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope=SCOPE, locations=[
    'bnn_plugins.integrations.mmengine.classification', 'bnn_plugins.integrations.mmengine.sequence'])
STRATEGIES = Registry('strategy', parent=MMENGINE_STRATEGIES, scope=SCOPE,
                      locations=['bnn_plugins.integrations.mmengine.strategy'])
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, scope=SCOPE,
                      locations=['bnn_plugins.integrations.mmdet.transforms'])
