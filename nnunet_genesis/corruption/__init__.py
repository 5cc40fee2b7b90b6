"""Corruption: a patch goes in, a (corrupted, target) pair to learn from comes out."""

from nnunet_genesis.corruption.pair import Drawn as Drawn
from nnunet_genesis.corruption.pair import compile_loops as compile_loops
from nnunet_genesis.corruption.pair import corrupt as corrupt
from nnunet_genesis.corruption.pair import corrupt_batch as corrupt_batch
from nnunet_genesis.corruption.pair import draw as draw
from nnunet_genesis.corruption.pair import flipped as flipped
from nnunet_genesis.corruption.pair import make_pair as make_pair
from nnunet_genesis.corruption.pair import replay as replay
from nnunet_genesis.corruption.pair import to_restore as to_restore
from nnunet_genesis.corruption.recipe import RECIPES as RECIPES
from nnunet_genesis.corruption.recipe import Recipe as Recipe
from nnunet_genesis.corruption.recipe import read_recipe as read_recipe
from nnunet_genesis.corruption.transforms import CorruptionTransform as CorruptionTransform
from nnunet_genesis.corruption.transforms import RestorationPairTransform as RestorationPairTransform
