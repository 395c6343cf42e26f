"""A system: the part of a model that makes a prediction."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

# The parts of a system's name. "unary" is also the name of the unary potential; others are named by their relations.
UNARY, PAIRWISE, DENSE = "unary", "pairwise", "dense"


@dataclass(frozen=True)
class System:
    """The potentials that take part in a prediction, with or without the dense CRF after them.

    Args:
        unary: the unary potential takes part.
        relations: the pairwise potentials that take part; None is all that the model has.
        dense: the dense CRF refines the result at full resolution.

    Raises:
        ValueError: no potential takes part, or a relation is named twice or has a name that no relation can have.

    Example:
        >>> System.from_name("unary+above+dense")
        System(unary=True, relations=('above',), dense=True)
        >>> UNARY_PAIRWISE.name
        'unary+pairwise'
    """

    unary: bool = True
    relations: tuple[str, ...] | None = None
    dense: bool = False

    def __post_init__(self) -> None:
        if self.relations is not None:
            object.__setattr__(self, "relations", tuple(self.relations))
        if not self.unary and self.relations == ():
            raise ValueError("a system without potentials: expected the unary, a relation, or both")
        names = self.relations or ()
        wrong = [name for name in names if not name.isidentifier() or name in (UNARY, PAIRWISE, DENSE)]
        if wrong or len(set(names)) < len(names):
            raise ValueError(f"relations {list(names)}: expected names of relations, each once")

    @property
    def name(self) -> str:
        """The parts joined by "+": "unary", "pairwise" for all relations or their names, "dense"."""
        relations = (PAIRWISE,) if self.relations is None else self.relations
        return "+".join(((UNARY,) if self.unary else ()) + relations + ((DENSE,) if self.dense else ()))

    @classmethod
    def from_name(cls, name: str) -> "System":
        """The system of a name, as `name` gives it.

        Raises:
            ValueError: no potential is named, a part is named twice, or a name is not one that a relation can have.
        """
        parts = name.split("+")
        relations = tuple(part for part in parts if part not in (UNARY, PAIRWISE, DENSE))
        if len(set(parts)) == len(parts) and not (relations and PAIRWISE in parts):
            with suppress(ValueError):
                return cls(UNARY in parts, None if PAIRWISE in parts else relations, DENSE in parts)
        raise ValueError(
            f"system {name!r}: expected unary, pairwise (all relations) or names of relations, and dense, each once "
            "and joined by +, as in unary+pairwise+dense; dense not alone"
        )

    def potentials(self, relations: Iterable[str]) -> tuple[str, ...]:
        """The names of the potentials that take part, in the model's order.

        Args:
            relations: those of the model.

        Raises:
            ValueError: the model does not have a relation of the system, or has none at all where all are asked for
                without the unary.
        """
        known = tuple(relations)
        wanted = known if self.relations is None else self.relations
        if unknown := [name for name in wanted if name not in known]:
            raise ValueError(f"system {self.name!r}: {unknown} are not relations of the model, which has {list(known)}")
        chosen = ((UNARY,) if self.unary else ()) + tuple(name for name in known if name in wanted)
        if not chosen:
            raise ValueError(
                f"system {self.name!r}: the model has no relations; expected the unary among the potentials"
            )
        return chosen


UNARY_ONLY = System(relations=())
UNARY_PAIRWISE = System()
FULL = System(dense=True)
