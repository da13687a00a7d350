"""Names of other programs lead to names that exist here, and shadow none of them."""

import pytest

from ddpm.runner.config import catalog, common_names
from ddpm.runner.config.explain import key_named, no_such_key, no_such_option


@pytest.mark.parametrize(("group", "theirs"), common_names.OPTIONS)
def test_an_option_of_another_name_exists(group, theirs):
    ours = common_names.OPTIONS[group, theirs]
    assert ours in catalog.groups()[group]
    assert theirs not in catalog.groups()[group]
    assert f"Did you mean '{ours}'?" in no_such_option(group, theirs)


@pytest.mark.parametrize("theirs", common_names.KEYS)
def test_a_key_of_another_name_exists(theirs):
    ours = common_names.KEYS[theirs]
    keys = catalog.keys()
    names = {key.name for key in keys} | set(catalog.groups())
    assert ours in names
    assert not any(name == theirs or name.endswith(f".{theirs}") for name in names)
    assert f"Did you mean '{ours}'?" in no_such_key(theirs)
    assert f"Did you mean '{ours}'?" in no_such_key(f"job.{theirs}")
    assert key_named(theirs) == ours


def test_other_spellings_of_options_are_understood():
    assert "'classifier_free'" in no_such_option("guidance", "CFG")
    assert "'velocity'" in no_such_option("objective", "flow-matching")
