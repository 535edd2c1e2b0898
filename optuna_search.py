"""The search by Optuna's samplers: TPE, NSGA-II, or at random, with the same costs, scores and results as the evolution.

Dynamic-TinyBERT's recipe searches by Bayesian optimisation, 150 trials (https://arxiv.org/abs/2111.09645); the service
it used is gone, and TPE takes its place.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from candidates import Candidate, LengthConfig, SearchError
from evolution import initial_configs
from length_config import MIN_LENGTH
from racing import RacingSearch
from search_settings import SearchSettings

if TYPE_CHECKING:
    import optuna

TRIALS = 150
BATCH = 10  # configs that are proposed before the sampler hears of their scores


def import_optuna():
    """Optuna, quiet; SearchError that says how to install it."""
    try:
        import optuna
    except ImportError:
        raise SearchError("this search needs Optuna: pip install -r requirements.txt") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def make_study(sampler: str, seed: int, population_size: int, storage=None, name: str | None = None) -> "optuna.Study":
    """A study whose sampler is tpe, nsga2 or random, in memory or shared through `storage` by all that give the same `name`."""
    optuna = import_optuna()
    samplers = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=population_size),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=max(2, population_size)),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    return optuna.create_study(
        sampler=samplers[sampler](),
        directions=["minimize", "maximize"],
        storage=storage,
        study_name=name and f"{name}-{sampler}",
        load_if_exists=True,
    )


class OptunaSearch(RacingSearch):
    """Ask a sampler for length configs, after the constant-ratio ones that every search begins with.

    A layer keeps at most as many tokens as its parameter says, so that every point is a length config: l_i = min(l_{i-1},
    x_i), with x_i between the cheapest constant-ratio config's length and the longest.
    """

    def __init__(
        self,
        cost: Callable,
        score: Callable,
        study: "optuna.Study",
        settings: SearchSettings,
        **kwargs,
    ):
        super().__init__(cost, score, settings, **kwargs)
        self.initial, self.study = initial_configs(self.cost, settings), study
        lowest = settings.constant_ratio(settings.floor_ratio)
        lowest = lowest if settings.min_cost is None else (MIN_LENGTH,) * settings.num_layers
        self.ranges = {f"layer_{layer}": (low, settings.max_length) for layer, low in enumerate(lowest)}

    @property
    def total(self) -> int:
        """How many configs are scored at most, whatever the sizes of an evolution."""
        return self.settings.max_candidates or TRIALS

    def explore(self) -> None:
        for config in self.initial:
            self.study.enqueue_trial(dict(zip(self.ranges, config)), skip_if_exists=True)
        asked = failed = 0
        while not self.spent() and failed < self.settings.max_retries:
            before, trials = len(self._found), [self.study.ask() for _ in range(BATCH)]
            configs = [self._config(trial) for trial in trials]
            for config in configs:
                if config not in self._found and self.within_bounds(config) and not self.spent():
                    self.add(config, "initial" if config in self.initial else "sampled")
            self.settle(self.look_after(len(self._found) / self.total))
            for trial, config in zip(trials, configs):
                self._tell(trial, self._found.get(config))
            asked += BATCH
            failed = 0 if len(self._found) > before else failed + BATCH
            self.log(f"after {asked} trials")

    def _config(self, trial: "optuna.Trial") -> LengthConfig:
        lengths = [trial.suggest_int(name, *bounds) for name, bounds in self.ranges.items()]
        return tuple(min(lengths[: layer + 1]) for layer in range(len(lengths)))

    def _tell(self, trial: "optuna.Trial", candidate: Candidate | None) -> None:
        """What the sampler learns; nothing of what was beyond the bounds, or is in another process' hands."""
        if candidate is None:
            self._counts["failed"] += 1
            self.study.tell(trial, state=import_optuna().trial.TrialState.FAIL)
        else:
            self.study.tell(trial, [candidate.cost, candidate.score])
