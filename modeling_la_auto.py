"""The length-adaptive class of each model type."""

from modeling_la_bert import LABertForQuestionAnswering
from modeling_la_roberta import LARobertaForQuestionAnswering

MODEL_CLASSES = {"bert": LABertForQuestionAnswering, "roberta": LARobertaForQuestionAnswering}
