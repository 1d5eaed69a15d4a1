"""Many scenarios of one hybrid environment, stepped together through its batched equations."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from hybrid_envs.checks import check_count, require_choice, require_finite, to_numpy
from hybrid_envs.core import HybridEnv, StepResult
from hybrid_envs.episode import load_episode, save_episode
from hybrid_envs.probing import check_first_period
from hybrid_envs.spaces import HybridAction


class HybridVectorEnv(gym.vector.VectorEnv):
    """
    A natively batched vector environment: one call of ``step_torch`` advances all scenarios.

    A scenario that ends is reset in the same step: ``step`` returns the new episode's first observation, and
    ``info["final_obs"]`` holds the last one of the old episode (Gymnasium's ``AutoresetMode.SAME_STEP``).

    :param env: the environment; its equations and parameters are used, its own episode is not touched
    :param num_envs: number of scenarios
    :raises HybridEnvError: if what the hooks of a first period return is of another shape or type than it has to be
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # type: ignore[misc]

    def __init__(self, env: HybridEnv, num_envs: int):
        self.env = env
        self.num_envs = check_count("num_envs", num_envs)
        check_first_period(env)
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
        self.observation_space = batch_space(env.observation_space, num_envs)
        self.action_space = batch_space(env.action_space, num_envs)
        self._state: Any = None
        self._observation: torch.Tensor | None = None
        self._clock: int | None = None
        self.restarted = False
        """Whether the last step ended episodes, so that some of the present states are those of new ones."""
        self.noise = torch.empty(0)
        self.generator = torch.Generator(env.device)
        self._rows = torch.arange(num_envs, device=env.device)

    @property
    def state(self) -> Any:
        """The present states, of the environment's NamedTuple type; ``None`` before the first reset."""
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        self._state, self._observation, self._clock = state, None, None
        if state is not None and not self.env.may_end_early:
            first = int(state.period[0])
            self._clock = first if bool((state.period == first).all()) else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        if options and options.get("reset_mask") is not None:
            raise ValueError("options['reset_mask']: scenarios are reset together, and each at its end by step()")
        super().reset(seed=seed)
        self.generator.manual_seed(int(self.np_random.integers(2**63)))
        self.state, self.noise = self._draw()
        return to_numpy(self.observation()), {}

    def to(self, device: torch.device) -> None:
        """
        Simulate on another device; running episodes end. The environment moves along.

        :param device: where to compute
        """
        if device != self.env.device:
            self.env.to(device)
            self.generator = torch.Generator(device)
            self._rows = self._rows.to(device)
            self.state = None

    def observation(self) -> torch.Tensor:
        """
        :return: what is seen of the present states, shape ``(num_envs, d)``
        """
        if self._observation is None:
            self._observation = self.env.observation(self.state)
        return self._observation

    def regime_mask(self) -> torch.Tensor | None:
        """
        :return: which regimes may be taken in the present states, bool, shape ``(num_envs, J)``, of several factors
            ``(num_envs, ΣJ_f)``; ``None`` if the environment masks none
        :raises ValueError: if some state allows no regime
        """
        if not self.env.masks_regimes:
            return None
        mask = self.env.regime_mask(self.state)
        require_choice(self.env.name, self.env.factors.leaves_a_choice(mask), self.state.period)
        return mask

    def advance(self, action: HybridAction) -> tuple[StepResult, torch.Tensor]:
        """
        One period in torch. The states keep their history: called with gradients enabled, costs of later periods are
        differentiable in the actions of earlier ones. Gradients are cut where a scenario is reset.

        :param action: (x, b), shapes ``(num_envs,)``, of several factors ``(num_envs, m)``, and ``(num_envs, n)``
        :return: the result before any reset, and which scenarios have ended, bool ``(num_envs,)``
        """
        return self.accept(self.outcome(action))

    def outcome(self, action: HybridAction) -> StepResult:
        """
        :param action: as for :meth:`advance`
        :return: what it leads to. The scenarios stay where they are
        """
        return self.env.step_torch(self.state, action, self.present_noise())

    def accept(self, result: StepResult) -> tuple[StepResult, torch.Tensor]:
        """
        Go on to the states that actions led to, or begin anew where an episode has ended.

        :param result: an :meth:`outcome`
        :return: as from :meth:`advance`
        """
        done = result.terminated | result.truncated
        self._state, self._observation = result.state, result.observation
        # Scenarios that go in step end together, and when is known without a look at them: a GPU need not be waited for.
        if self._clock is not None:
            self._clock += 1
        self.restarted = self._some(done) if self._clock is None else self._clock >= self.env.horizon
        if self.restarted:
            self._restart(done)
        return result, done

    def state_dict(self) -> dict[str, Any]:
        """
        :return: the running episodes and the sources of randomness, as tensors and plain data, without gradients; after
            :meth:`load_state_dict` another vector of the same problem goes on exactly as this one does
        """
        return save_episode(self, self.state, self.noise, self.generator)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """
        :param saved: what :meth:`state_dict` returned
        :raises ValueError: if it comes from another problem or another number of scenarios
        """
        if saved["state"] is not None and len(saved["state"]["period"]) != self.num_envs:
            raise ValueError(
                f"{self.env.name}: {len(saved['state']['period'])} scenarios were saved, here are {self.num_envs}"
            )
        self.state, self.noise = load_episode(
            self, self.env.name, self.env.template(), self.env.horizon, self.generator, saved
        )

    def present_noise(self) -> torch.Tensor:
        """
        :return: ξ of the present period of each scenario, shape ``(num_envs, ...)``
        """
        return self.noise[self.state.period, self._rows] if self._clock is None else self.noise[self._clock]

    def present(self) -> tuple[Any, torch.Tensor]:
        """
        :return: the present states, without their history, and the noise of their periods
        """
        return type(self.state)(*(field.detach() for field in self.state)), self.present_noise()

    def detach(self) -> None:
        """Forget how the present states came about: gradients will not flow past this moment."""
        self._state, _ = self.present()
        self._observation = None

    def discount_gradient(self, gamma: float) -> None:
        """
        From now on, scale every gradient that flows back through the present states, or what is seen of them, by ``gamma``.
        Done in every period, this makes b_t answer for Σ_k γ^(k-t) c_k: the same discounted costs by which PPO judges x_t.

        :param gamma: γ, at most 1
        """
        if gamma == 1.0:
            return

        def scaled(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.requires_grad:
                return tensor
            view = tensor.view_as(tensor)  # the last period's result keeps the tensor without the hook
            view.register_hook(lambda gradient: gamma * gradient)
            return view

        self._observation = scaled(self.observation())
        self._state = type(self.state)(*map(scaled, self.state))

    def _draw(self) -> tuple[Any, torch.Tensor]:
        """
        :return: starting states and noise of as many new scenarios
        """
        return self.env.sample_scenarios(self.num_envs, self.generator)

    def _some(self, done: torch.Tensor) -> bool:
        """
        :return: whether new scenarios have to be drawn
        """
        return bool(done.any())

    def _restart(self, done: torch.Tensor) -> None:
        fresh, noise = self._draw()
        if self._clock is not None:  # all of them begin anew
            self._state, self._observation, self._clock, self.noise = fresh, None, 0, noise
            return
        self.state = type(fresh)(*(_where(done, new, old) for new, old in zip(fresh, self.state, strict=True)))
        self.noise = _where(done, noise.transpose(0, 1), self.noise.transpose(0, 1)).transpose(0, 1)

    def step(
        self, actions: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """
        :param actions: regimes, shape ``(num_envs,)``, of several factors ``(num_envs, m)``; and points, ``(num_envs, n)``
        :raises ValueError: if an action lies outside the action space or its regime is masked
        :raises FloatingPointError: if a state or cost is no longer finite
        """
        if self.state is None:
            raise gym.error.ResetNeeded(f"{self.env.name}: call reset() before step()")
        regimes, points = (np.asarray(part) for part in actions)
        shapes = self.env.factors.shape(self.num_envs), (self.num_envs, self.env.action_size)
        if (regimes.shape, points.shape) != shapes:
            got = f"{regimes.shape} and {points.shape}"
            raise ValueError(f"{self.env.name}: actions must have shapes {shapes[0]} and {shapes[1]}, got {got}")
        points = points.astype(np.float32)
        mask = self.regime_mask()
        if (
            regimes.dtype.kind not in "iu"
            or not np.isfinite(points).all()
            or not self.action_space.contains((regimes.astype(np.int64), points))
            or not self.env.factors.permits(torch.as_tensor(regimes.astype(np.int64), device=self.env.device), mask).all()
        ):
            masks = None if mask is None else mask.cpu().numpy()
            for i, action in enumerate(zip(regimes, points, strict=True)):
                self.env.check_action(action, None if masks is None else masks[i])
        with torch.no_grad():
            period = self.state.period
            result, done = self.advance(
                HybridAction(
                    torch.as_tensor(regimes, dtype=torch.int64, device=self.env.device),
                    torch.as_tensor(points, dtype=self.env.dtype, device=self.env.device),
                )
            )
            observation = self.observation()
        require_finite(self.env.name, "observation", result.observation, period)
        require_finite(self.env.name, "reward", result.reward, period)
        info: dict[str, Any] = {}
        if done.any():
            final = np.full(self.num_envs, None, dtype=object)
            ended = done.cpu().numpy()
            for row in np.flatnonzero(ended):
                final[row] = to_numpy(result.observation[row])
            info = {"final_obs": final, "_final_obs": ended, "final_info": {}, "_final_info": ended}
        return (
            to_numpy(observation),
            result.reward.double().cpu().numpy(),
            result.terminated.cpu().numpy(),
            result.truncated.cpu().numpy(),
            info,
        )


def _where(rows: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """``new`` in the given rows, ``old`` elsewhere, along the leading dimension."""
    return torch.where(rows.view(-1, *[1] * (new.dim() - 1)), new, old)
