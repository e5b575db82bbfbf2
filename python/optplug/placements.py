"""How parameters may lie on ranks, in the words of torch.distributed.tensor, and what steps them."""

from __future__ import annotations

from optplug import spec
from optplug.recipe import Recipe
from optplug.spec import Call, shown

#: How ranks' gradients and losses become one, by placement.
PLACEMENTS = {
    "Replicate()": "mean",
    "Replicate(), Partial('sum')": "sum",
    "Replicate(), Replicate()": "",
    "Shard(0)": "sum",
}
# Classes of torch.optim whose steps treat each value by itself.
_ELEMENTWISE = (
    *("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop"),
    "SGD",
)
#: Those whose steps take whole parameters, of which each is some rank's.
BY_WHOLE = ("Adafactor", "Muon")


def read_placement(text: str) -> str:
    """Return a placement as it stands in `PLACEMENTS`.

    Raises:
        ValueError: it is none of those.
    """
    try:
        calls = spec.parse(f"placements({text})").args
        if not all(isinstance(call, Call) and not call.kwargs for call in calls):
            raise ValueError
        said = ", ".join(f"{call.name}({', '.join(map(repr, call.args))})" for call in calls)
    except ValueError:
        said = ""
    if said not in PLACEMENTS:
        raise ValueError(f"placement must be one of {'; '.join(PLACEMENTS)}; got {shown(text)}")
    return said


def check_class(recipe: Recipe, placement: str) -> None:
    """Raise ValueError if a class cannot step parameters that lie so."""
    if recipe.is_torchs and recipe.name in BY_WHOLE:
        if placement == "Shard(0)":
            raise ValueError(
                f'placement "Shard(0)" with {recipe.name}, whose steps take whole parameters: keep them on '
                'every rank, in "Replicate()", where each is stepped by one of them'
            )
    elif not recipe.is_torchs or not (recipe.is_lbfgs or recipe.name in _ELEMENTWISE):
        raise ValueError(
            f"opt_distribute with {recipe.name} is not supported: keep its parameters on every rank, "
            "reduce the gradients yourself, and call opt_step without opt_distribute"
        )
