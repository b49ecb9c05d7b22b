"""The complete network: objects in GeV in, top momenta in GeV out.

Token building, normalisation, spurions, backbone, readout and head are all inside, so that a trained
network is one thing that can be saved, exported and called.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from topreco.config import ModelConfig
from topreco.network.encoder import EventNetwork, Raw
from topreco.network.tasks.heads import Head, soft_assignment
from topreco.network.tasks.quantiles import QuantileNetwork
from topreco.network.tokens import FIRST_JET, Objects, Tokens, build_tokens, charge_exchange


class TopNetwork(EventNetwork):
    """A network from reconstructed objects to the four-momenta of top and antitop.

    Parameters
    ----------
    config
        Configuration of the model.

    Attributes
    ----------
    quantiles
        Network of the uncertainties, None without `config.quantiles`.
    """

    _exchange_rows: Tensor
    _exchange_columns: Tensor
    _exchange_signs: Tensor

    def __init__(self, config: ModelConfig) -> None:
        head = Head(config.head, config.m_top)
        super().__init__(
            config, config.backbone, config.readout, scalars=head.scalars, jet_scalars=head.jet_scalars
        )
        self.head = head
        exchange_rows, exchange_columns, exchange_signs = charge_exchange(config.tokens)
        for name, value in {
            "_exchange_rows": torch.tensor(exchange_rows),
            "_exchange_columns": torch.tensor(exchange_columns),
            "_exchange_signs": torch.tensor(exchange_signs),
        }.items():
            self.register_buffer(name, value, persistent=False)
        # Last, so that the tops start from the same random numbers with and without.
        self.quantiles = None if config.quantiles is None else QuantileNetwork(config)

    def forward(self, objects: Objects) -> Float[Tensor, "n 2 4"]:
        """Four-momenta (E, px, py, pz) in GeV of top and antitop, shape (n, 2, 4).

        They are timelike with E > 0 whatever the input.
        """
        tokens = build_tokens(objects, self.config.tokens)
        return self.forward_tokens(tokens, self.scale_of(tokens))

    def answers(self, objects: Objects) -> tuple[Tensor, ...]:
        """All that the network says: the four-momenta and, with quantiles, the fields of `Spread`."""
        p4 = self(objects)
        return (p4,) if self.quantiles is None else (p4, *self.quantiles(objects, p4))

    def forward_tokens(
        self,
        tokens: Tokens,
        scale: Float[Tensor, "n"],
        spurions: Float[Tensor, "k 16"] | None = None,
    ) -> Float[Tensor, "n 2 4"]:
        """Four-momenta of top and antitop from tokens.

        This is the entry at which a Lorentz transformation of everything the network sees, the spurions
        included, can be applied.

        Parameters
        ----------
        tokens
            Tokens in GeV.
        scale
            Normalisation of each event in GeV, shape (n,).
        spurions
            Reference multivectors in place of the model's, shape (k, 16).
        """
        spurions = self.spurions if spurions is None else spurions
        raw = self.raw(tokens, scale, spurions)
        if self.config.charge_symmetric:
            exchanged = self.raw(self._charge_exchanged(tokens), scale, spurions)
            raw = Raw(*(0.5 * (own + other.flip(1)) for own, other in zip(raw, exchanged, strict=True)))
        return self.head(
            raw.vectors, raw.scalars, self._visible(tokens), scale, self._decay(tokens, raw.jet_scalars)
        )

    def _decay(self, tokens: Tokens, jet_scalars: Float[Tensor, "n 2 J s"]) -> Float[Tensor, "n 2 4"] | None:
        """Lepton and softly assigned jets of each top in GeV, shape (n, 2, 4), if the head wants them."""
        if not self.head.jet_scalars:
            return None
        # The leptons stand in the order of their tops.
        bottoms = soft_assignment(jet_scalars[..., 0], tokens.p4[:, self._jets], tokens.mask[:, self._jets])
        return tokens.p4[:, :FIRST_JET] + bottoms

    def _charge_exchanged(self, tokens: Tokens) -> Tokens:
        rows = self._exchange_rows
        scalars = tokens.scalars[:, rows][..., self._exchange_columns] * self._exchange_signs
        return Tokens(tokens.p4[:, rows], scalars, tokens.mask[:, rows])


def build_network(config: ModelConfig) -> TopNetwork:
    """Untrained network of a configuration; its weights come from torch's global generator.

    Raises
    ------
    ValueError
        If a backbone cannot be built as configured.
    """
    return TopNetwork(config)
