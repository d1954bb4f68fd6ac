import json

from vitreous.optim import AdamW
from vitreous.provenance import describe_run, installed


def test_the_record_says_what_was_run(tmp_path):
    record = describe_run(AdamW(), seed=7)
    assert json.loads(json.dumps(record)) == record
    assert record["seed"] == 7
    assert record["config"] == AdamW().to_dict()
    assert {"python", "torch", "vitreous"} <= set(record["versions"])


def test_a_package_that_is_absent_is_said():
    assert installed(["no-such-package", "pip"]).keys() == {"no-such-package", "pip"}
    assert installed(["no-such-package"]) == {"no-such-package": "not installed"}
