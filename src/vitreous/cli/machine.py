"""Commands about this machine: doctor, selftest."""

from vitreous.cli.app import app, print_json
from vitreous.tables import table

FAILED = 1
"""Exit code of a selftest in which something does not hold."""


@app.command
def selftest(model: str | None = None, /, *, json: bool = False) -> int:
    """Check in a few seconds that this machine computes what it should; exit code 1 if something does not hold.

    Parameters
    ----------
    model
        A model to check against the logits that were saved with it.
    json
        Print a JSON list.
    """
    from vitreous.console import Console
    from vitreous.selftest import selftest as check

    checks = list(check(model, progress=Console().say))
    if json:
        print_json([vars(made) for made in checks])
    else:
        verdicts = {True: "holds", False: "DOES NOT HOLD", None: "not checked"}
        cells = [(made.name, made.expected, made.found, verdicts[made.holds]) for made in checks]
        print(table([("check", "expected", "found", ""), *cells]))
    return FAILED if any(made.holds is False for made in checks) else 0


@app.command
def doctor(*, json: bool = False) -> int:
    """Show versions, devices, threads, disk and cache, for a first look or a bug report.

    Parameters
    ----------
    json
        Print a JSON object.
    """
    from vitreous.doctor import examine

    facts = examine()
    if json:
        print_json(facts)
    else:
        print(table(list(facts.items())))
    return 0
