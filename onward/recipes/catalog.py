"""The recipes that come with Onward."""

from onward.recipes.backprop import backprop
from onward.recipes.byte_lm import byte_lm
from onward.recipes.channel_goodness import channel_goodness
from onward.recipes.conv import conv
from onward.recipes.dense import dense
from onward.recipes.ff_conv import ff_conv
from onward.recipes.ffcl import ffcl
from onward.recipes.forwardgnn_ff import forwardgnn_ff
from onward.recipes.forwardgnn_links import forwardgnn_links
from onward.recipes.forwardgnn_links_top_to_input import forwardgnn_links_top_to_input
from onward.recipes.forwardgnn_sf import forwardgnn_sf
from onward.recipes.forwardgnn_top_to_input import forwardgnn_top_to_input
from onward.recipes.forwardgnn_top_to_loss import forwardgnn_top_to_loss
from onward.recipes.gff import gff
from onward.recipes.gnn_backprop import gnn_backprop
from onward.recipes.hinton import hinton
from onward.recipes.hinton_recurrent import hinton_recurrent
from onward.recipes.hinton_unsupervised import hinton_unsupervised
from onward.recipes.iffcl import iffcl
from onward.recipes.mono_forward import mono_forward
from onward.recipes.one_pass import one_pass
from onward.recipes.pff import pff
from onward.recipes.predsim import predsim
from onward.recipes.supcon import supcon
from onward.recipes.symba import symba
from onward.recipes.tinyfoa import tinyfoa
from onward.recipes.uff import uff
from onward.recipes.vit import vit

FAMILIES = {
    "a classifier at every layer": (
        one_pass,
        mono_forward,
        tinyfoa,
        conv,
        predsim,
        channel_goodness,
        vit,
        byte_lm,
    ),
    "goodness of positives and negatives": (hinton, pff, symba, ff_conv, hinton_recurrent),
    "samples compared with each other": (supcon, ffcl, iffcl),
    "layers that learn without labels": (hinton_unsupervised, uff),
    "graphs": (
        forwardgnn_sf,
        forwardgnn_ff,
        forwardgnn_top_to_input,
        forwardgnn_top_to_loss,
        forwardgnn_links,
        forwardgnn_links_top_to_input,
        gff,
    ),
    "to compare with": (backprop, gnn_backprop),
}
"""Recipes by what their blocks learn from."""

RECIPES = {recipe.name: recipe for family in FAMILIES.values() for recipe in family}
"""All recipes by name."""

BUILT_IN = {**RECIPES, dense.name: dense}
"""What a file may name: these recipes, and dense blocks by their settings alone."""
