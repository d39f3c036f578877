"""Pages and pictures for people to look at."""

from msrn.report.comparison import save_comparison
from msrn.report.data_page import write_data_page
from msrn.report.demo_page import HeadResult, write_demo_page
from msrn.report.evaluation import Scores, compare_scores, evaluate_scores, read_scores
from msrn.report.evaluation_page import write_evaluation_page
from msrn.report.label_graph import draw_label_graph, save_label_graph

__all__ = [
    "HeadResult",
    "Scores",
    "compare_scores",
    "draw_label_graph",
    "evaluate_scores",
    "read_scores",
    "save_comparison",
    "save_label_graph",
    "write_data_page",
    "write_demo_page",
    "write_evaluation_page",
]
