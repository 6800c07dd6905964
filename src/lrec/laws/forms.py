"""Which laws there are, and how one is named: by its short name, or by the class path of a user's own."""

from lrec.errors import UserError
from lrec.laws.law import Law
from lrec.laws.metric_laws import Linear, Logistic
from lrec.laws.power_laws import Chinchilla, Kaplan, Lsrm
from lrec.laws.repetition_laws import Muennighoff, Overfitting, RepeatedData
from lrec.options.class_paths import class_path, imported

LAWS: dict[str, Law] = {
    law.name: law for law in (Lsrm(), Chinchilla(), Kaplan(), RepeatedData(), Muennighoff(), Overfitting())
}
"""Laws of the loss."""

LINKS: dict[str, Law] = {law.name: law for law in (Linear(), Logistic())}
"""Laws of a metric such as NDCG@10, given the loss."""


def law_named(name: str) -> Law:
    """A law of the loss by its name, or by a class path such as my_law.OffsetPower.

    Raises:
        UserError: there is none of that name, or the class is no law.
    """
    if name in LAWS:
        return LAWS[name]
    if "." not in name:
        raise UserError(f"--law: {name!r} is none of {', '.join(LAWS)}; one of your own is FILE.CLASS")
    kind = imported(name, "--law")
    if not (isinstance(kind, type) and issubclass(kind, Law)):
        raise UserError(f"--law {name} is no subclass of lrec.laws.law.Law")
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise UserError(f"--law {name} does not define {', '.join(missing)}")
    stated = ("name", "formula", "variables", "parameters", "shape_bounds", "shape_starts")
    if missing := [attribute for attribute in stated if not hasattr(kind, attribute)]:
        raise UserError(f"--law {name} does not say its {', '.join(missing)}")
    law: Law = kind()
    if law.variables not in (("x",), ("N", "D"), ("N", "D", "U")):
        raise UserError(f'--law {name}: variables {law.variables} are none of ("x",), ("N", "D") and ("N", "D", "U")')
    return law


def name_of(law: Law) -> str:
    """What `law_named` finds the law by."""
    return law.name if LAWS.get(law.name) is law else class_path(type(law))
