"""RoBERTa for question answering that drops tokens: wiring only, see length_drop.py for what it does."""

from torch import nn
from transformers.models.roberta import modeling_roberta

from length_drop import LengthAdaptiveEncoder, LengthAdaptiveLayer, LengthAdaptiveModel, LengthAdaptiveSelfAttention


class LARobertaSelfAttention(LengthAdaptiveSelfAttention, modeling_roberta.RobertaSelfAttention):
    pass


class LARobertaLayer(LengthAdaptiveLayer, modeling_roberta.RobertaLayer):
    """Modifications: its self-attention can report significance."""

    def __init__(self, config, layer_idx=None):
        super().__init__(config, layer_idx=layer_idx)
        self.attention.self = LARobertaSelfAttention(config, layer_idx=layer_idx)


class LARobertaEncoder(LengthAdaptiveEncoder, modeling_roberta.RobertaEncoder):
    """Modifications: length-adaptive layers."""

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.ModuleList([LARobertaLayer(config, layer_idx=i) for i in range(config.num_hidden_layers)])


class LARobertaForQuestionAnswering(LengthAdaptiveModel, modeling_roberta.RobertaForQuestionAnswering):
    """Modifications: `forward(..., length_config=None, layer_config=None)`; state-dict keys are the stock class's."""

    def __init__(self, config):
        super().__init__(config)
        self.roberta.encoder = LARobertaEncoder(config)
        self.post_init()  # the stock constructor initialised the encoder that was just replaced
