"""Which laws there are."""

from lrec.laws.law import Law
from lrec.laws.metric_laws import Linear, Logistic
from lrec.laws.power_laws import Chinchilla, Kaplan, Lsrm
from lrec.laws.repetition_laws import Muennighoff, Overfitting, RepeatedData

LAWS: dict[str, Law] = {
    law.name: law for law in (Lsrm(), Chinchilla(), Kaplan(), RepeatedData(), Muennighoff(), Overfitting())
}
"""Laws of the loss."""

LINKS: dict[str, Law] = {law.name: law for law in (Linear(), Logistic())}
"""Laws of a metric such as NDCG@10, given the loss."""
