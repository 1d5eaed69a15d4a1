"""Environments as peers wrote them, with the old gym API and its spaces (here by likeness), behind PeerEnvWrapper."""

from collections import OrderedDict
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from hybrid_envs.wrappers import PeerEnvWrapper


def old_box(low, high):
    low, high = np.float32(low), np.float32(high)
    return SimpleNamespace(low=low, high=high, shape=low.shape, dtype=np.dtype(np.float32))


def old_discrete(n):
    return SimpleNamespace(n=n, shape=(), dtype=np.dtype(np.int64))


def old_tuple(*parts):
    return SimpleNamespace(spaces=list(parts))


class Peer:
    """Runs for five steps, pays what the parameters of the action taken say, and remembers what it was asked to do."""

    observation_space = old_box([-1.0, -1.0], [1.0, 1.0])

    def __init__(self):
        self.rng, self.received, self.steps = np.random.RandomState(), [], 0

    def seed(self, seed=None):
        self.rng = np.random.RandomState(seed)
        return [seed]

    def observe(self):
        return list(self.rng.uniform(-1, 1, 2))

    def reset(self):
        self.steps = 0
        return self.observe()

    def step(self, action):
        self.received.append(action)
        self.steps += 1
        return self.observe(), self.reward(*action), self.steps == 5, {}

    def reward(self, regime, *parameters):
        return -float(sum(np.abs(array).sum() for array in parameters))


class Moving(Peer):
    """Tuple(Discrete, Box), as in gym-hybrid: accelerate, turn, brake."""

    action_space = old_tuple(old_discrete(3), old_box([0.0, -1.0], [1.0, 1.0]))


class Platform(Peer):
    """Tuple(Discrete, Tuple(Box, ..., Box)), and observations with a clock, as in gym-platform; here of unequal length."""

    action_space = old_tuple(
        old_discrete(3), old_tuple(old_box([0.0], [30.0]), old_box([2.0, -9.0], [720.0, -1.0]), old_box([], []))
    )
    observation_space = old_tuple(Peer.observation_space, old_discrete(200))

    def observe(self):
        return (np.array(super().observe()), self.steps)

    def reward(self, regime, parameters):
        assert all(p.shape == box.shape for p, box in zip(parameters, self.action_space.spaces[1].spaces, strict=True))
        return -float(np.abs(parameters[regime]).sum())


class Goal(Peer):
    """Tuple(Discrete, Box, ..., Box), one Box per regime; observations are a Dict."""

    action_space = old_tuple(old_discrete(2), old_box([-5.0, -5.0], [5.0, 5.0]), old_box([-1.0], [0.0]))
    observation_space = SimpleNamespace(spaces=OrderedDict(ball=Peer.observation_space, side=old_discrete(2)))

    def observe(self):
        return {"side": 1, "ball": np.array(super().observe())}


class Soccer(Peer):
    """Five Boxes for three regimes."""

    action_space = old_tuple(old_discrete(3), *(old_box([-high], [high]) for high in (100.0, 180.0, 90.0, 50.0, 70.0)))


class Modern(Goal):
    """The same layout with Gymnasium's API and spaces, and a regime that counts from 1."""

    action_space = gymnasium.spaces.Tuple(
        (gymnasium.spaces.Discrete(2, start=1), gymnasium.spaces.Box(-5, 5, (2,)), gymnasium.spaces.Box(-1, 0, (1,)))
    )
    observation_space = gymnasium.spaces.Dict(ball=gymnasium.spaces.Box(-1, 1, (2,)), side=gymnasium.spaces.Discrete(2))
    seed = None

    def reset(self, *, seed=None, options=None):
        self.rng, self.options = np.random.RandomState(seed), options
        return super().reset(), {"fresh": True}

    def step(self, action):
        observation, reward, done, info = super().step(action)
        return observation, reward, False, done, info


class Boiler(Peer):
    """A Dict with several choices."""

    action_space = SimpleNamespace(
        spaces=OrderedDict(mode=old_discrete(3), valve=old_discrete(2), power=old_box([0.0, -1.0], [5.0, 1.0]))
    )

    def step(self, action):
        return super().step(tuple(action.values()))

    def reward(self, mode, valve, power):
        return float(mode - valve - np.abs(power).sum())


class Plant(Peer):
    """Dicts in a Tuple, a MultiDiscrete, Boxes of any shape, choices that count from elsewhere; Gymnasium's spaces."""

    action_space = gymnasium.spaces.Tuple(
        (
            gymnasium.spaces.Dict(heat=gymnasium.spaces.Box(0, 2, (2, 1)), on=gymnasium.spaces.Discrete(2, start=1)),
            gymnasium.spaces.MultiDiscrete([3, 4], start=[0, -1]),
            gymnasium.spaces.Box(-1, np.inf, ()),
        )
    )

    def step(self, action):
        assert action in self.action_space
        self.received.append(action)
        return self.observe(), float(action[1].sum() - action[2]), False, {}


