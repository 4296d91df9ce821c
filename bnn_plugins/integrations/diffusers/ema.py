"""An exponential moving average that survives save and load with binary models."""

from diffusers.training_utils import EMAModel

from ...binarize.schedule import gathered
from .loading import from_config


class BNNEMAModel(EMAModel):
    """``EMAModel`` that says so when a model from ``model_config`` has other parameters than the average.

    The average is over latent weights; the sign of an average is not an average of signs, so evaluate both.
    """

    def save_pretrained(self, path, is_main_process: bool = True) -> None:
        """Write the averaged model and the state of the average; all processes gather shards, the main one writes.

        Raises:
            ValueError: when the model has other parameters than the average.
        """
        if self.model_cls is None or self.model_config is None:
            raise ValueError('save_pretrained needs model_cls and model_config: give them to BNNEMAModel')
        averages = [gathered(average) for average in self.shadow_params]
        if not is_main_process:
            return
        model = from_config(self.model_cls, self.model_config)
        parameters = list(model.parameters())
        if [p.shape for p in parameters] != [p.shape for p in self.shadow_params]:
            raise ValueError(f'the average has {len(self.shadow_params)} parameters, {self.model_cls.__name__} from its '
                             f'config {len(parameters)} or others in shape: give the config of the model that is averaged')
        state = {key: value for key, value in self.state_dict().items() if key != 'shadow_params'}
        model.register_to_config(**state)
        for parameter, average in zip(parameters, averages, strict=True):
            parameter.data.copy_(average)
        model.save_pretrained(path)
