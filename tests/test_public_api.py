"""The public surface: what `import msrn` offers, and what it does not load."""

import subprocess
import sys

import msrn

PUBLIC = {
    "MSRN",
    "Bundle",
    "LabelGraph",
    "LabelledImages",
    "MSRNError",
    "Prediction",
    "Predictor",
    "Source",
    "__version__",
    "build_msrn",
    "load",
    "load_bundle",
    "msrn_resnet101",
    "open_source",
    "save_bundle",
}


def test_all_lists_the_public_names():
    assert set(msrn.__all__) == PUBLIC
    assert set(dir(msrn)) == PUBLIC


def test_every_public_name_resolves():
    for name in msrn.__all__:
        assert getattr(msrn, name) is not None


def test_importing_msrn_loads_no_heavy_library():
    code = "import sys, msrn; assert not {'torch', 'lightning', 'timm', 'torchvision', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_prediction_loads_none_of_what_only_training_needs():
    code = "import sys, msrn.server.app; assert not {'torchmetrics', 'lightning', 'matplotlib', 'scipy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_error_is_a_public_one():
    import msrn.errors

    kinds = [kind for kind in vars(msrn.errors).values() if isinstance(kind, type)]
    assert len(kinds) > 10
    assert all(issubclass(kind, msrn.MSRNError) for kind in kinds)
    tree = msrn.errors.__doc__ or ""
    assert all(kind.__name__ in tree for kind in kinds)