class Mute(Moving):
    seed = property()  # raises AttributeError: there is none


SOCCER = {"boxes_of": [[0, 1], [2], [3, 4]]}
PEERS = [(Moving, {}), (Platform, {}), (Goal, {}), (Soccer, SOCCER), (Modern, {}), (Boiler, {}), (Plant, {})]
every_peer = pytest.mark.parametrize(("peer", "kwargs"), PEERS, ids=lambda value: getattr(value, "__name__", ""))


@every_peer
def test_gymnasiums_checker_passes(peer, kwargs):
    with pytest.warns() as caught:
        check_env(PeerEnvWrapper(peer(), **kwargs))
    texts = [str(warning.message) for warning in caught]
    # what it may say of any hybrid environment made without gymnasium.make
    assert all("spec" in text or "symmetric" in text or "infinity" in text for text in texts), texts


@pytest.mark.parametrize(
    ("peer", "kwargs", "bounds"),
    [
        (Moving, {}, [[[0, 1], [-1, 1]]] * 3),
        (Platform, {}, [[[0, 30], [0, 0]], [[2, 720], [-9, -1]], [[0, 0], [0, 0]]]),
        (Goal, {}, [[[-5, 5], [-5, 5]], [[-1, 0], [0, 0]]]),
        (Soccer, SOCCER, [[[-100, 100], [-180, 180]], [[-90, 90], [0, 0]], [[-50, 50], [-70, 70]]]),
        (Modern, {}, [[[-5, 5], [-5, 5]], [[-1, 0], [0, 0]]]),
    ],
)
def test_each_regime_has_the_bounds_of_its_own_boxes_and_the_box_is_their_hull(peer, kwargs, bounds):
    env = PeerEnvWrapper(peer(), **kwargs)
    np.testing.assert_array_equal(env.action_bounds, bounds)
    assert env.action_space[0] == gymnasium.spaces.Discrete(len(bounds))
    np.testing.assert_array_equal(env.action_space[1].low, np.min(bounds, axis=0)[:, 0])
    np.testing.assert_array_equal(env.action_space[1].high, np.max(bounds, axis=0)[:, 1])


@pytest.mark.parametrize(
    ("peer", "kwargs", "action", "expected"),
    [
        (Moving, {}, (1, [0.5, -0.5]), (1, [0.5, -0.5])),
        (Platform, {}, (0, [12, 0]), (0, ([12], [2, -1], []))),
        (Platform, {}, (1, [12, -3]), (1, ([0], [12, -3], []))),
        (Platform, {}, (0, [700, -3]), (0, ([30], [2, -1], []))),  # in the hull, beyond the bounds of regime 0
        (Platform, {}, (2, [700, -3]), (2, ([0], [2, -1], []))),
        (Goal, {}, (1, [-0.5, 4]), (1, [0, 0], [-0.5])),
        (Soccer, SOCCER, (2, [40, -60]), (2, [0], [0], [0], [40], [-60])),
        (Modern, {}, (0, [1, 2]), (1, [1, 2], [0])),
    ],
)
def test_actions_arrive_in_the_layout_of_the_environment(peer, kwargs, action, expected):
    inner = peer()
    env = PeerEnvWrapper(inner, **kwargs)
    env.reset(seed=0)
    env.step((action[0], np.array(action[1], dtype=np.float32)))

    def plain(value):
        return tuple(map(plain, value)) if isinstance(value, tuple) else getattr(value, "tolist", lambda: value)()

    assert plain(inner.received[0]) == expected


@pytest.mark.parametrize(
    ("space", "regimes", "point"),
    [
        (Boiler.action_space, gymnasium.spaces.MultiDiscrete([3, 2]), [[0, 5], [-1, 1]]),
        (Plant.action_space, gymnasium.spaces.MultiDiscrete([2, 3, 4]), [[0, 2], [0, 2], [-1, np.inf]]),
        (
            old_tuple(old_discrete(2), old_discrete(4), old_box([0.0], [1.0])),
            gymnasium.spaces.MultiDiscrete([2, 4]),
            [[0, 1]],
        ),
        (
            old_tuple(old_discrete(2), old_tuple(old_box([0.0], [1.0]), old_discrete(3))),
            gymnasium.spaces.MultiDiscrete([2, 3]),
            [[0, 1]],
        ),
        (old_tuple(old_box([0.0], [1.0]), old_discrete(2)), gymnasium.spaces.Discrete(2), [[0, 1]]),
        (
            gymnasium.spaces.Dict(left=Plant.action_space[0], right=Plant.action_space[0]),
            gymnasium.spaces.MultiDiscrete([2, 2]),
            [[0, 2]] * 4,
        ),
        (
            gymnasium.spaces.Dict(regime=gymnasium.spaces.Discrete(2), point=gymnasium.spaces.Box(0, 1, (2,))),
            gymnasium.spaces.Discrete(2),
            [[0, 1]] * 2,
        ),
        (
            gymnasium.spaces.Tuple((gymnasium.spaces.MultiDiscrete([2, 3]), gymnasium.spaces.Box(0, 1, (2,)))),
            gymnasium.spaces.MultiDiscrete([2, 3]),
            [[0, 1]] * 2,
        ),
    ],
    ids=str,
)
def test_choices_of_a_nest_become_factors_and_its_boxes_the_point(space, regimes, point):
    inner = Moving()
    inner.action_space = space
    env = PeerEnvWrapper(inner)
    low, high = np.float32(point).T
    assert env.action_space == gymnasium.spaces.Tuple((regimes, gymnasium.spaces.Box(low, high)))
    assert (env.action_bounds == np.float32(point)).all()
    assert env.factors.many == isinstance(regimes, gymnasium.spaces.MultiDiscrete)


