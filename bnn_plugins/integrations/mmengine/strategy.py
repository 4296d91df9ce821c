"""mmengine's ``FlexibleRunner`` with torch's ``fully_shard``."""

from mmengine._strategy import DDPStrategy
from mmengine._strategy.single_device import SingleDeviceStrategy
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from torch import nn

from ...engine.sharding import shard_, whole_state_
from ...registry import STRATEGIES
from .launch import join_processes


@STRATEGIES.register_module()
class FullyShardStrategy(DDPStrategy):
    """Parameters, gradients and the states of the optimizer are spread over all processes (FSDP2), with or without GPUs.

    ``runner_type = 'FlexibleRunner'; strategy = dict(type='bnn_plugins.FullyShardStrategy')`` in a config. Checkpoints are
    whole ones, as without it: they resume with any number of processes, sharded or not, and are packed as they are.
    """

    def _setup_distributed(self, launcher: str = 'pytorch', backend: str = 'nccl', **kwargs) -> None:
        join_processes(Config(dict(launcher=launcher, env_cfg=dict(dist_cfg=dict(backend=backend, **kwargs)))))

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        return shard_(self.convert_model(model.to(get_device())))

    def build_optim_wrapper(self, optim_wrapper, model=None):
        built = super().build_optim_wrapper(optim_wrapper, model)
        whole_state_(built.optimizer)
        return built

    def save_checkpoint(self, filename: str, **kwargs) -> None:
        """Gathered by all processes, written by the first."""
        if is_main_process():
            SingleDeviceStrategy.save_checkpoint(self, filename, **kwargs)
        else:
            self.model_state_dict()
            if kwargs.get('save_optimizer', True) and hasattr(self, 'optim_wrapper'):
                self.optim_state_dict()
