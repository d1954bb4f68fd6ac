"""The names that inspection offers."""

import importlib
import subprocess
import sys

import pytest

import vitreous.inspection


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, vitreous.inspection; "
        "print([name for name in ('torch', 'matplotlib', 'sklearn', 'umap') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("name", vitreous.inspection.__all__)
def test_a_name_is_the_same_whether_its_file_was_imported_before_or_not(name):
    first = getattr(vitreous.inspection, name)
    home = importlib.import_module(first.__module__)
    assert getattr(vitreous.inspection, name) is first is getattr(home, name)


def test_a_file_that_shares_its_name_with_a_function_is_imported_as_any_other():
    code = (
        "import vitreous.inspection.rollout; from vitreous.inspection.rollout import Rollout, rollout; "
        "import vitreous.inspection as i; assert i.rollout is rollout; from vitreous.inspection import attention; "
        "assert attention.watch is i.watch"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0


def test_every_public_name_is_listed_and_no_other_exists():
    homes = [name for names in vitreous.inspection._HOMES.values() for name in names]
    assert sorted(homes) == sorted(vitreous.inspection.__all__) == dir(vitreous.inspection)
    with pytest.raises(AttributeError, match="has no attribute 'rolout'"):
        vitreous.inspection.rolout  # noqa: B018
