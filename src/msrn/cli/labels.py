"""`msrn labels COMMAND`: the label graph and the word vectors."""

import typer

from msrn.cli import labels_graph, labels_groups, labels_vectors

app = typer.Typer(no_args_is_help=True, help="Make the label graph and the word vectors, and look at the groups.")
app.command("graph", epilog=labels_graph.EPILOG)(labels_graph.graph)
app.command("groups", epilog=labels_groups.EPILOG)(labels_groups.groups)
app.command("vectors", epilog=labels_vectors.EPILOG)(labels_vectors.vectors)
