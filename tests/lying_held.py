"""Optimizers outside torch.optim whose tensors move, grow and are replaced."""

from __future__ import annotations

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
