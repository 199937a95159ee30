"""Objectives that match every token's hidden state, or how tokens attend to each other. Text alone has tokens.

Teacher and student have to read the same tokens, and the teacher is asked in every step: a hidden state a token is too much to keep. A
value belongs to one pair of layers and one text, a mean over its tokens; the values of all pairs are added up, as in the papers. Padding
counts nowhere. Documents that share a row don't see one another: pairs of tokens count inside a document.

Shapes: B texts, L tokens, D width, H heads, E width of a head.
"""

from __future__ import annotations

from understudy.objectives._tokens_attention import AttentionMSE, SelfAttentionRelation
from understudy.objectives._tokens_states import HiddenCosine, HiddenMSE, PatientKD

__all__ = ["AttentionMSE", "HiddenCosine", "HiddenMSE", "PatientKD", "SelfAttentionRelation"]
