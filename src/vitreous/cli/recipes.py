"""The command that lists recipes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitreous.cli.app import app, print_json
from vitreous.errors import InputError, did_you_mean
from vitreous.tables import table

if TYPE_CHECKING:
    from vitreous.recipes.described import Described


@app.command
def recipes(name: str = "", /, *, json: bool = False) -> int:
    """List the recipes of the paper and its heirs: model, data, source, expected result, hardware and time.

    Parameters
    ----------
    name
        A recipe, for all there is to know about it, or a part of names, such as jft or deit.
    json
        Print a JSON list; of one recipe, an object with all of its fields.
    """
    from vitreous.recipes.described import described

    known = described()
    exact = [recipe for recipe in known if recipe.name == name]
    found = exact or [recipe for recipe in known if name.lower() in recipe.name]
    if not found:
        near = did_you_mean(name, [recipe.name for recipe in known])
        raise InputError(
            f"no recipe matches {name!r}{near if 'did you mean' in near else '; leave it out to list all'}"
        )
    if exact:
        _show(exact[0], json=json)
    elif json:
        print_json([vars(recipe) for recipe in found])
    else:
        print(_overview(found))
        print("\nhours of GPUs are at 400 TFLOP/s each, which small models do not reach, unless marked as theirs")
        print("all about one: vitreous recipes NAME · to carry it out: vitreous train NAME --data.path DATA")
    return 0


def _overview(recipes: "Sequence[Described]") -> str:
    rows = [("name", "model", "data", "source", "expected", "hardware and time")]
    for recipe in recipes:
        source, expected, cost = (text.partition(";")[0] for text in (recipe.source, recipe.expected, recipe.cost))
        rows.append((recipe.name, recipe.model, recipe.data, source, expected, cost))
    return table(rows)


def _show(recipe: "Described", *, json: bool) -> None:
    from vitreous.recipes.described import changed
    from vitreous.recipes.shipped import recipe as find_recipe
    from vitreous.run import Run

    run = find_recipe(recipe.name)
    if json:
        print_json({**vars(recipe), "config": run.to_dict()})
        return
    print(f"{recipe.text}\n\n{recipe.family}\n\nIts fields that are not the defaults:\n")
    print(table([(f"--{field.path}", str(field.value), field.doc) for field in changed(run, Run())]))
