"""The models that are known by name: their size, licence and place of publication."""

import difflib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

_BIOHUB = "Biohub, which publishes ESM-C now, names the MIT license for it: the terms that came with your copy hold."

NOTICES: Mapping[str, str] = {
    "Cambrian Open": (
        "ESM-C 300M was published under the Cambrian Open License Agreement: what is built with it carries the name "
        "ESM and the same terms (https://www.evolutionaryscale.ai/policies/cambrian-open-license-agreement). " + _BIOHUB
    ),
    "Cambrian Non-Commercial": (
        "ESM-C 600M was published under the Cambrian Non-Commercial License Agreement, for non-commercial use only "
        "(https://www.evolutionaryscale.ai/policies/cambrian-non-commercial-license-agreement). " + _BIOHUB
    ),
}
"""What is said before the use of a model, by the name of its licence; licences that ask for little have no entry."""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """One published model; None stands for a figure that is not published.

    `repos` are its homes on the Hugging Face hub: the first is downloaded, any is used that is in the cache.
    `published` says where the files are when the hub does not have them. `max_residues` is the longest protein
    that the model takes in one piece.
    """

    name: str
    family: str
    license: str
    source: str
    repos: tuple[str, ...] = ()
    published: str = ""
    aliases: tuple[str, ...] = ()
    parameters: int | None = None
    n_layers: int | None = None
    d_model: int | None = None
    n_heads: int | None = None
    max_residues: int | Literal["none"] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All names it is found by: its own, the other ones, and those of its homes with and without the owner."""
        return (self.name, *self.aliases, *self.repos, *(repo.split("/")[1] for repo in self.repos))


def _esm2(size: str, parameters: int, n_layers: int, d_model: int, n_heads: int | None) -> KnownModel:
    return KnownModel(
        name=f"esm2_{size.lower()}",
        family="ESM-2",
        license="MIT",
        source="Lin et al. 2023, https://doi.org/10.1126/science.ade2574",
        repos=(f"facebook/esm2_t{n_layers}_{size}_UR50D",),
        parameters=parameters,
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        max_residues="none",
    )


def _esm1(name: str, family: str, repo: str, source: str) -> KnownModel:
    return KnownModel(
        name=name,
        family=family,
        license="MIT",
        source=source,
        repos=(repo,),
        parameters=650_000_000,
        n_layers=33,
        d_model=1280,
        n_heads=20,
        max_residues=1022,
    )


def _esmc(size: str, parameters: int, n_layers: int, d_model: int, n_heads: int, terms: str) -> KnownModel:
    return KnownModel(
        name=f"esmc_{size}",
        family="ESM-C",
        license=terms,
        source="EvolutionaryScale 2024, https://www.evolutionaryscale.ai/blog/esm-cambrian",
        repos=(f"EvolutionaryScale/esmc-{size}-2024-12", f"biohub/esmc-{size}-2024-12"),
        parameters=parameters,
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        max_residues="none",
    )


def _amplify(size: str, parameters: int, n_layers: int, d_model: int, n_heads: int) -> KnownModel:
    return KnownModel(
        name=f"amplify_{size.lower()}",
        family="AMPLIFY",
        license="MIT",
        source="Fournier et al. 2024, https://doi.org/10.1101/2024.09.23.614603",
        repos=(f"chandar-lab/AMPLIFY_{size}",),
        parameters=parameters,
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        max_residues=2046,
    )


def _prot_bert(name: str, *aliases: str) -> KnownModel:
    return KnownModel(
        name=name,
        family="ProtBert",
        license="AFL-3.0",
        source="Elnaggar et al. 2021, https://doi.org/10.1109/TPAMI.2021.3095381",
        repos=(f"Rostlab/{name}",),
        aliases=aliases,
        parameters=420_000_000,
        n_layers=30,
        d_model=1024,
        n_heads=16,
        max_residues=39_998,
    )


_ESM1B = "Rives et al. 2021, https://doi.org/10.1073/pnas.2016239118"
_ESM1V = "Meier et al. 2021, https://doi.org/10.1101/2021.07.09.450648"
_PROTEINLM = "Xiao et al. 2021, https://arxiv.org/abs/2108.07435"

KNOWN: tuple[KnownModel, ...] = (
    _esm2("8M", 8_000_000, 6, 320, 20),
    _esm2("35M", 35_000_000, 12, 480, 20),
    _esm2("150M", 150_000_000, 30, 640, 20),
    _esm2("650M", 650_000_000, 33, 1280, 20),
    _esm2("3B", 3_000_000_000, 36, 2560, 40),
    _esm2("15B", 15_000_000_000, 48, 5120, None),
    _esm1("esm1b", "ESM-1b", "facebook/esm1b_t33_650M_UR50S", _ESM1B),
    *(_esm1(f"esm1v_{i}", "ESM-1v", f"facebook/esm1v_t33_650M_UR90S_{i}", _ESM1V) for i in range(1, 6)),
    _esmc("300m", 300_000_000, 30, 960, 15, "Cambrian Open"),
    _esmc("600m", 600_000_000, 36, 1152, 18, "Cambrian Non-Commercial"),
    _amplify("120M", 120_000_000, 24, 640, 10),
    _amplify("350M", 350_000_000, 32, 960, 15),
    _prot_bert("prot_bert", "protbert"),
    _prot_bert("prot_bert_bfd", "protbert_bfd", "prottrans_bert_bfd"),
    KnownModel(
        name="proteinlm_200m",
        family="ProteinLM",
        license="Apache-2.0",
        source=_PROTEINLM,
        published="https://github.com/THUDM/ProteinLM#proteinlm-200m",
        parameters=200_000_000,
        n_layers=16,
        d_model=1024,
        n_heads=16,
        max_residues=2175,
    ),
    KnownModel(
        name="proteinlm_3b",
        family="ProteinLM",
        license="Apache-2.0",
        source=_PROTEINLM,
        published="https://github.com/THUDM/ProteinLM#proteinlm-3b",
        parameters=3_000_000_000,
    ),
    KnownModel(
        name="tape_bert_base",
        family="TAPE",
        license="BSD-3-Clause",
        source="Rao et al. 2019, https://arxiv.org/abs/1906.08230",
        published=(
            "https://s3.amazonaws.com/proteindata/pytorch-models/bert-base-pytorch_model.bin and bert-base-config.json "
            "beside it; save them in one folder as pytorch_model.bin and config.json"
        ),
        aliases=("tape", "tape_bert"),
        n_layers=12,
        d_model=768,
        n_heads=12,
    ),
)


def find_known(name: str) -> KnownModel | None:
    """Return the model of a name, however its letters are cased and its parts joined (`-` or `_`).

    >>> find_known("facebook/esm2_t33_650M_UR50D").name, find_known("ESMC-300M").name
    ('esm2_650m', 'esmc_300m')
    """
    return next((model for model in KNOWN if _plain(name) in map(_plain, model.names)), None)


def similar_names(name: str, others: Iterable[str] = ()) -> list[str]:
    """Return the short names of models whose names look like `name`, the closest first; `others` are further names.

    >>> similar_names("esm2_650")[0]
    'esm2_650m'
    """
    short = {_plain(other): other for other in others}
    short |= {_plain(known): model.name for model in KNOWN for known in model.names}
    close = difflib.get_close_matches(_plain(name), list(short), n=8, cutoff=0.7)
    return list(dict.fromkeys(short[match] for match in close))[:4]


def show_terms(terms: str) -> None:
    """Warn of a licence that restricts the use of a model; Python shows the same warning once."""
    if terms in NOTICES:
        warnings.warn(NOTICES[terms], stacklevel=1)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
