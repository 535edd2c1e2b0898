"""BERT for question answering that drops tokens: wiring only, see length_drop.py for what it does."""

from torch import nn
from transformers.models.bert import modeling_bert

from length_drop import LengthAdaptiveEncoder, LengthAdaptiveLayer, LengthAdaptiveModel, LengthAdaptiveSelfAttention


class LABertSelfAttention(LengthAdaptiveSelfAttention, modeling_bert.BertSelfAttention):
    pass


class LABertLayer(LengthAdaptiveLayer, modeling_bert.BertLayer):
    """Modifications: its self-attention can report significance."""

    def __init__(self, config, layer_idx=None):
        super().__init__(config, layer_idx=layer_idx)
        self.attention.self = LABertSelfAttention(config, layer_idx=layer_idx)


class LABertEncoder(LengthAdaptiveEncoder, modeling_bert.BertEncoder):
    """Modifications: length-adaptive layers."""

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.ModuleList([LABertLayer(config, layer_idx=i) for i in range(config.num_hidden_layers)])


class LABertForQuestionAnswering(LengthAdaptiveModel, modeling_bert.BertForQuestionAnswering):
    """Modifications: `forward(..., length_config=None, layer_config=None)`; state-dict keys are the stock class's."""

    def __init__(self, config):
        super().__init__(config)
        self.bert.encoder = LABertEncoder(config)
        self.post_init()  # the stock constructor initialised the encoder that was just replaced
