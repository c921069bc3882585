"""The problems of the tests of an operator's contract, as parameters of pytest."""

from __future__ import annotations

import pytest

from support.problems import VARIANTS, problems

PROBLEMS = list(problems())
SMALL = [problem for problem in PROBLEMS if not problem.large]
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)
every_variant = pytest.mark.parametrize("variant", VARIANTS)
differentiable = pytest.mark.parametrize("variant", [name for name, make in VARIANTS.items() if make(1).gradient])
