"""Pages and pictures for people to look at."""

from msrn.report.comparison import save_comparison
from msrn.report.data_page import write_data_page
from msrn.report.demo_page import HeadResult, write_demo_page
from msrn.report.label_graph import draw_label_graph, save_label_graph

__all__ = [
    "HeadResult",
    "draw_label_graph",
    "save_comparison",
    "save_label_graph",
    "write_data_page",
    "write_demo_page",
]
