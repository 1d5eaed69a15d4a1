"""Driving to a stop: accelerate, turn or brake, and how hard."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from hybrid_envs.checks import check_array, check_count
from hybrid_envs.core import Frame, HybridEnv
from hybrid_envs.rendering import draw_paths
from hybrid_envs.spaces import HybridAction

ACCELERATE, TURN, BRAKE = 0, 1, 2
FIELD_SIZE = 1.0
"""The field is the square [-1, 1]²."""
TARGET_RADIUS = 0.1
POSITION_SCALE = 0.3
"""Of coordinates in observations: the field is of size 1, but what matters in the end is a target of a tenth of that."""


@dataclass(frozen=True)
class MovingParams:
    """The numbers of one instance."""

    max_turn: float
    max_acceleration: float
    break_value: float
    delta_t: float
    penalty: float


class MovingState(NamedTuple):
    """Positions, velocities and targets, shape ``(batch, n_agents, 2)``; headings in radians, ``(batch, n_agents)``."""

    position: torch.Tensor
    velocity: torch.Tensor
    heading: torch.Tensor
    target: torch.Tensor
    period: torch.Tensor


class HybridMovingEnv(HybridEnv[MovingState]):
    """
    ## Description
    Drive to a target on a square field and come to a stop there, without leaving the field. Each period one accelerates, turns
    or brakes. With one agent this is gym-hybrid's ``Moving-v0``. With more of them, each has a target of its own, and all have
    to stand on their targets at once. They obey the same regime, so that the dimension of b grows, but not the number of
    regimes; or, with ``regimes="own"``, each chooses for itself: one factor for each agent.

    ## Action Space
    ``Tuple(Discrete(3), Box((2 * n_agents,)))``, b holding the accelerations in [0, 1] and then the rotations in [-1, 1]:
    regime 0 accelerates, regime 1 turns, regime 2 brakes. A regime ignores what is not its own, and bounds it to 0. With
    ``regimes="own"`` it is ``Tuple(MultiDiscrete([3] * n_agents), Box((2 * n_agents,)))``, the same for each agent.

    ## Observation Space
    ``Box(-inf, inf, (9 * n_agents + 1,))``: of each agent the position x, y, the speed, cos θ and sin θ of its heading, its
    target's x, y, the distance to it, and 1 where it is within the target's radius, else 0; last the share of the episode
    that is gone.

    ## Dynamics
    Speed changes first, then the agent moves for ``delta_t`` at its new velocity v:

        accelerate: v' = v + max_acceleration · b_1 · (cos θ, sin θ)
        turn: θ' = θ + max_turn · b_2, and v turns with it
        brake: |v'| = max(|v| - break_value, 0), in the direction of v

    ## Rewards
    What the distance to the target has shrunk by, the mean over the agents, less ``penalty``. Coming to a stop adds 1. Leaving
    the field or running out of time pays -1 instead. Results are quoted as total cost, the negated return of an episode;
    :meth:`success` tells which episodes ended on the target.

    ## Starting State
    At rest; position uniform on the field, heading on the circle, target on [-0.9, 0.9]². Nothing else is random.

    ## Episode End
    Terminated when every agent has speed 0 less than 0.1 from its target, when one is off the field, and after ``horizon``
    periods: the time is observed and running out of it is paid for, so the episode's end is the problem's own, no truncation.

    ## Differentiability
    Position, velocity, heading and progress carry gradients to state and b. There are kinks at the target's centre, at speed 0
    and where braking ends in speed 0. The bonus of 1, the malus of -1, the end of the episode and the indicator in the
    observation jump with the state and have no gradient: what b does to them is not in the pathwise term. HPO learns the end
    of the episode through the regimes, and through the values of the states on the way there (``pathwise_lambda`` below 1).
    The progress that the pathwise term sees is a fair guide, since it sums to the distance covered; but it is silent on the
    field's edge, and in the last step off the field it is nil.

    ## Arguments
    :param n_agents: p; 1 is gym-hybrid's task
    :param max_turn: radians turned by a rotation of 1
    :param max_acceleration: speed gained by an acceleration of 1
    :param break_value: speed lost by braking
    :param delta_t: duration of a period
    :param penalty: paid in every period that does not fail
    :param horizon: periods of an episode; gym-hybrid lets one more pass
    :param regimes: ``"shared"`` by all agents, or each has its ``"own"``
    :param render_mode: ``None`` or ``"rgb_array"``
    :raises ValueError: naming the argument, its value and what is allowed

    ## References
    Task, numbers and their names: gym-hybrid (https://github.com/thomashirtz/gym-hybrid), ``Moving-v0`` and ``Sliding-v0``,
    after Fan, Su, Zhang, Yu (2019), arXiv 1903.01344. Several agents are an addition of this suite. DI-engine's documentation
    (opendilab/DI-engine-docs, 13_envs/gym_hybrid_zh) runs PDQN, MPDQN and PADDPG for 10M steps and calls a return of 1.8 good.

    ## Version History
    v0: initial version
    """

    jumps = ("observation", "reward", "terminated")

    slides: ClassVar[bool] = False
    """Whether an agent that turns keeps its direction of travel."""

    def __init__(
        self,
        n_agents: int = 1,
        *,
        max_turn: float = np.pi / 2,
        max_acceleration: float = 0.5,
        break_value: float = 0.1,
        delta_t: float = 0.005,
        penalty: float = 0.001,
        horizon: int = 200,
        regimes: str = "shared",
        render_mode: str | None = None,
    ):
        if regimes not in ("shared", "own"):
            raise ValueError(f"regimes must be 'shared' or 'own', got {regimes!r}")
        self.n_agents = check_count("n_agents", n_agents)
        self.params = MovingParams(
            max_turn=float(check_array("max_turn", max_turn, (), above=0.0)),
            max_acceleration=float(check_array("max_acceleration", max_acceleration, (), above=0.0)),
            break_value=float(check_array("break_value", break_value, (), above=0.0)),
            delta_t=float(check_array("delta_t", delta_t, (), above=0.0)),
            penalty=float(check_array("penalty", penalty, (), at_least=0.0)),
        )
        bounds = np.zeros((3, 2, n_agents, 2))
        bounds[ACCELERATE, 0] = 0.0, 1.0
        bounds[TURN, 1] = -1.0, 1.0
        place = [POSITION_SCALE] * 2
        of_agent = [*place, 1.0, 1.0, 1.0, *place, TARGET_RADIUS, 1.0]
        observation_scale = np.append(np.tile(of_agent, n_agents), 1.0)
        super().__init__(
            action_bounds=bounds.reshape(3, 2 * n_agents, 2),
            observation_size=len(observation_scale),
            observation_scale=observation_scale,
            horizon=horizon,
            factor_sizes=[3] * n_agents if regimes == "own" else None,
            factor_of=np.tile(np.arange(n_agents), 2) if regimes == "own" else None,
            render_mode=render_mode,
        )

    def initial(self, batch_size: int, generator: torch.Generator) -> MovingState:
        shape = (batch_size, self.n_agents, 5)
        share = torch.rand(shape, generator=generator, dtype=self.dtype, device=self.device)
        position = FIELD_SIZE * (2 * share[..., :2] - 1)
        return MovingState(
            position,
            torch.zeros_like(position),
            2 * torch.pi * share[..., 4],
            (FIELD_SIZE - TARGET_RADIUS) * (2 * share[..., 2:4] - 1),
            torch.zeros(batch_size, dtype=torch.int64, device=self.device),
        )

    def transition(self, state: MovingState, action: HybridAction, noise: torch.Tensor) -> MovingState:
        acceleration, rotation = action.point.unflatten(1, (2, self.n_agents)).unbind(1)  # each (batch, n_agents)
        regime = self.factors.columns(action.regime)  # (batch, 1), or (batch, n_agents)
        gain = self.params.max_acceleration * acceleration * (regime == ACCELERATE)
        angle = self.params.max_turn * rotation * (regime == TURN)
        velocity = state.velocity + gain[..., None] * direction(state.heading)
        if not self.slides:
            velocity = rotate(velocity, angle)
        # |v| -> max(|v| - c, 0) as a factor: it is 1 - c/c = 0 exactly wherever |v| <= c
        kept = 1 - self.params.break_value / speed(velocity).clamp(min=self.params.break_value)
        velocity = torch.where((regime == BRAKE)[..., None], kept[..., None] * velocity, velocity)
        return MovingState(
            state.position + self.params.delta_t * velocity, velocity, state.heading + angle, state.target, state.period
        )

    def reward(self, state: MovingState, action: HybridAction, noise: torch.Tensor, next_state: MovingState) -> torch.Tensor:
        arrived = self.arrived(next_state)
        progress = (distance(state) - distance(next_state)).mean(dim=1)
        return torch.where(self.terminal(next_state) & ~arrived, -1.0, progress - self.params.penalty + arrived)

    def observation(self, state: MovingState) -> torch.Tensor:
        away = distance(state)
        of_agents = torch.cat(
            [
                state.position,
                speed(state.velocity)[..., None],
                direction(state.heading),
                state.target,
                away[..., None],
                (away <= TARGET_RADIUS)[..., None],
            ],
            dim=-1,
        )
        return torch.cat([of_agents.flatten(1), state.period[:, None] / self.horizon], dim=1)

    def arrived(self, state: MovingState) -> torch.Tensor:
        """
        :return: bool, shape ``(batch,)``: whether every agent stands within its target
        """
        return ((distance(state) < TARGET_RADIUS) & (state.velocity == 0).all(dim=-1)).all(dim=1)

    def terminal(self, state: MovingState) -> torch.Tensor:
        left = (state.position.abs() > FIELD_SIZE).flatten(1).any(dim=1)
        return self.arrived(state) | left | (state.period >= self.horizon)

    def success(self, costs: torch.Tensor) -> torch.Tensor:
        """Which episodes ended on the target."""
        # whoever has just come to a stop did not move, so that this period pays the bonus and the penalty, and nothing else
        return ((costs - (self.params.penalty - 1)).abs() < 1e-6).any(dim=0)

    def draw(self, frames: list[Frame]) -> np.ndarray:
        """The field with each agent's path, and its target as a circle."""
        paths = np.stack([frame.state.position[0].cpu().numpy() for frame in frames])
        targets = frames[0].state.target[0].cpu().numpy()
        return draw_paths(frames, paths, targets, TARGET_RADIUS, FIELD_SIZE, {0: "accelerate", 1: "turn", 2: "brake"})


class HybridSlidingEnv(HybridMovingEnv):
    """
    :class:`HybridMovingEnv` with inertia, gym-hybrid's ``Sliding-v0``: turning changes the heading, and the direction of
    travel stays as it is until one accelerates, which adds to the velocity along the heading. As there, the direction of
    travel is not observed, only the speed and the heading. All else, arguments included, is as in
    :class:`HybridMovingEnv`.
    """

    slides = True


def direction(angle: torch.Tensor) -> torch.Tensor:
    """
    :return: (cos, sin), shape ``(..., 2)``
    """
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def rotate(vector: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """
    :param vector: shape ``(..., 2)``
    :param angle: counterclockwise, in radians, shape ``(...)``
    """
    (x, y), (cos, sin) = vector.unbind(-1), direction(angle).unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)


def speed(velocity: torch.Tensor) -> torch.Tensor:
    """
    :return: |v|, shape ``(batch, n_agents)``; its gradient is zero at rest
    """
    return torch.linalg.vector_norm(velocity, dim=-1)


def distance(state: MovingState) -> torch.Tensor:
    """
    :return: to the target, shape ``(batch, n_agents)``
    """
    return torch.linalg.vector_norm(state.position - state.target, dim=-1)
