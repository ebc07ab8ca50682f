"""No latent matrix and no filter: q reads the encoder's output e_t directly.

This is DRAW without attention (Gregor et al. 2015, section 2): the read is e_t itself.

Source: Akoury 2017, the value `none` of the attention option in `glas/model/attention.py`. The size
of z is a setting: 25 as in every variant, 100 for 87.40, a number given as DRAW's, unverified as
one without attention.

What the write-up says happened: nothing; it is a necessary baseline.
"""

from torch import Tensor

from glas_bench.model import Glas, Memory, RecurrentSettings


class NoAttention(Glas):
    """DRAW without attention."""

    Settings = RecurrentSettings
    citations = [  # noqa: RUF012
        {
            "dataset": "mnist-static",
            "nats": 87.40,
            "estimator": "variational bound",
            "split": "test",
            "source": "Rolfe, arXiv 1609.02200",
            "bound": True,
            "remark": "given there as DRAW's; that this is DRAW without attention is unverified",
            "epochs": None,
            "settings": {"sample_size": "100"},
        },
    ]

    def build_attention(self) -> int:
        return int(self.settings.hidden)

    def attend(self, e_BH: Tensor, memory: Memory, t: Tensor) -> tuple[Tensor, Memory]:
        return e_BH, memory
