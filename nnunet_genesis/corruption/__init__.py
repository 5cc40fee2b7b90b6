"""Corruption: a patch goes in, a (corrupted, target) pair to learn from comes out."""

from nnunet_genesis.corruption.pair import PairParams as PairParams
from nnunet_genesis.corruption.pair import apply_params as apply_params
from nnunet_genesis.corruption.pair import compile_loops as compile_loops
from nnunet_genesis.corruption.pair import make_pair as make_pair
from nnunet_genesis.corruption.pair import room_for as room_for
from nnunet_genesis.corruption.pair import sample_params as sample_params
from nnunet_genesis.corruption.recipe import RECIPES as RECIPES
from nnunet_genesis.corruption.recipe import Recipe as Recipe
from nnunet_genesis.corruption.recipe import read_recipe as read_recipe
from nnunet_genesis.corruption.transforms import CorruptionTransform as CorruptionTransform
from nnunet_genesis.corruption.transforms import RestorationPairTransform as RestorationPairTransform
