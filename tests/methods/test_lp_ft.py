"""Fine-tuning from a logistic regression: where it starts, against scikit-learn, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import cut_off, rows
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from tiny import CPU, TinySpec
from torch import Tensor, nn

from jtln.costs import UniformCost
from jtln.data.features import Features
from jtln.errors import UserError
from jtln.heads import HeadInputs, Linear, Logistic
from jtln.methods import Method
from jtln.module import JTLN, Optimization
from jtln.training.experiment import Experiment
from jtln.training.pretraining import Pretraining
from jtln.training.run import run, start_target_head
from jtln.training.trainer import Budget, pair_data
from jtln.transport import TransportedPrior, TransportSettings
from jtln.trunks.base import Trunk

START = Method("lp_ft", start_from="logistic")
C, LENGTH = 30.0, 5.0  # Logistic's defaults


def built(trunk: Trunk, method: Method = START, prior: TransportedPrior | None = None) -> tuple[JTLN, Features]:
    data = pair_data(TinySpec().load(), trunk, Budget(1, 1, 8, 6), seed=0, augment=None)
    return JTLN(trunk, 4, 3, method, prior=prior), Features(trunk, data, "cpu")


def labelled(features: Features) -> tuple[Tensor, Tensor]:
    batches = list(features.of("target"))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_the_head_starts_at_scikit_learns_regression(make_trunk: Callable[..., Trunk]) -> None:
    """On features of mean length 5; a constant column of 1/sqrt(C) gives the bias the penalty |b|^2 / 2."""
    torch.manual_seed(0)
    module, features = built(make_trunk(dropout=0.3))
    module.train()
    start_target_head(module, features)
    x, y = labelled(features)
    rows_ = x.double().numpy() * LENGTH / np.linalg.norm(x.double().numpy(), axis=1).mean()
    rows_ = np.hstack([rows_, np.full((len(rows_), 1), C**-0.5)])
    expected = LogisticRegression(C=C, fit_intercept=False, tol=1e-10, max_iter=10000).fit(rows_, y.numpy())
    found = module.target_head(x).detach().softmax(1).numpy()
    np.testing.assert_allclose(found, expected.predict_proba(rows_), atol=1e-4)
    assert module.trunk.training


def test_with_a_prior_it_is_fitted_with_the_prior_in_place(make_trunk: Callable[..., Trunk]) -> None:
    """At the optimum of sum CE + |W|^2 / 2C + |b|^2 / 2 the gradient is zero, that of the whole prediction."""
    torch.manual_seed(0)
    shares = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    module, features = built(make_trunk(), prior=TransportedPrior(shares / shares.sum(1, keepdim=True), alpha=2.0))
    nn.init.normal_(module.source_head.weight, std=3)
    start_target_head(module, features)
    x, y = labelled(features)
    scale = LENGTH / x.double().norm(dim=1).mean().item()
    slope = softmax(module.target_logits(x).detach().double().numpy(), 1)
    slope[np.arange(len(y)), y.numpy()] -= 1
    weight, bias = (getattr(module.target_head, name).detach().double().numpy() for name in ("weight", "bias"))
    np.testing.assert_allclose(slope.T @ x.double().numpy() * scale + weight / scale / C, 0, atol=1e-3)
    np.testing.assert_allclose(slope.sum(0) + bias, 0, atol=1e-3)


def test_a_random_start_stays(make_trunk: Callable[..., Trunk]) -> None:
    module, features = built(make_trunk(), Method())
    before = module.target_head.weight.clone()
    assert start_target_head(module, features) is None
    assert torch.equal(module.target_head.weight, before)
    with pytest.raises(UserError, match=r"start_from 'zero'.*random, logistic"):
        Method(start_from="zero")


@pytest.fixture
def experiment(make_trunk: Callable[..., Trunk], tmp_path: Path) -> Experiment:
    return Experiment(
        method=START,
        head=Linear(),
        cost=UniformCost(),
        transport=TransportSettings(),
        spec=TinySpec(),
        make_trunk=make_trunk,
        budget=Budget(3, 4, 8, 6),
        optimization=Optimization(partial(torch.optim.SGD, lr=0.1), 0.5),
        trainer=replace(CPU, options={**CPU.options, "log_every_n_steps": 1}),
        folder=tmp_path / "run",
        dataset="tiny",
        cost_name="uniform",
        pretraining=Pretraining(Budget(1, 3, 8, 1), 0, Optimization(partial(torch.optim.AdamW, lr=1e-2), 1.0)),
        cache=tmp_path / "cache",
    )


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_at_a_rate_of_zero_the_run_ends_where_it_starts(alpha: float, experiment: Experiment) -> None:
    """The regression on the pre-trained trunk's features, under the prior that the checkpoint holds."""
    still = Optimization(partial(torch.optim.SGD, lr=0.0), 1.0)
    run(replace(experiment, optimization=still, head=Linear(prior=alpha)))
    state = torch.load(experiment.folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    prior = TransportedPrior(state["prior.rows"]) if alpha else None
    module, features = built(experiment.make_trunk(), prior=prior)
    parts = ("trunk.", "source_head.", "target_head.", "prior.")
    module.load_state_dict({name: value for name, value in state.items() if name.startswith(parts)}, strict=False)
    given = HeadInputs(features, (4, 3), prior=module.log_prior)
    expected = Logistic(normalization="mean", temperature=None).fit(nn.Linear(6, 3), given).classifier
    x = labelled(features)[0]
    torch.testing.assert_close(module.target_head(x), expected(x), atol=1e-4, rtol=1e-4)
    assert (module.log_prior is not None) == bool(alpha)


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
def test_a_run_that_was_cut_off_does_not_start_anew(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(replace(experiment, folder=tmp_path / "whole"))
    halves = replace(experiment, folder=tmp_path / "halves")
    cut_off(halves, monkeypatch)
    result = run(replace(halves, resume=True))
    assert rows(tmp_path / "halves") == rows(tmp_path / "whole")
    assert result["target"] == expected["target"]
