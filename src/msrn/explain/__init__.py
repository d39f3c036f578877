"""Why a model gives a label its probability."""

from msrn.explain.contributions import Contributions, explain_logits
from msrn.explain.explanation import Explanation
from msrn.explain.related import EdgeRemovals, Related, related_effects

__all__ = ["Contributions", "EdgeRemovals", "Explanation", "Related", "explain_logits", "related_effects"]
