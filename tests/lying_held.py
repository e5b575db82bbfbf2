"""Optimizers outside torch.optim whose tensors move, grow and are replaced."""

from __future__ import annotations

import functools
import weakref
from collections import deque
from typing import ClassVar

import numpy as np
import torch

from holders import Holding


class HoldsManyDimensions(Holding):
    """Has a tensor of more dimensions than C notes, and lets it move and be another one."""

    def made(self):
        return {"now": torch.zeros(1, 2, 1, 2, 1, 2, 1), "count": 0}

    def changed(self, _):
        now = self.thing["now"].add_(1)
        self.thing["count"] += 1
        if self.thing["count"] % 3 == 1:
            now.data = now.data * 2 % 11
        elif self.thing["count"] % 3 == 2:
            self.thing["now"] = now.mT.contiguous()
        return float(now.sum())


class HoldsGrowing(Holding):
    """Lets a tensor grow and shrink where it is."""

    def made(self):
        return torch.ones(3)

    def changed(self, _):
        self.thing.add_(1)
        self.thing.resize_(3 if len(self.thing) > 20 else len(self.thing) * 2)[3:].fill_(float(self.thing[0]))
        return float(self.thing.sum())


class HoldsReplaced(Holding):
    """Makes one tensor anew in each step, while another parts from its view and comes back."""

    def made(self):
        base = torch.zeros(4)
        return {"now": torch.ones(3), "base": base, "view": base[:2], "count": 0}

    def changed(self, _):
        self.thing["now"] = self.thing["now"] * 1.5 % 5
        self.thing["count"] += 1
        base, view = self.thing["base"], self.thing["view"]
        if self.thing["count"] % 4 == 2:
            base.data = base.data.clone()
        elif self.thing["count"] % 4 == 0:
            view.data = base.data[:2]
        base.add_(1)
        return float(base.sum() + 3 * view.sum() + self.thing["now"].sum())


class HoldsOtherForms(Holding):
    """Puts a tensor of another form, or of another dtype, into the place of one in each step."""

    def made(self):
        return {"now": torch.ones(6)}

    def changed(self, _):
        now = self.thing["now"].add_(1)
        if now.dim() == 2:
            self.thing["now"] = now.t().contiguous().view(-1).to(torch.float64)
        else:
            self.thing["now"] = now.to(torch.float32).view(2, 3) * 1.5 % 9
        return float(now.view(-1)[1])


class HoldsMarked(Holding):
    """Puts a new tensor in a tensor's place, now and then with an attribute, which the next step takes."""

    def made(self):
        return {"now": torch.ones(3), "count": 0}

    def changed(self, _):
        now = self.thing["now"]
        mark = vars(now).pop("mark", 0)
        self.thing["now"] = now * 1.25 % 5
        self.thing["count"] += 1
        if self.thing["count"] % 3 == 1:
            self.thing["now"].mark = 1
        return float(now.sum()) + mark


class HoldsLists(Holding):
    """Puts a list of new tensors into the place of one in each step, or another list, or two that are one."""

    def made(self):
        return {
            "now": [torch.ones(3), torch.ones(2, 2)],
            "before": [torch.zeros(3), torch.zeros(2, 2)],
            "count": 0,
        }

    def changed(self, _):
        thing = self.thing
        thing["count"] += 1
        now = [t * 1.5 % 7 + 1 for t in thing["now"][:2]]
        if thing["count"] % 5 == 3:
            thing["before"] = thing["now"][:2]
        elif thing["count"] % 5 == 0:
            thing["before"] = now
        if thing["count"] % 7 == 4:
            now.append(torch.ones(1))
        elif thing["count"] % 7 == 6:
            now[1] = now[1].double()
        thing["now"] = now
        now[0].add_(1)
        return float(sum((i + 1) * t.sum() for i, t in enumerate(now + thing["before"])))


class HoldsTwice(Holding):
    """Has one tensor in two places, and puts a new one into both, and now and then into one."""

    def made(self):
        one = torch.ones(2)
        return {"first": one, "second": one, "count": 0}

    def changed(self, _):
        thing = self.thing
        thing["count"] += 1
        thing["first"] = thing["first"] * 1.25 % 9
        if thing["count"] % 7 != 5:
            thing["second"] = thing["first"]
        thing["second"].add_(1)
        return float(thing["first"].sum() + 3 * thing["second"].sum())


class HoldsListTwice(Holding):
    """Puts lists into the places of others, of which one is still in another place."""

    def made(self):
        kept = [1.0]
        return {"early": [kept], "kept": kept, "inner": [[torch.ones(2)]], "count": 0}

    def changed(self, _):
        thing = self.thing
        thing["count"] += 1
        if thing["count"] > 4:
            thing["kept"] = [thing["kept"][0] + 1]
        if thing["count"] % 4 == 1:
            thing["inner"] = [[thing["inner"][0][0] + 1]]
        else:
            thing["inner"][0] = [thing["inner"][0][0] * 2]
        thing["early"][0][0] *= 1.5
        return thing["early"][0][0] + 3 * thing["kept"][0] + float(thing["inner"][0][0].sum())


