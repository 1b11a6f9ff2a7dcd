"""``jtln cost``: look at a cost matrix before any training."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from jtln.cli.hydra_app import run_hydra
from jtln.errors import UserError

HELP = """\
usage: jtln cost [GROUP=FILE ...] [KEY=VALUE ...]

Print each target class's nearest source classes, and write cost.csv and cost.png, without training.
Groups and keys are those of training, dataset and cost above all: jtln train --help. For instance:

  jtln cost dataset=pictograms cost=wordnet cost.metric=path
  jtln cost dataset=folder dataset.source.root=PHOTOS dataset.target.root=MINE"""


def main(arguments: list[str]) -> int:
    """Print each target class's nearest source classes; write cost.csv and cost.png. Returns the exit code."""
    if {"--help", "-h"} & set(arguments):
        print(HELP)
        return 0
    return run_hydra(["hydra.run.dir=outputs/cost/${now:%Y-%m-%d_%H-%M-%S}", *arguments], _show_cost)


def _show_cost(config: DictConfig) -> None:
    from jtln.costs.file import save_cost
    from jtln.reporting.plots import cost_heatmap
    from jtln.reporting.tables import Column, show

    spec, cost = instantiate(config.dataset), instantiate(config.cost)
    name = str(dict(HydraConfig.get().runtime.choices)["cost"])
    if cost.updates != "never":
        raise UserError(f"cost={name} is read off trained features: run train.py, which writes it as cost.csv")
    source, target = spec.source_classes, spec.target_classes
    matrix = cost.matrix(source, target)  # (S, T)
    unknown = cost.unknown(source, target)
    known = [i for i in range(len(source)) if i not in set(unknown.source)]
    rows = []
    for j, label in enumerate(target):
        if j in unknown.target:
            rows.append([label, "no knowledge: mean costs", ""])
            continue
        order = [known[i] for i in matrix[known, j].argsort(stable=True).tolist()]
        near = [f"{source.names[i]} {matrix[i, j]:.2f}" for i in order[:3]]
        rows.append([label, ", ".join(near), f"{source.names[order[-1]]} {matrix[order[-1], j]:.2f}"])
    columns = [Column("target class"), Column("nearest source classes"), Column("farthest")]
    show(f"cost={name} on {spec.name}: {len(source)} source x {len(target)} target classes", columns, rows)
    for side, classes, indices in (("source", source, unknown.source), ("target", target, unknown.target)):
        if indices:
            names = ", ".join(classes.names[index] for index in indices)
            print(f"no knowledge of {len(indices)} of {len(classes)} {side} classes: {names}")
    if unknown.source or unknown.target:
        print(cost.remedy)
    folder = Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    save_cost(folder / "cost.csv", matrix, source, target)
    cost_heatmap(matrix, source.names, target.names, f"cost {name}").savefig(folder / "cost.png")
    print(f"cost.csv and cost.png: {folder}")