def test_actions_of_a_nest_arrive_in_its_layout():
    boiler, plant = Boiler(), Plant()
    env = PeerEnvWrapper(boiler)
    env.reset(seed=0)
    assert env.step((np.array([2, 1]), np.array([4.0, -0.5])))[1] == 2 - 1 - 4.5
    env = PeerEnvWrapper(plant)
    env.reset(seed=0)
    env.step((np.array([1, 2, 3]), np.array([0.5, 1.5, 7.0])))
    ((parts, choices, flow),) = plant.received
    assert (list(parts), parts["on"], parts["heat"].tolist()) == (["heat", "on"], 2, [[0.5], [1.5]])
    assert (choices.tolist(), float(flow)) == ([2, 2], 7.0)
    for bad in ((np.array([1, 3, 0]), np.ones(3)), (np.array([1, 0]), np.ones(3)), (1, np.ones(3))):
        with pytest.raises(ValueError, match=r"Plant: the action .* is outside Tuple"):
            env.step(bad)


def test_boxes_of_is_refused_for_a_nest():
    with pytest.raises(ValueError, match=r"Boiler: boxes_of = \[\[0\]\] is for one Discrete"):
        PeerEnvWrapper(Boiler(), boxes_of=[[0]])


def test_tuple_and_dict_observations_become_one_vector_with_bounds_and_scale():
    env = PeerEnvWrapper(Platform())
    observation, info = env.reset(seed=0)
    assert observation.dtype == np.float32 and observation[2] == 0 and info == {}
    assert env.step((0, np.zeros(2)))[0][2] == 1
    assert env.observation_space == gymnasium.spaces.Box(np.float32([-1, -1, 0]), np.float32([1, 1, 199]))
    np.testing.assert_array_equal(env.observation_scale, [1, 1, 199])
    for peer in (Goal, Modern):
        env = PeerEnvWrapper(peer())
        observation, _ = env.reset(seed=0)
        np.testing.assert_allclose(observation, [*np.random.RandomState(0).uniform(-1, 1, 2), 1], rtol=1e-6)
        assert observation in env.observation_space


def test_the_action_scale_is_half_the_width_of_an_interval():
    np.testing.assert_allclose(PeerEnvWrapper(Moving()).action_scale, [0.5, 1.0])
    np.testing.assert_allclose(PeerEnvWrapper(Platform()).action_scale, [np.sqrt(15 * 359), 4.0])


def test_the_reset_of_either_api_is_understood():
    inner = Modern()
    _, info = PeerEnvWrapper(inner).reset(seed=1, options={"level": 2})
    assert info == {"fresh": True} and inner.options == {"level": 2}

    class PairThatEndsInADict(Peer):
        action_space = Moving.action_space
        observation_space = old_tuple(Peer.observation_space, Goal.observation_space)

        def observe(self):
            return (np.zeros(2), {"ball": np.ones(2), "side": 0})

    observation, info = PeerEnvWrapper(PairThatEndsInADict()).reset()
    assert observation.tolist() == [0, 0, 1, 1, 0] and info == {}


@pytest.mark.parametrize(
    ("info", "expected"), [({}, (True, False)), ({"TimeLimit.truncated": True}, (False, True))], ids=["ended", "time is up"]
)
def test_the_old_done_is_truncated_only_if_a_time_limit_says_so(info, expected):
    class Ending(Moving):
        def step(self, action):
            return self.observe(), np.array([1.5]), True, info

    env = PeerEnvWrapper(Ending())
    env.reset(seed=0)
    _, reward, *flags, _ = env.step((0, np.zeros(2)))
    assert (tuple(flags), reward) == (expected, 1.5)


