"""Systems: the parts of a model that are used in a prediction."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

# The parts of a system's name. "unary" is also the name of the unary potential. A pairwise potential has the name of
# its relation.
UNARY, PAIRWISE, DENSE = "unary", "pairwise", "dense"


@dataclass(frozen=True)
class System:
    """The potentials that are used in a prediction, with or without the dense CRF.

    Args:
        unary: use the unary potential.
        relations: the names of the pairwise potentials that are used. None uses all relations of the model.
        dense: refine the result with the dense CRF at full resolution.

    Raises:
        ValueError: If there are no potentials, or if the name of a relation is repeated or not valid.

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
            raise ValueError("The system has no potentials, but the unary, a relation, or both are expected.")
        names = self.relations or ()
        wrong = [name for name in names if not name.isidentifier() or name in (UNARY, PAIRWISE, DENSE)]
        if wrong or len(set(names)) < len(names):
            raise ValueError(f"The relations are {list(names)}, but names of relations are expected, each name once.")

    @property
    def name(self) -> str:
        """The parts joined with "+": "unary", then "pairwise" (all relations) or names of relations, then "dense"."""
        relations = (PAIRWISE,) if self.relations is None else self.relations
        return "+".join(((UNARY,) if self.unary else ()) + relations + ((DENSE,) if self.dense else ()))

    @classmethod
    def from_name(cls, name: str) -> "System":
        """Return the system of a name such as "unary+pairwise+dense".

        Args:
            name: the parts joined with "+": "unary", then "pairwise" (all relations) or names of relations, and
                "dense".

        Raises:
            ValueError: If the name has no potential, if a part is repeated, or if a part is not a valid name of a
                relation.

        Example:
            >>> System.from_name("above+dense")
            System(unary=False, relations=('above',), dense=True)
        """
        parts = name.split("+")
        relations = tuple(part for part in parts if part not in (UNARY, PAIRWISE, DENSE))
        if len(set(parts)) == len(parts) and not (relations and PAIRWISE in parts):
            with suppress(ValueError):
                return cls(UNARY in parts, None if PAIRWISE in parts else relations, DENSE in parts)
        raise ValueError(
            f"The system {name!r} is not valid. Expected unary, pairwise (all relations) or names of relations, and "
            "dense, each of them once and joined with +, as in unary+pairwise+dense. The part dense is not valid alone."
        )

    def potentials(self, relations: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the potentials that are used, in the order of the model.

        Args:
            relations: the names of the model's relations.

        Raises:
            ValueError: If the model does not have a relation of the system. Also if the system consists of all
                relations without the unary, and the model has no relations.

        Example:
            >>> System.from_name("unary+above").potentials(["surrounding", "above"])
            ('unary', 'above')
        """
        known = tuple(relations)
        wanted = known if self.relations is None else self.relations
        if unknown := [name for name in wanted if name not in known]:
            raise ValueError(
                f"The system {self.name!r} names {unknown}, but the relations of the model are {list(known)}."
            )
        chosen = ((UNARY,) if self.unary else ()) + tuple(name for name in known if name in wanted)
        if not chosen:
            raise ValueError(
                f"The system {self.name!r} has no potentials, because the model has no relations. Add the unary."
            )
        return chosen


#: The system "unary": the unary potential alone.
UNARY_ONLY = System(relations=())
#: The system "unary+pairwise": all potentials.
UNARY_PAIRWISE = System()
#: The system "unary+pairwise+dense": all potentials and the dense CRF.
FULL = System(dense=True)