class HoldsSet(Holding):
    """Counts by a set and a deque."""

    def made(self):
        return {1}, deque([torch.ones(1), torch.zeros(1)], maxlen=2), deque()

    def changed(self, _):
        numbers, pair, empty = self.thing
        numbers.symmetric_difference_update({len(numbers) + max(numbers), max(numbers)})
        pair.append(pair[0] * 1.5 if len(empty) % 2 else pair[0].mul_(3).clone())
        if max(numbers) % 3 == 0:
            empty.append(max(numbers))
        return float(sum(numbers) + sum(empty) + sum(map(float, pair)))


class HoldsGaps(Holding):
    """Has a tensor with gaps, which belong to nobody, and two that share memory."""

    def made(self):
        crossed = torch.zeros(6, 4)
        return torch.zeros(6, 4)[::2, 1:3], crossed[::2], crossed[:, 1:3]

    def changed(self, _):
        alone, rows, columns = self.thing
        alone.add_(1), rows.add_(2), columns.mul_(1.5)
        return float(alone.sum() + rows.sum() - columns.sum())


class HoldsLong(Holding):
    """Has a tensor that is too long for C, changes it, and puts a new one in its place."""

    def made(self):
        return {"now": torch.zeros(70_000), "count": 0}

    def changed(self, _):
        self.thing["count"] += 1
        if self.thing["count"] % 3 == 0:
            self.thing["now"] = self.thing["now"].clone()
        elif self.thing["count"] % 3 == 2:
            self.thing["now"].data = self.thing["now"].data * 1.5 % 7
        return float(self.thing["now"].add_(1)[69_999])


class HoldsSparse(Holding):
    """Has a sparse tensor, and one of numbers that two others make."""

    def made(self):
        return torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64).conj()

    def changed(self, _):
        sparse, conjugate = self.thing
        sparse.mul_(1.5)
        conjugate.add_(1j).mul_(0.5)
        return float(sparse.to_dense().sum() + conjugate.abs().sum())


class HoldsObjects(Holding):
    """Has an array of lists, and puts another one in the place of one."""

    def made(self):
        lists = np.empty(2, dtype=object)
        lists[:] = [[1.0], [2.0]]
        return lists

    def changed(self, _):
        first, second = self.thing
        first[0] *= 1.5
        if len(second) < 3:
            self.thing[1] = [*second, first[0] % 3]
        else:
            second[0] *= 1.5
        return first[0] % 7 + sum(self.thing[1]) % 5


class HoldsMany(Holding):
    """Has more objects from step to step, and then fewer."""

    def made(self):
        return [[1.0]]

    def changed(self, _):
        last = self.thing[-1][0]
        if len(self.thing) < 500:
            self.thing.extend([last % 7 + i] for i in range(1, 2 * len(self.thing)))
        else:
            del self.thing[3:]
        self.thing[len(self.thing) // 2][0] *= 1.5
        return sum(number for (number,) in self.thing) % 11


class HoldsMark(Holding):
    """Counts by an attribute of a tensor, which has none now and then."""

    def made(self):
        return torch.ones(2)

    def changed(self, _):
        count = getattr(self.thing, "mark", 0) + 1
        if count > 2:
            del self.thing.mark
        else:
            self.thing.mark = count
        return float(count)


class HoldsMoving(Holding):
    """Lets objects go up and down by one among others, and be gone and new."""

    def made(self):
        return [[torch.ones(2)], {"a": torch.zeros(3)}, functools.partial(float, 0), Counted()]

    def changed(self, _):
        counted = next(thing for thing in self.thing if isinstance(thing, Counted))
        counted.count += 1
        if counted.count % 3 == 0:
            self.thing.insert(1, [torch.full((2,), float(counted.count))])
        elif counted.count % 5 == 4:
            del self.thing[0]
        else:
            self.thing.append(self.thing.pop(0))
        found = [thing[0] for thing in self.thing if isinstance(thing, list)]
        return float(sum((i + 1) * t.add_(1).sum() for i, t in enumerate(found))) + counted.count


class Counted:
    """Counts."""

    def __init__(self):
        self.count = 0


class Registered(Holding):
    """Is known, so that a test may put something into it."""

    every: ClassVar[weakref.WeakSet[Registered]] = weakref.WeakSet()

    def made(self):
        self.every.add(self)
        return [1.0]

    def changed(self, _):
        self.thing[0] *= 1.5
        return self.thing[0] % 5


class Silent:
    """Does not say what it has."""

    __slots__ = ()

    @property
    def __dict__(self):
        raise RuntimeError("it does not say")


class Viewing(Holding):
    """Keeps views of its parameters, and goes by them."""

    def made(self):
        return {}

    def changed(self, p):
        seen = float(self.thing[id(p)].sum()) if id(p) in self.thing else 1.0
        self.thing[id(p)] = p.detach()[1:]
        return seen