@pytest.mark.parametrize("peer", [Moving, Modern])
def test_equal_seeds_give_equal_episodes(peer):
    env = PeerEnvWrapper(peer())
    first, again, other = (env.reset(seed=seed)[0].tolist() for seed in (1, 1, 2))
    assert first == again != other


class AnyNames(Modern):
    """Takes the arguments of reset() by any name, masks a regime, and can be shown."""

    render_mode, metadata = "rgb_array", {"render_modes": ["rgb_array"], "render_fps": 7}

    def reset(self, **kwargs):
        return super().reset(**kwargs)

    def action_masks(self):
        return np.array([True, False])


def test_masks_seed_and_render_mode_pass_through(recwarn):
    env = PeerEnvWrapper(AnyNames())
    episodes = [env.reset(seed=3)[0] for _ in range(2)]
    np.testing.assert_array_equal(*episodes)
    assert not recwarn.list
    assert env.action_masks().tolist() == [True, False]
    assert (env.render_mode, env.metadata["render_fps"]) == ("rgb_array", 7)
    assert not hasattr(PeerEnvWrapper(Moving()), "action_masks")
    assert PeerEnvWrapper(Moving()).metadata == {"render_modes": []}


def test_a_box_of_integers_gets_the_nearest():
    class Counting(Modern):
        action_space = gymnasium.spaces.Tuple(
            (gymnasium.spaces.Discrete(2), gymnasium.spaces.Box(-3, 5, (1,), dtype=np.int64))
        )

    env = PeerEnvWrapper(Counting())
    arrived = [env.peer_action((1, np.float32([b])))[1].item() for b in (4.99, -2.99, 0.4, 0.6)]
    assert arrived == [5, -3, 0, 1]


def test_an_environment_that_cannot_be_seeded_is_pointed_out():
    with pytest.warns(UserWarning, match=r"Mute has no seed\(\)"):
        PeerEnvWrapper(Mute()).reset(seed=0)


@pytest.mark.parametrize(
    "space",
    [
        old_box([0.0], [1.0]),
        old_tuple(old_discrete(2)),
        old_tuple(old_discrete(2), old_tuple()),
        old_tuple(old_discrete(2), old_discrete(3)),
        old_tuple(old_discrete(2), old_tuple(old_discrete(3), old_box([], []))),
        gymnasium.spaces.Tuple((gymnasium.spaces.MultiBinary(2), gymnasium.spaces.Box(0, 1, (2,)))),
        gymnasium.spaces.Dict(regime=gymnasium.spaces.MultiBinary(2), point=gymnasium.spaces.Box(0, 1, (2,))),
        gymnasium.spaces.Dict(regime=gymnasium.spaces.Discrete(2), valve=gymnasium.spaces.Discrete(2)),
    ],
    ids=str,
)
def test_other_layouts_of_actions_are_refused_and_named(space):
    env = Moving()
    env.action_space = space
    with pytest.raises(TypeError, match="action space must be") as caught:
        PeerEnvWrapper(env)
    assert str(space) in str(caught.value)


def test_other_observations_are_refused_and_named():
    env = Moving()
    env.observation_space = gymnasium.spaces.MultiBinary(3)
    with pytest.raises(TypeError, match=r"observations must be made of .*MultiBinary\(3\)"):
        PeerEnvWrapper(env)


@pytest.mark.parametrize("boxes_of", [None, [[0], [1]], [[0, 1], [2], [3, 5]]])
def test_boxes_that_cannot_be_attributed_are_refused(boxes_of):
    with pytest.raises(ValueError, match=r"Soccer: 3 regimes have 5 Boxes .* boxes_of must say"):
        PeerEnvWrapper(Soccer(), boxes_of)


@pytest.mark.parametrize("action", [(3, [0, 0]), (0, [2, 0]), (0, [0.5]), (0, [np.nan, 0]), (0.5, [0, 0])])
def test_an_action_outside_the_space_is_refused(action):
    env = PeerEnvWrapper(Moving())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"Moving: the action .* is outside Tuple"):
        env.step(action)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (([0, 0], 1.0, True), ValueError, "Moving: step.. must return 4 or 5 values, got 3"),
        (([0, 0], np.nan, True, {}), FloatingPointError, "Moving: non-finite reward"),
        (([0, np.inf], 1.0, True, {}), FloatingPointError, "Moving: non-finite observation"),
        (([0, 0, 0], 1.0, True, {}), ValueError, "Moving: the observation .* is not one of"),
        (("up", 1.0, True, {}), ValueError, "Moving: the observation 'up' is not one of"),
    ],
)
def test_what_the_environment_returns_is_checked(result, error, message):
    env = Moving()
    env.step = lambda action: result
    env = PeerEnvWrapper(env)
    env.reset(seed=0)
    env.name = "Moving"
    with pytest.raises(error, match=message):
        env.step((0, np.zeros(2)))
